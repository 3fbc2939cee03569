"""A layout's rates from probes, and changed rates for counterfactuals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

from orchestrator.core.errors import UserError
from orchestrator.performance.predict.engine import Engine, assumed
from orchestrator.performance.predict.layout import (
    Parallelism,
    Placement,
    Ranks,
    accelerators,
    network,
    place,
)
from orchestrator.performance.predict.links import Curve, LinkRate, curve
from orchestrator.performance.results.probe import (
    CollectiveRates,
    DeviceRates,
    LinkRates,
    Probes,
    Spread,
)
from orchestrator.profile.existing import Attached
from orchestrator.profile.model import Profile

#: torch's name of the device that computes synchronously; all others have a queue.
SYNCHRONOUS = "cpu"
#: The one on which vLLM captures graphs by default (CUDA, and ROCm under its name).
GRAPHS = "cuda"


@dataclass(frozen=True)
class Rates:
    """The rates of the slowest device and link of a layout's first copy; they stand for all copies.

    ``flops_per_s``: by torch's name of the number format. ``tensor_nodes``: the number of nodes of
    a tensor-parallel group. ``borders``: stage borders that are between nodes. ``products``: rows
    of the input -> bytes of weights per second of dense matrix products, ascending; empty if not
    measured. ``link``: None if the layout needs none. ``all_reduce``, ``send``: measured curves;
    None: the formula is used. ``notes``: what was not measured, and what replaces it.
    """

    memory_bytes_per_s: float
    flops_per_s: dict[str, float]
    operation_s: float
    memory_bytes: int
    synchronous: bool = False
    products: tuple[tuple[float, float], ...] = ()
    tensor_nodes: int = 1
    borders: int = 0
    link: LinkRate | None = None
    all_reduce: Curve | None = None
    send: Curve | None = None
    engine: Engine = field(default_factory=Engine)
    notes: tuple[str, ...] = ()

    def flops(self, dtype: str) -> float:
        """The matrix rate of a number format; if it was not measured, the lowest other rate."""
        return self.flops_per_s.get(dtype) or min(self.flops_per_s.values())

    def product_s(self, weight_bytes: float, rows: float) -> float | None:
        """Measured seconds of products with so many bytes of weights; None if not measured.

        Seconds per byte are interpolated linearly between the measured rows. Above the last one
        they grow in proportion to the rows.
        """
        if not self.products:
            return None
        points = [(count, 1 / rate) for count, rate in self.products]
        most, longest = points[-1]
        if rows >= most:
            return weight_bytes * longest * rows / most
        if rows <= points[0][0]:
            return weight_bytes * points[0][1]
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(points) if rows <= pair[1][0])
        return weight_bytes * (y0 + (rows - x0) * (y1 - y0) / (x1 - x0))


@dataclass(frozen=True)
class Machines:
    """Probed machines. ``nodes``: the node of each accelerator; ``network``: the ranks' one."""

    nodes: Ranks
    network: str
    probes: Probes


def machines(probes: Probes, profile: Profile | Attached) -> Machines:
    return Machines(accelerators(profile), network(profile), probes)


def rates(probes: Probes, profile: Profile | Attached, layout: Parallelism) -> Rates:
    """The rates of a layout on the profile's accelerators, as ``rates_on``."""
    return rates_on(machines(probes, profile), layout, eager=is_eager(profile))


def is_eager(profile: Profile | Attached) -> bool:
    """Whether the engine launches each operation: no graphs."""
    args = {name.replace("_", "-"): value for name, value in profile.serving.args.items()}
    return bool(args.get("enforce-eager", False))


def rates_on(there: Machines, layout: Parallelism, *, eager: bool) -> Rates:
    """The rates of a layout on machines.

    Raises UserError if no device was probed, or the layout needs a link and neither a link nor a
    collective was probed.
    """
    copies = place(there.nodes, layout)
    notes: list[str] = []
    names = dict.fromkeys(node for copy in copies for node in copy.nodes)
    found = of_devices(_devices(there.probes, tuple(names), notes))
    graphs = all(each.device == GRAPHS for each in there.probes.devices)
    constants = assumed(synchronous=found.synchronous, eager=eager or not graphs)
    found = _linked(replace(found, engine=constants), there, copies[0], notes)
    return replace(found, notes=tuple(notes))


def of_devices(devices: Sequence[DeviceRates]) -> Rates:
    """The rates of the slowest of the devices (at least one), without a link."""
    return Rates(
        memory_bytes_per_s=_slowest(devices, lambda each: each.memory_bytes_per_s),
        flops_per_s={
            dtype: min(
                each.matrix_flops_per_s[dtype].median
                for each in devices
                if dtype in each.matrix_flops_per_s
            )
            for dtype in sorted({name for each in devices for name in each.matrix_flops_per_s})
        },
        operation_s=max(each.operation_s.median for each in devices),
        memory_bytes=min(each.memory_total_bytes for each in devices),
        synchronous=any(each.device == SYNCHRONOUS for each in devices),
        products=_products(devices),
    )


