"""How the model is spread over the accelerators, and the words of ``vllm serve``.

vLLM would refuse a wrong size too, but minutes later and on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.core import paths
from orchestrator.core.document import DocumentError, read_yaml
from orchestrator.core.errors import UserError
from orchestrator.core.source import Problem
from orchestrator.models import cards, catalog, chosen, quantization
from orchestrator.models import flags as flags_of
from orchestrator.models.config import group_misfit, has_experts, pipeline_misfit, tensor_misfit
from orchestrator.models.reading import served

if TYPE_CHECKING:
    from orchestrator.profile.model import Node, Profile

#: The capability that says why an image cannot spread experts.
NO_EXPERT_PARALLEL = "no_expert_parallel"


@dataclass(frozen=True)
class Layout:
    """How the model lies on the cluster."""

    #: Over how many accelerators each layer is spread.
    tensor: int
    #: Into how many stages the layers are cut.
    pipeline: int
    #: Whether whole experts are spread, instead of slices of each.
    expert: bool
    #: How many accelerators the compute nodes have together.
    accelerators: int
    #: How many copies of the model there are, each with both sizes.
    data: int = 1

    @property
    def ranks(self) -> int:
        """How many accelerators one copy lies on."""
        return self.tensor * self.pipeline

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tensor, pipeline and data parallel size."""
        return self.tensor, self.pipeline, self.data

    @property
    def used(self) -> int:
        """How many of the accelerators the model lies on."""
        return self.ranks * self.data


@dataclass(frozen=True)
class Copy:
    """A copy of the model, and the nodes that it may use. vLLM's server is on the first."""

    nodes: tuple[Node, ...]

    @property
    def server(self) -> Node:
        return self.nodes[0]

    def devices(self, ranks: int) -> list[Node]:
        """The node of each of its ranks: node by node, in order."""
        return [node for node in self.nodes for _ in range(node.accelerators)][:ranks]

    def members(self, ranks: int) -> tuple[Node, ...]:
        """Its first nodes that hold the ranks evenly, as `executor: mp` needs; empty without."""
        for count in range(1, len(self.nodes) + 1):
            each, rest = divmod(ranks, count)
            if not rest and all(node.accelerators >= each for node in self.nodes[:count]):
                return self.nodes[:count]
        return ()


def ways(profile: Profile, layout: Layout) -> dict[str, str]:
    """Where the endpoint leads to each copy: its server's name -> what the path begins with."""
    return apart(profile, layout) or {profile.server.name: ""}


def apart(profile: Profile, layout: Layout) -> dict[str, str]:
    """The same, where the endpoint has more than one server behind it; else empty."""
    if layout.data == 1 and len(profile.whole.services) == 1:
        return {}
    names = [copy.server.name for copy in copies(profile, layout.data)]
    return {name: f"/copies/{name}" for name in names}


def copies(profile: Profile, count: int) -> tuple[Copy, ...]:
    """The groups of nodes that so many copies lie on."""
    nodes = profile.compute_nodes
    size = len(nodes) // count
    return tuple(Copy(nodes[at : at + size]) for at in range(0, size * count, size))


def copy_of(profile: Profile, layout: Layout, node: Node) -> Copy | None:
    """The copy that a compute node's vLLM belongs to; None where none of it is started there."""
    for copy in copies(profile, layout.data):
        by_ray = profile.serving.by_ray
        if node in (copy.nodes[:1] if by_ray else copy.members(layout.ranks)):
            return copy
    return None


def resolve(profile: Profile) -> Layout:
    """The layout of the profile's model on its image and its nodes' accelerators.

    Raises DocumentError (a BadInput) with all that is wrong: as ``layout`` does, and where vLLM
    would refuse the model's quantization, or the accelerators cannot compute what is asked.
    """
    config = catalog.served(profile).config
    trusted = flags_of.trusts_code(profile.serving.args)
    cannot = capabilities(profile.image)
    refused = f"vLLM refuses the model {profile.serving.model}"
    wrong = [
        *((("serving", "model"), f"{refused}: {text}") for text in served.refused(config, trusted)),
        *quantization.problems(profile, config, cannot),
        *cards.problems(profile, config),
    ]
    problems = [profile.problem(loc, text) for loc, text in wrong]
    try:
        found = as_chosen(profile, config, cannot) or layout(profile, config, cannot)
    except DocumentError as error:
        problems += error.problems
    if problems:
        raise DocumentError(profile.path, sorted(set(problems)), "")
    return found


