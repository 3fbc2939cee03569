"""Machines that are not there: other cards from files, more nodes, another link."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from orchestrator.core.document import load, read_yaml
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import nearest
from orchestrator.performance.predict.links import LinkRate
from orchestrator.performance.predict.rates import Machines
from orchestrator.performance.results.probe import DeviceRates, LinkRates, Probes, Spread

#: Devices that come with orchestrate.
SHIPPED = files("orchestrator") / "devices"
#: Bits per second by unit, and what TCP carries of them: the rest is headers.
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
CARRIED = 0.94
SECONDS = {"us": 1e-6, "ms": 1e-3}
LINK = re.compile(r"([0-9.]+)(kbit|mbit|gbit)(?::([0-9.]+)(us|ms))?", re.IGNORECASE)
#: One way through a switch, where no latency is given: usual for Ethernet.
LATENCY_S = 30e-6


class DeviceFile(BaseModel):
    """A device as it is written down by hand: what the probe measures, and where it is from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["measured", "published"]
    source: str
    device: str
    memory_bytes_per_s: PositiveFloat
    matrix_flops_per_s: dict[str, PositiveFloat]
    operation_s: PositiveFloat
    memory_total_bytes: PositiveInt
    product_bytes_per_s: dict[int, PositiveFloat] = {}

    def rates(self) -> DeviceRates:
        return DeviceRates(
            node="",
            device=self.device,
            name=self.name,
            threads=0,
            memory_bytes_per_s=_once(self.memory_bytes_per_s),
            matrix_flops_per_s={k: _once(v) for k, v in self.matrix_flops_per_s.items()},
            operation_s=_once(self.operation_s),
            clock_skew_s=0.0,
            memory_total_bytes=self.memory_total_bytes,
            product_bytes_per_s={k: _once(v) for k, v in self.product_bytes_per_s.items()},
        )


def _once(value: float) -> Spread:
    return Spread(value, value, value, 1)


def shipped() -> list[str]:
    """The names of the devices that come with orchestrate."""
    names = (each.name for each in SHIPPED.iterdir())
    return sorted(name.removesuffix(".yml") for name in names if name.endswith(".yml"))


def device(named: str) -> tuple[DeviceRates, str]:
    """A device by its name or file, and where its figures are from. A file of 'probe' holds some,
    too: its first counts. Raises BadInput."""
    path = Path(named)
    if not path.is_file():
        if named not in shipped():
            raise BadInput(f"--device {named}: no such device or file", nearest(named, shipped()))
        path = Path(str(SHIPPED / f"{named}.yml"))
    document = read_yaml(path)
    if "devices" not in document:
        found = load(DeviceFile, path, "Keys: docs/how-to/compare-hardware.md")
        return found.rates(), f"{found.kind}: {' '.join(found.source.split())}"
    try:
        probes = TypeAdapter(Probes).validate_python(document)
        return probes.devices[0], f"measured: {path}, {probes.time}"
    except (ValidationError, IndexError):
        raise BadInput(f"{path}: it does not hold probes with a device") from None


def link(text: str) -> LinkRate:
    """A link like ``10Gbit:20us``; without a latency, a switch's. Raises BadInput."""
    match = LINK.fullmatch(text)
    try:
        bits = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
        latency_s = float(match[3]) * SECONDS[match[4].lower()] if match and match[3] else LATENCY_S
    except ValueError:
        bits = 0.0
    if not bits or not latency_s:
        raise BadInput(f"--link {text}: not a link", "Bandwidth and latency, like 10Gbit:20us")
    return LinkRate(latency_s, bits / 8 * CARRIED)


def changed(
    machines: Machines | None, count: int | None, devices: Sequence[DeviceRates], wanted: bool
) -> Machines:
    """Machines with other cards or another number of nodes. One device is on all nodes; of
    several, each is on one. New nodes are like the first, and linked like the others. ``wanted``:
    a link is given, so that pairs need none of their own. Raises BadInput."""
    there = tuple(dict.fromkeys(machines.nodes)) if machines else ()
    nodes = count or (len(devices) if len(devices) > 1 else len(there) or 1)
    if len(devices) > 1 and len(devices) != nodes:
        raise BadInput(f"{len(devices)} devices for {nodes} nodes", "One, or one for each node.")
    more = (f"node{index}" for index in range(nodes * 2))
    names = (*there, *(name for name in more if name not in there))[:nodes]
    each = machines.nodes.count(there[0]) if machines else 1
    known = {d.node: d for d in machines.probes.devices} if machines else {}
    start = known.get(there[0]) if there else None
    found = []
    for index, name in enumerate(names):
        there_now = known.get(name, start)
        own = devices[min(index, len(devices) - 1)] if devices else there_now
        if own is None:
            continue
        if there_now is not None and there_now.device == own.device:
            # Launching is the host's work: another card does not change it.
            own = replace(own, operation_s=there_now.operation_s)
        found.append(replace(own, node=name))
    per = {
        name: machines.nodes.count(name) if machines and name in there else each for name in names
    }
    probes = machines.probes if machines else Probes("", "", "", {}, "")
    network = machines.network if machines else "lan"
    links = probes.links
    if nodes > 1 and not (wanted or links or probes.collectives):
        raise BadInput(f"no link between {nodes} nodes is known", "Give one: --link 10Gbit:20us")
    if wanted and not any(one.network == network for one in links):
        links = tuple(_any_link(a, b, network) for a, b in combinations(names, 2))
    return Machines(
        tuple(name for name in names for _ in range(per[name])),
        network,
        replace(probes, devices=tuple(found), links=links),
    )


def _any_link(a: str, b: str, network: str) -> LinkRates:
    """A pair that is linked; its rates are put in afterwards."""
    return LinkRates(
        a, b, network, ("", ""), (None, None), _once(LATENCY_S), _once(UNITS["gbit"] / 8), {}
    )
