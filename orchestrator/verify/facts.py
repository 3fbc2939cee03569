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
    host_key: str = ""  # SSH's, public, without its comment; "" where there is none


@dataclass(frozen=True)
class PortFacts:
    """A PCIe link on a device's way to the processor, by its lower end. Speeds are GT/s a lane."""

    address: str
    width: int
    width_most: int
    speed: float | None = None
    #: The port at its upper end, and the lanes that this one has.
    above: str = ""
    above_most: int | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether fewer lanes were negotiated than the card has."""
        return self.width < self.width_most

    @property
    def told(self) -> str:
        """Its lanes, those that the card has where they are more, and whether the slot is why."""
        if not self.is_narrow:
            return f"x{self.width}"
        has = f"; {self.above} above it has x{self.above_most}" if self.above_most else ""
        return f"x{self.width} of x{self.width_most}{has}"


@dataclass(frozen=True)
class PciFacts:
    """A PCI device."""

    address: str
    id: str  # VENDOR:DEVICE
    driver: str  # "" where none is bound
    bars: dict[str, int]  # number -> bytes
    # Of the link towards the processor, as it runs; None where the device says none.
    width: int | None = None  # lanes
    speed: float | None = None  # GT/s of a lane
    # Of all links on its way to the processor the one that counts; None where none says its lanes.
    way: PortFacts | None = None


@dataclass(frozen=True)
class LinkFacts:
    """What a network interface runs at."""

    there: bool
    state: str  # up, down, ...
    ethernet: int | None  # Mb/s, None where the card says none
    usb4: float | None  # Gb/s, None where it is no USB4 link
    mtu: int


@dataclass(frozen=True)
class SignFacts:
    """Whether there was anything to read, and the first line that matches."""

    read: bool
    line: str | None
    # Of the devices that the sign is about: how many such a line speaks of, and the other ones.
    told: int = 0
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class LevelZeroFacts:
    """GPUs that Level Zero shows, or why that is not known."""

    devices: int
    error: str


@dataclass(frozen=True)
class TorchFacts:
    """Devices that torch sees; ``wrong``: what is wrong with what they compute."""

    names: list[str]
    wrong: str
    error: str


@dataclass(frozen=True)
class CommandFacts:
    """How a command ended (None: not in time), what it printed, why it failed."""

    code: int | None
    out: str
    error: str


@dataclass(frozen=True)
class HardwareFacts:
    """What a node has: the document that ``probe_hardware.py`` prints.

    ``signs`` and ``commands`` are in the order of the profile's ``hardware``.
    """

    memory: int  # bytes
    modules: dict[str, bool]  # module -> whether it is loaded
    devices: dict[str, int]  # device file as the profile has it -> how many there are
    pci: list[PciFacts]
    links: dict[str, LinkFacts]  # by interface
    signs: list[SignFacts]
    level_zero: LevelZeroFacts | None
    torch: TorchFacts | None
    commands: list[CommandFacts]


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
class RankFacts:
    """What holds a rank of the model: a running actor of Ray's, or a process."""

    name: str
    address: str


@dataclass(frozen=True)
class RayFacts:
    """The document that ``probe_ray.py`` prints."""

    nodes: list[RayNode]
    workers: list[RankFacts]


@dataclass(frozen=True)
class Generated:
    """An answer of the endpoint, token by token."""

    text: str
    finish_reason: str  # "stop": the model ended it; "length": max_tokens did
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