def resolve_all(profile: Profile) -> tuple[Layout, ...]:
    """The layout of each of the profile's models. Raises DocumentError with all that is wrong."""
    found: list[Layout] = []
    problems: set[Problem] = set()
    for each in profile.services:
        try:
            found.append(resolve(each))
        except DocumentError as error:
            problems |= set(error.problems)
    if problems:
        raise DocumentError(profile.path, sorted(problems), "")
    return tuple(found)


def as_chosen(
    profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str]
) -> Layout | None:
    """The layout that was chosen for ``layout: auto``; None where none was, or where it is not
    possible any more."""
    if profile.serving.layout != "auto":
        return None
    found = chosen.read(profile.name)
    if found is None or found.model != profile.serving.model:
        return None
    return with_sizes(profile, config, capabilities, found.sizes)


def with_sizes(
    profile: Profile,
    config: Mapping[str, Any],
    capabilities: Mapping[str, str],
    sizes: Mapping[str, int],
) -> Layout | None:
    """The layout with these sizes in place of the profile's; None where it is not possible."""
    if len(profile.compute_nodes) % sizes.get("data_parallel", 1):
        return None
    changed = profile.serving.model_copy(update=dict(sizes))
    try:
        return layout(profile.model_copy(update={"serving": changed}), config, capabilities)
    except DocumentError:
        return None


def must_be_chosen(profile: Profile) -> None:
    """Raises UserError before a model is served in a layout that nobody chose."""
    config, cannot = catalog.served(profile).config, capabilities(profile.image)
    if profile.serving.layout == "auto" and as_chosen(profile, config, cannot) is None:
        raise UserError(
            f"{profile.name}: serving.layout is auto, and no layout is chosen that this profile"
            " allows. Nothing was changed.",
            "Run: orchestrate up",
        )


def capabilities(image: str) -> dict[str, str]:
    """What serving cannot do on an image: name -> reason, from its ``image.yml``."""
    file = paths.checkout() / "images" / image / "image.yml"
    document = read_yaml(file)
    return dict(document.get("capabilities") or {})


def layout(profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str]) -> Layout:
    """Sizes for the profile's ``serving``, checked against the accelerators and the model.

    ``auto`` sizes: of all pairs that fit, the one that uses the most accelerators; of those, the
    one with the larger tensor size, because only that makes a single answer faster. So with one
    pipeline stage the tensor size is the number of accelerators where the model can be cut that
    way, else the largest smaller one. ``expert_parallel: auto`` is true where the model has
    experts, the image can spread them and there is more than one rank to spread them over.

    With copies, a size has to fit into the group of nodes with the fewest accelerators.
    ``data_parallel: auto`` comes last: as many groups as hold the sizes.

    What config.json does not say is not checked. Raises DocumentError (with file, line and key)
    where a given size contradicts the accelerators, the model or the image.
    """
    serving = profile.serving
    data = 1 if serving.data_parallel == "auto" else serving.data_parallel
    total = _room(profile, data)
    if not total and data == 1:
        _refuse(profile, "nodes", "none of the model's nodes has an accelerator; name others")
    if not total:
        text = f"{data} copies leave a group of nodes without an accelerator; allowed: fewer"
        _refuse(profile, "data_parallel", f"{text}, or auto")
    tensor, pipeline = serving.tensor_parallel, serving.pipeline_parallel

    def misfit(size: int) -> str:
        card = cards.rank_misfit(profile, config, size)
        return tensor_misfit(config, size) or card or group_misfit(config, size)

    fits = [size for size in range(1, total + 1) if not misfit(size)]
    if tensor == "auto" and not fits:
        _refuse(profile, "tensor_parallel", f"no size is possible; 1 {misfit(1)}")
    if tensor != "auto" and (why := misfit(tensor)):
        allowed = f"{', '.join(map(str, fits))} or auto" if fits else "another model"
        _refuse(profile, "tensor_parallel", f"{tensor} {why}; allowed: {allowed}")
    if pipeline != "auto" and (why := pipeline_misfit(config, pipeline)):
        _refuse(profile, "pipeline_parallel", f"{pipeline} {why}")
    groups = copies(profile, data)

    def spread(ranks: int) -> bool:
        return serving.by_ray or all(copy.members(ranks) for copy in groups)

    pairs = [
        (t, p)
        for t in ([tensor] if tensor != "auto" else fits)
        for p in ([pipeline] if pipeline != "auto" else range(1, total + 1))
        if t * p <= total and not pipeline_misfit(config, p)
    ]
    if not pairs:
        _refuse_too_large(profile, total, data)
    if not (even := [pair for pair in pairs if spread(pair[0] * pair[1])]):
        text = "mp puts as many ranks on each node of a copy, and its nodes' accelerators do not"
        _refuse(profile, "executor", f"{text} allow it with these sizes; allowed: ray")
    tensor, pipeline = max(even, key=lambda pair: (pair[0] * pair[1], pair[0]))
    if serving.data_parallel == "auto":
        data = _most_copies(profile, tensor * pipeline)
    expert = _expert(profile, config, capabilities, tensor)
    accelerators = sum(node.accelerators for node in profile.compute_nodes)
    return Layout(tensor, pipeline, expert, accelerators, data)


