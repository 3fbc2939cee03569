"""What is looked at: facts of nodes, of Ray and of the endpoint, with no judgement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself: the document that ``probe_node.py`` prints."""

    time: float  # seconds since 1970, by the node's clock
    image: str  # id of the booted image, "" where none is recorded
    hostname: str
    loopback: list[str]  # names on 127.0.0.1 lines of /etc/hosts
    names: dict[str, list[str]]  # node name -> IPv4 addresses it resolves to here
    accounts: dict[str, int | None]  # account name -> uid, None where it is missing
    system: str  # what `systemctl is-system-running` says
    failed: list[str]  # failed units
    units: dict[str, str]  # unit -> active, failed, ...; declined: its own conditions say so


@dataclass(frozen=True)
class Clock:
    """A node's clock against this machine's, both in seconds."""

    offset: float  # positive: the node is ahead
    uncertainty: float  # half the round trip


@dataclass(frozen=True)
class RayNode:
    """A node that Ray's control store says is alive."""

    id: str
    address: str
    head: bool
    accelerators: float  # what Ray counts as "GPU"


@dataclass(frozen=True)
class RayWorker:
    """A running actor that holds a rank of the model."""

    name: str
    address: str


@dataclass(frozen=True)
class RayFacts:
    """The document that ``probe_ray.py`` prints."""

    nodes: list[RayNode]
    workers: list[RayWorker]


@dataclass(frozen=True)
class Generated:
    """An answer of the endpoint, token by token."""

    text: str
    finish_reason: str  # "stop": the model ended it; "length": max_tokens did
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
