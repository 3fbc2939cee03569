"""Probes as they are stored. Units: seconds, bytes, FLOPs (a multiply-add is two)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spread:
    """A figure that was measured ``n`` times: median, lowest and highest value."""

    median: float
    low: float
    high: float
    n: int

    @property
    def relative(self) -> float:
        """The distance between lowest and highest, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def by_size(found: Mapping[str, Sequence[float]]) -> dict[int, Spread]:
    """Spreads by message size; JSON has the sizes as strings."""
    return {int(size): spread(values) for size, values in found.items()}


@dataclass(frozen=True)
class DeviceRates:
    """One node's device, measured with the torch that vLLM uses.

    ``memory_bytes_per_s``: for reading weights far larger than the caches. ``matrix_flops_per_s``:
    by dtype. ``operation_s``: the fixed cost of one small operation (dispatch, launch).
    ``clock_skew_s``: the node's clock minus the control host's. ``product_bytes_per_s``: bytes of
    weights per second in matrix products with half precision, by rows of the input.
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
    """A pair of nodes over one network, measured with plain TCP.

    ``interfaces``: the ones of a and b that the packets really used, by the kernel's counters.
    ``latency_s``: one way, half of a round trip. ``by_size_s``: one way, by bytes of a message.
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
    """The communication library of vLLM's ranks between these nodes; times by bytes of a message.

    ``send_s``: point to point, from the first node to the second. ``launch_s``: the host's own time
    to launch an all-reduce, without waiting for it; empty on a CPU.
    """

    nodes: tuple[str, ...]
    backend: str
    interfaces: tuple[str, ...]
    all_reduce_s: dict[int, Spread]
    send_s: dict[int, Spread]
    launch_s: dict[int, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class StorageRates:
    """A node's model: rates of reading its largest file, and of loading tensors to the device.

    ``uncached``: whether the file was not in the page cache; otherwise both are memory rates.
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
    """A probe that failed, and why."""

    probe: str
    where: str
    reason: str


@dataclass(frozen=True)
class Before:
    """The cluster's state just before probing. ``busy``: used share of processors, by node.

    ``requests``: requests that the model was working on; None if it did not serve.
    """

    busy: dict[str, float] = field(default_factory=dict)
    requests: float | None = None


@dataclass(frozen=True)
class Probes:
    """All results of one round of probes. ``time``: ISO 8601, UTC.

    ``versions``: of the first node's packages; ``pairs_left_out``: the number of node pairs with a
    common network that were not measured.
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