def _room(profile: Profile, count: int) -> int:
    """The accelerators of the smallest of so many groups of nodes."""
    return min(sum(each.accelerators for each in copy.nodes) for copy in copies(profile, count))


def _most_copies(profile: Profile, ranks: int) -> int:
    """How many copies of so many ranks the nodes hold, in groups of equal size."""
    nodes = len(profile.compute_nodes)

    def holds(count: int) -> bool:
        if nodes % count:
            return False
        groups = copies(profile, count)
        even = profile.serving.by_ray or all(copy.members(ranks) for copy in groups)
        return even and _room(profile, count) >= ranks

    return max(count for count in range(1, nodes + 1) if holds(count))


def vllm_argv(
    profile: Profile, model_dir: str | Path, layout: Layout, node: Node | None = None
) -> list[str]:
    """The words after vLLM's executable on a node (the first copy's server). The API key is not
    among them: it goes by VLLM_API_KEY."""
    serving, node = profile.serving, node or profile.server
    argv = ["serve", str(model_dir), "--served-model-name", serving.model]
    argv += ["--host", profile.ray_address(node), "--port", str(serving.port)]
    argv += ["--tensor-parallel-size", str(layout.tensor)]
    argv += ["--pipeline-parallel-size", str(layout.pipeline)]
    argv += ["--enable-expert-parallel"] if layout.expert else []
    argv += [f"--{flags_of.EXECUTOR}", serving.executor]
    copy = copy_of(profile, layout, node)
    members = copy.members(layout.ranks) if copy and not serving.by_ray else ()
    if len(members) > 1:
        rank = members.index(node)
        argv += ["--nnodes", str(len(members)), "--node-rank", str(rank)]
        argv += ["--master-addr", profile.ray_address(members[0])]
        argv += ["--headless"] if rank else []
    return argv + flags(serving.args)


def flags(args: Mapping[str, object]) -> list[str]:
    """``serving.args`` as vLLM's words."""
    words: list[str] = []
    for name, value in args.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


def _expert(
    profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str], tensor: int
) -> bool:
    obstacles = list(_expert_obstacles(profile, config, capabilities, tensor))
    wanted = profile.serving.expert_parallel
    if wanted is True and obstacles:
        text = f"true is not possible: {'; '.join(obstacles)}; allowed: false or auto"
        _refuse(profile, "expert_parallel", text)
    return wanted is not False and not obstacles


def _expert_obstacles(
    profile: Profile, config: Mapping[str, Any], capabilities: Mapping[str, str], tensor: int
) -> Iterator[str]:
    if not has_experts(config):
        yield f"the model {profile.serving.model} has no experts"
    if NO_EXPERT_PARALLEL in capabilities:
        yield f"the image {profile.image} does not support it: {capabilities[NO_EXPERT_PARALLEL]}"
    if tensor == 1:
        yield "expert parallelism needs two or more tensor-parallel ranks; there is one"


def _refuse_too_large(profile: Profile, total: int, data: int) -> NoReturn:
    tensor, pipeline = profile.serving.tensor_parallel, profile.serving.pipeline_parallel
    key = "pipeline_parallel" if tensor == "auto" else "tensor_parallel"
    sizes = [str(size) for size in (tensor, pipeline) if size != "auto"]
    needed = " x ".join(sizes)
    whose = "the compute nodes" if profile.whole is profile else "the model's nodes"
    have = f"{whose} have" if data == 1 else f"a group of nodes of {data} copies has"
    text = f"needs {needed} accelerators, {have} {total}; make it smaller, or auto"
    _refuse(profile, key, text)


def _refuse(profile: Profile, key: str, text: str) -> NoReturn:
    raise DocumentError(profile.path, [profile.problem(("serving", key), text)], "")
