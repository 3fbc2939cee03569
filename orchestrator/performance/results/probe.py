"""What probes measured, as it is stored. Seconds, bytes and FLOPs (a multiply-add is two)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spread:
    """A figure measured ``n`` times: median, lowest and highest."""

    median: float
    low: float
    high: float
    n: int

    @property
    def relative(self) -> float:
        """How far apart lowest and highest are, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def by_size(found: Mapping[str, Sequence[float]]) -> dict[int, Spread]:
    """The spreads of what a node's program said by numbers, which JSON has as words."""
    return {int(size): spread(values) for size, values in found.items()}


@dataclass(frozen=True)
class DeviceRates:
    """One node's device, through the torch of what vLLM uses there.

    ``memory_bytes_per_s``: reading weights far larger than the caches. ``matrix_flops_per_s``: by
    dtype. ``operation_s``: the fixed cost of one small operation (dispatch, launch).
    ``clock_skew_s``: the node's clock minus the control host's. ``product_bytes_per_s``: of
    matrix products in half precision, bytes of weights that they get through, by the input's rows.
    """

    node: str
    device: str
    name: str
    threads: int
    memory_bytes_per_s: Spread
    matrix_flops_per_s: dict[str, Spread]
    operation_s: Spread
    clock_skew_s: float
    memory_total_bytes: int
    product_bytes_per_s: dict[int, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class LinkRates:
    """A pair of nodes over one network, by plain TCP.

    ``interfaces``: those that the packets really took, by the kernel's counters, of a and of b.
    ``latency_s``: one way, half of a round trip. ``by_size_s``: one way, by a message's bytes.
    """

    a: str
    b: str
    network: str
    interfaces: tuple[str, str]
    negotiated_bits_per_s: tuple[int | None, int | None]
    latency_s: Spread
    bytes_per_s: Spread
    by_size_s: dict[int, Spread]


@dataclass(frozen=True)
class CollectiveRates:
    """The library that vLLM's ranks use between these nodes; times by a message's bytes.

    ``send_s``: point to point, from the first node to the second.
    """

    nodes: tuple[str, ...]
    backend: str
    interfaces: tuple[str, ...]
    all_reduce_s: dict[int, Spread]
    send_s: dict[int, Spread]


@dataclass(frozen=True)
class StorageRates:
    """A node's model: reading its largest file, and bringing tensors onto the device.

    ``uncached``: whether the kernel had to fetch the file; else both are rates of memory.
    """

    node: str
    path: str
    read_bytes_per_s: Spread
    load_bytes_per_s: Spread
    bytes: int = 0
    file_system: str = ""
    uncached: bool = False


@dataclass(frozen=True)
class FailedProbe:
    """A probe that gave nothing, and why."""

    probe: str
    where: str
    reason: str


@dataclass(frozen=True)
class Before:
    """What went on just before. ``busy``: by node, the share of its machine's processors in use.

    ``requests``: that the model worked on; None where it did not serve.
    """

    busy: dict[str, float] = field(default_factory=dict)
    requests: float | None = None


@dataclass(frozen=True)
class Probes:
    """All of one round, with what it was measured on. ``time``: ISO 8601, UTC.

    ``versions``: of what an image has, the first node's; ``pairs_left_out``: pairs of nodes with a
    link that were not measured.
    """

    profile: str
    profile_sha256: str
    image_id: str
    versions: dict[str, str]
    time: str
    devices: tuple[DeviceRates, ...] = ()
    links: tuple[LinkRates, ...] = ()
    collectives: tuple[CollectiveRates, ...] = ()
    storage: tuple[StorageRates, ...] = ()
    failed: tuple[FailedProbe, ...] = ()
    before: Before = Before()
    pairs_left_out: int = 0
