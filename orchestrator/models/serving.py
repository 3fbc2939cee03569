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
from orchestrator.models import cards, catalog, chosen, quantization
from orchestrator.models import flags as flags_of
from orchestrator.models.config import group_misfit, has_experts, pipeline_misfit, tensor_misfit
from orchestrator.models.reading import served

if TYPE_CHECKING:
    from orchestrator.profile.model import Profile

#: The capability that says why an image cannot spread experts.
NO_EXPERT_PARALLEL = "no_expert_parallel"


@dataclass(frozen=True)
class Layout:
    """How one copy of the model lies on the cluster."""

    #: Over how many accelerators each layer is spread.
    tensor: int
    #: Into how many stages the layers are cut.
    pipeline: int
    #: Whether whole experts are spread, instead of slices of each.
    expert: bool
    #: How many accelerators the compute nodes have together.
    accelerators: int

    @property
    def used(self) -> int:
        """How many of the accelerators the model lies on."""
        return self.tensor * self.pipeline


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

    What config.json does not say is not checked. Raises DocumentError (with file, line and key)
    where a given size contradicts the accelerators, the model or the image.
    """
    serving = profile.serving
    total = sum(node.accelerators for node in profile.compute_nodes)
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
    pairs = [
        (t, p)
        for t in ([tensor] if tensor != "auto" else fits)
        for p in ([pipeline] if pipeline != "auto" else range(1, total + 1))
        if t * p <= total and not pipeline_misfit(config, p)
    ]
    if not pairs:
        _refuse_too_large(profile, total)
    tensor, pipeline = max(pairs, key=lambda pair: (pair[0] * pair[1], pair[0]))
    expert = _expert(profile, config, capabilities, tensor)
    return Layout(tensor, pipeline, expert, total)


def vllm_argv(profile: Profile, model_dir: str | Path, layout: Layout) -> list[str]:
    """The words after vLLM's executable. The API key is not among them: it goes by VLLM_API_KEY."""
    serving = profile.serving
    argv = ["serve", str(model_dir), "--served-model-name", serving.model]
    argv += ["--host", profile.ray_address(profile.server), "--port", str(serving.port)]
    argv += ["--tensor-parallel-size", str(layout.tensor)]
    argv += ["--pipeline-parallel-size", str(layout.pipeline)]
    argv += ["--enable-expert-parallel"] if layout.expert else []
    argv += ["--distributed-executor-backend", "ray"]
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


def _refuse_too_large(profile: Profile, total: int) -> NoReturn:
    tensor, pipeline = profile.serving.tensor_parallel, profile.serving.pipeline_parallel
    key = "pipeline_parallel" if tensor == "auto" else "tensor_parallel"
    sizes = [str(size) for size in (tensor, pipeline) if size != "auto"]
    needed = " x ".join(sizes)
    text = f"needs {needed} accelerators, the compute nodes have {total}; make it smaller, or auto"
    _refuse(profile, key, text)


def _refuse(profile: Profile, key: str, text: str) -> NoReturn:
    raise DocumentError(profile.path, [profile.problem(("serving", key), text)], "")
