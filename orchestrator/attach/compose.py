"""The profile of a cluster that others run, as text with comments. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from orchestrator.attach.find import ClusterFound, NodeFound, told
from orchestrator.core.visible import one_line
from orchestrator.profile.existing import EXISTING

#: What is a flag's name in a profile (profile.types.FlagName), and a variable's.
FLAG, VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*"), re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def name_of(url: str) -> str:
    """A profile's name for an endpoint: its host, and its port."""
    parts = urlsplit(url)
    words = [parts.hostname or "cluster", str(parts.port) if parts.port else ""]
    return _cut("-".join(filter(None, words)), r"[^a-z0-9._-]+")


def node_names(hosts: Sequence[str]) -> list[str]:
    """Names of nodes: each host's first label, or its address; numbered where two are alike."""
    names: list[str] = []
    for host in hosts:
        bare = host.rpartition("@")[2]
        label = bare if re.fullmatch(r"[0-9.:]+", bare) else bare.partition(".")[0]
        name = _cut(label, r"[^a-z0-9-]+")
        alike = sum(each == name or each.startswith(f"{name}-") for each in names)
        names.append(f"{name}-{alike + 1}" if alike else name)
    return names


def _cut(text: str, other: str) -> str:
    return re.sub(other, "-", text.lower()).strip("-._")[:60] or "cluster"


def text(found: ClusterFound, name: str) -> str:
    return "\n".join([*_lines(found, name), ""])


def _lines(found: ClusterFound, name: str) -> Iterator[str]:
    yield "# Written by 'orchestrate attach' from what the cluster says. Edit it as you like:"
    yield "# every key is explained in docs/reference/profile.md, under 'Attached'."
    yield "#"
    yield from (_comment(line) for line in told(found))
    if found.unknown:
        yield "#"
        yield "# Not found out:"
        yield from (_comment(line) for line in found.unknown)
    yield ""
    yield f"name: {_value(name)}"
    yield f"machines: {EXISTING} # others run it: no power, image or netboot here"
    yield "endpoint:"
    for key, value in found.endpoint.model_dump(exclude_none=True).items():
        yield f"  {key}: {_value(value)}"
    yield "# The machine of vLLM's server is the first."
    nodes = sorted(found.nodes, key=lambda each: not _serves(found, each))
    yield "nodes:" if nodes else "nodes: []"
    for each in nodes:
        yield from _node(each, found.ranks(each))
    yield "serving:"
    yield from (f"  {line}" for line in _serving(found))
    yield "verification:"
    yield "  # Questions, and what a correct answer contains: yours are better than this one."
    yield "  prompts:"
    yield '    - { question: "What is the capital of France?", contains: "Paris" }'


def _serves(found: ClusterFound, node: NodeFound) -> bool:
    return any(server is node for server, _ in found.servers)


def _node(found: NodeFound, ranks: int) -> Iterator[str]:
    node = found.node
    yield f"  - name: {_value(node.name)}"
    yield f"    host: {_value(node.host)}"
    if node.enter:
        yield f"    enter: {_value(list(node.enter))} # found; it enters vLLM's container"
    if node.python != "python3":
        yield f"    python: {_value(node.python)}"
    if node.engine:
        yield f"    engine: {_value(node.engine)} # the Python of vLLM's processes"
    if node.address:
        yield f"    address: {node.address} # taken for the one that the ranks use"
    if found.facts is None:
        yield "    # It did not answer: put the number of the model's ranks here."
    yield f"    ranks: {ranks}"


def _serving(found: ClusterFound) -> Iterator[str]:
    yield f"model: {_value(found.model)}"
    flags = found.flags
    if flags is None:
        yield "# The server's flags were not seen: put its layout here."
        yield "tensor_parallel: 1"
        if found.said.context:
            yield "args:"
            yield f"  max-model-len: {found.said.context} # as the endpoint says"
        return
    yield f"tensor_parallel: {flags.tensor}"
    yield f"pipeline_parallel: {flags.pipeline}"
    yield f"data_parallel: {flags.data}"
    yield f"expert_parallel: {_value(flags.expert)}"
    args: dict[str, Any] = {
        key: value
        for key, value in flags.speed.items()
        if FLAG.fullmatch(key) and one_line(str(value)) == str(value)
    }
    told_by = {}
    if found.said.context and "max-model-len" not in args:
        args["max-model-len"] = found.said.context
        told_by["max-model-len"] = " # as the endpoint says"
    yield "args:" if args else "args: {}"
    for key, value in args.items():
        yield f"  {key}: {_value(value)}{told_by.get(key, '')}"
    env = next((e.env for _, e in found.servers if e.env), {})
    kept = {k: v for k, v in env.items() if VARIABLE.fullmatch(k) and one_line(v) == v}
    yield "env:" if kept else "env: {}"
    for key, value in kept.items():
        yield f"  {key}: {_value(value)}"


def _value(value: object) -> str:
    """As YAML has it: JSON's quoting is one of its own."""
    return json.dumps(value, ensure_ascii=False)


def _comment(line: str) -> str:
    return f"# {one_line(line)[:300]}"
