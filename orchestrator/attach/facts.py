"""What a node of somebody's cluster says of itself: the document that ``node_facts.py`` prints.

Frozen, and checked when it is read: a node may print anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.attach.flags import Flags, flags

#: Titles of vLLM's processes that hold a rank, and of its engine, which holds it where it is alone.
#: vLLM's own prefix can be another one (VLLM_PROCESS_NAME_PREFIX).
WORKER = re.compile(r"^(?!ray::)\w+::Worker|^ray::RayWorker(?:Proc|Wrapper)")
ENGINE = re.compile(r"^(?!ray::)\w+::EngineCore|^ray::\w*EngineCoreActor")
#: The flag of a server that is one rank of data parallelism.
RANK_FLAG = "data-parallel-rank"
#: Variables that name the interfaces of ranks.
INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "CCL_KVS_IFACE", "FI_TCP_IFACE")
#: Distributions whose versions decide how an engine behaves; they have to be alike on all nodes.
ALIKE = ("vllm", "torch", "ray", "transformers", "triton", "nvidia-nccl-cu12", "nvidia-nccl-cu13")


@dataclass(frozen=True)
class Address:
    """A network interface, and an IPv4 address of it."""

    interface: str
    address: str
    #: Mb/s; None where the card says none.
    speed: int | None
    mtu: int
    driver: str


@dataclass(frozen=True)
class CardFacts:
    """An accelerator; None for what its driver does not say. Units are in the names."""

    vendor: str
    name: str
    place: str
    driver: str
    memory_bytes: float | None = None
    memory_used_bytes: float | None = None
    busy_percent: float | None = None
    clock_mhz: float | None = None
    clock_most_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: str = ""
    link_speed: str = ""
    link_speed_most: str = ""
    link_width: int | None = None
    link_width_most: int | None = None
    memory_busy_percent: float | None = None
    #: Links to other cards that work, like ``18 NVLink, 26.6 GB/s each``.
    links: str = ""


@dataclass(frozen=True)
class RdmaPort:
    """A port of an RDMA device. ``layer``: InfiniBand, or Ethernet for RoCE."""

    device: str
    port: int
    layer: str
    state: str
    gbits: float | None
    #: The network card that it is a side of.
    interface: str

    @property
    def works(self) -> bool:
        return self.state == "ACTIVE"

    @property
    def told(self) -> str:
        rate = f"{self.gbits:g} Gb/s" if self.gbits else ""
        words = [f"{self.device}:{self.port}", self.layer, self.state, rate, self.interface]
        return " ".join(filter(None, words))


@dataclass(frozen=True)
class EngineLog:
    """Lines of the engine's log that speak of the collectives' transports. ``of``: which log."""

    of: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EngineProcess:
    """A process of vLLM: its command line or its title, secrets left out."""

    pid: int
    #: Who started it, and who started that one, as far as init.
    parents: list[int]
    user: str
    argv: list[str]
    #: The kind of container and its id, as ``docker 0123456789ab``; "" outside.
    container: str
    #: Variables that matter; None: they cannot be read.
    env: dict[str, str] | None
    #: Versions of what its Python has; None: they cannot be read.
    versions: dict[str, str] | None
    python: str

    @property
    def title(self) -> str:
        return " ".join(self.argv)

    @property
    def is_server(self) -> bool:
        """Whether it is started by ``vllm serve``, or by the module behind it."""
        return flags(self.argv) is not None

    @property
    def flags(self) -> Flags | None:
        return flags(self.argv)


@dataclass(frozen=True)
class MachineFacts:
    """A node."""

    time: float
    hostname: str
    user: str
    kernel: str
    python: str
    processors: int
    memory_bytes: int
    addresses: list[Address]
    rdma: list[RdmaPort]
    accelerators: list[CardFacts]
    engines: list[EngineProcess]
    #: Ray's own processes run here, as (its kind, its command line).
    ray: list[list[str]]
    #: What could not be found out, and what would help.
    unknown: list[str] = field(default_factory=list)
    log: EngineLog = field(default_factory=EngineLog)
    #: Whose processes these are: the same for two nodes that see each other's. Empty: not known.
    processes: str = ""

    @property
    def servers(self) -> list[EngineProcess]:
        return [each for each in self.engines if each.is_server]

    @property
    def ranks(self) -> list[str]:
        """The ranks here, by their processes' titles; one for an engine that has no workers."""
        workers = [each.title for each in self.engines if WORKER.match(each.title)]
        return workers or [each.title for each in self.engines if ENGINE.match(each.title)]

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what vLLM's processes here run with."""
        found: dict[str, str] = {}
        for engine in self.engines:
            for name, version in (engine.versions or {}).items():
                found.setdefault(name, version)
        return found

    @property
    def container(self) -> str:
        """The container that vLLM's processes run in; "" if they run in none, or there are none."""
        return next((each.container for each in self.engines if each.container), "")


def of_ranks(facts: MachineFacts) -> str:
    """The address that the ranks use: as the engine's variables say, else the fastest link's."""
    env: dict[str, str] = {}
    for each in facts.engines:
        env |= each.env or {}
    said = env.get("VLLM_HOST_IP", "")
    named = next((env[name] for name in INTERFACES if name in env), "").lstrip("=")
    for link in facts.addresses:
        if link.address == said or link.interface in named.split(","):
            return link.address
    fastest = max(facts.addresses, key=lambda link: link.speed or 0, default=None)
    return fastest.address if fastest else ""


def of_model(facts: MachineFacts, model: str, port: int) -> MachineFacts:
    """The facts without other engines, where several run on a node: without those of other models,
    and of this one, those that another port serves.

    Workers are their server's by descent; those of Ray, which Ray starts, if it has no others.
    """
    named = [each for each in facts.servers if each.flags and model in each.flags.names]
    mine = [each for each in named if each.flags and each.flags.port == port] or named
    if any(each.flags and RANK_FLAG in each.flags.given for each in mine):
        # Each rank of data parallelism has a server and a port of its own, behind a balancer.
        mine = [each for each in named if each.flags and RANK_FLAG in each.flags.given]
    if not mine:
        return facts
    pids = {each.pid for each in mine}
    kept = [each for each in facts.engines if each.pid in pids or pids & set(each.parents)]
    if not any(WORKER.match(each.title) or ENGINE.match(each.title) for each in kept):
        kept += [each for each in facts.engines if each.title.startswith("ray::")]
    return replace(facts, engines=kept)


def public(version: str) -> str:
    """A version without what its builder added: ``0.30.0+cpu`` is 0.30.0."""
    return version.partition("+")[0]


def apart(by_node: dict[str, dict[str, str]], names: Sequence[str] = ALIKE) -> list[str]:
    """Distributions that are not alike on all nodes that have them: ``torch: 2.9 (a), 2.8 (b)``."""
    found = []
    for name in names:
        versions = {node: each[name] for node, each in by_node.items() if name in each}
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{version} ({node})" for node, version in versions.items())
            found.append(f"{name}: {told}")
    return found