def what_if(
    rates: Rates,
    *,
    link_bytes_per_s: float | None = None,
    link_latency_s: float | None = None,
    latency_factor: float = 1.0,
    memory_factor: float = 1.0,
    host_factor: float = 1.0,
) -> Rates:
    """The rates with another link, memory or host.

    In measured collectives only the link's share changes; the library's share stays.
    """
    link = rates.link and LinkRate(
        (link_latency_s or rates.link.latency_s) * latency_factor,
        link_bytes_per_s or rates.link.bytes_per_s,
    )
    engine = replace(
        rates.engine,
        step_s=rates.engine.step_s * host_factor,
        per_sequence_s=rates.engine.per_sequence_s * host_factor,
        request_s=rates.engine.request_s * host_factor,
    )
    return replace(
        rates,
        link=link,
        memory_bytes_per_s=rates.memory_bytes_per_s * memory_factor,
        operation_s=rates.operation_s * host_factor,
        engine=engine,
    )


def _devices(probes: Probes, nodes: Sequence[str], notes: list[str]) -> list[DeviceRates]:
    known = {device.node: device for device in probes.devices if device.matrix_flops_per_s}
    if not known:
        raise UserError("no device was measured", "Run: orchestrate probe")
    missing = [node for node in nodes if node not in known]
    if missing:
        notes.append(
            f"not measured: {', '.join(missing)}; assumed as slow as the slowest measured node"
        )
    return [known[node] for node in nodes if node in known] or list(known.values())


def _products(devices: Sequence[DeviceRates]) -> tuple[tuple[float, float], ...]:
    """The slowest device's rate for each number of rows that all devices have."""
    common = set.intersection(*(set(each.product_bytes_per_s) for each in devices))
    return tuple(
        (float(rows), min(each.product_bytes_per_s[rows].median for each in devices))
        for rows in sorted(common)
    )


def _slowest(devices: Sequence[DeviceRates], of: Callable[[DeviceRates], Spread]) -> float:
    return min(of(each).median for each in devices)


def _linked(found: Rates, there: Machines, copy: Placement, notes: list[str]) -> Rates:
    """The rates with the link between a copy's nodes. Messages within a node count as free."""
    ranks = max(len(stage) for stage in copy.stages)
    if ranks > len(copy.tensor_nodes):
        notes.append("messages between accelerators of one node are not counted")
    if len(copy.nodes) == 1:
        return found
    link = _link(there.probes, there.network, copy.nodes)
    group = _collective(there.probes.collectives, copy.tensor_nodes)
    if link is None and group is None:
        raise UserError(
            f"no link between {', '.join(copy.nodes)} was measured on {there.network}",
            "Run: orchestrate probe",
        )
    if link is None:
        assert group is not None
        notes.append("no link was measured: using the collective's latency and bandwidth")
        link = link_of(group)
    if group is None:
        notes.append("no collective was measured: using the ring formula, a lower bound")
    return replace(
        found,
        tensor_nodes=len(copy.tensor_nodes),
        borders=copy.borders,
        link=link,
        all_reduce=curve(len(group.nodes), group.all_reduce_s, link) if group else None,
        send=curve(2, group.send_s, link) if group else None,
    )


def _link(probes: Probes, network: str, nodes: Sequence[str]) -> LinkRate | None:
    """The largest latency and lowest bandwidth of the links between the nodes."""
    pairs = {frozenset(pair) for pair in combinations(nodes, 2)}
    found: list[LinkRates] = [
        each
        for each in probes.links
        if each.network == network and frozenset((each.a, each.b)) in pairs
    ]
    if not found:
        return None
    return LinkRate(
        max(each.latency_s.median for each in found), min(each.bytes_per_s.median for each in found)
    )


def _collective(
    measured: Sequence[CollectiveRates], nodes: Sequence[str]
) -> CollectiveRates | None:
    """The measurement between these nodes, else the smallest that includes them, else any."""
    wanted = set(nodes)
    usable = [each for each in measured if len(each.nodes) > 1 and (each.all_reduce_s)]
    return min(
        usable,
        key=lambda each: (not wanted <= set(each.nodes), len(each.nodes), each.nodes),
        default=None,
    )


def link_of(group: CollectiveRates) -> LinkRate:
    """The link with which the ring's formula gives the measured times."""
    sizes = sorted(group.all_reduce_s)
    least, most = (group.all_reduce_s[size].median for size in (sizes[0], sizes[-1]))
    ranks = len(group.nodes)
    moved = 2 * (ranks - 1) / ranks * (sizes[-1] - sizes[0])
    rate = moved / (most - least) if most > least and moved else float("inf")
    return LinkRate(least / (2 * (ranks - 1)), rate)
