"""What must agree between the keys of a profile.

A check is a generator of (where, "what is wrong; what is allowed"). It is called with the sections
that its parameters name, and only if those are right in themselves: so a mistake in ``serving``
does not hide one in ``compute_nodes``.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path
from typing import Any

from orchestrator.core import paths
from orchestrator.core.nearest import nearest
from orchestrator.core.source import Loc
from orchestrator.profile import power as power_keys
from orchestrator.profile.bench import workloads_are_possible
from orchestrator.profile.hardware import Hardware
from orchestrator.profile.link_checks import of_cards, vlans_fit_into_packets
from orchestrator.profile.model import (
    Boot,
    Link,
    Network,
    Node,
    Ray,
    Users,
)
from orchestrator.profile.power import Power
from orchestrator.profile.serving import Serving
from orchestrator.profile.serving_checks import (
    caches_have_their_own_variables,
    copies_divide_the_nodes,
    layout_has_a_workload,
    models_have_names_of_their_own,
    models_have_nodes_of_their_own,
    placeholders_are_known,
)

Found = Iterator[tuple[Loc, str]]
Check = Callable[..., Found]


def check(sections: Mapping[str, Any], checks: Iterable[Check]) -> Found:
    """Run every check whose sections are there. ``path`` counts as one."""
    for one in checks:
        needed = inspect.signature(one).parameters
        if needed.keys() <= sections.keys():
            yield from one(**{name: sections[name] for name in needed})


def name_is_the_files(name: str, path: Path) -> Found:
    """Two profiles of one name would share one cluster's state."""
    shelved = path.absolute().parent == paths.checkout() / "profiles"
    if shelved and name != path.stem:
        yield ("name",), f"'{name}' is not the file's name; allowed here: {path.stem}"


def networks_are_apart(networks: dict[str, Network]) -> Found:
    for (first, one), (second, other) in combinations(networks.items(), 2):
        if one.subnet.overlaps(other.subnet):
            text = f"{other.subnet} overlaps {one.subnet} of '{first}'; give each its own addresses"
            yield ("networks", second, "subnet"), text


def gateways_are_in_their_networks(
    networks: dict[str, Network], control: Node, compute_nodes: tuple[Node, ...]
) -> Found:
    owners = {link.address: node.name for _, node, _, link in _links(control, compute_nodes)}
    for name, network in networks.items():
        where = ("networks", name, "gateway")
        if network.gateway and network.gateway not in network.subnet:
            yield where, f"{network.gateway} is not in {network.subnet}; allowed: an address of it"
        elif network.gateway in owners:
            text = f"{network.gateway} is the address of {owners[network.gateway]}"
            yield where, f"{text}; allowed: the router's address"


def named_networks_exist(networks: dict[str, Network], boot: Boot, ray: Ray) -> Found:
    for section, network in (("boot", boot.network), ("ray", ray.network)):
        if network not in networks:
            yield (
                (section, "network"),
                f"there is no network '{network}'; {nearest(network, networks)}",
            )


def links_are_in_their_networks(
    networks: dict[str, Network], control: Node, compute_nodes: tuple[Node, ...]
) -> Found:
    for loc, _, name, link in _links(control, compute_nodes):
        if name not in networks:
            yield loc, f"there is no network '{name}'; {nearest(name, networks)}"
            continue
        subnet = networks[name].subnet
        first, last = (subnet[0], subnet[1]) if is_pair(subnet) else (subnet[1], subnet[-2])
        allowed = f"allowed: {first} to {last}, of networks.{name}.subnet"
        address = (*loc, "address")
        if link.address not in subnet:
            yield address, f"{link.address} is not in {subnet}; {allowed}"
        elif is_pair(subnet):
            continue
        elif link.address == subnet.network_address:
            yield address, f"{link.address} is the network's own address; {allowed}"
        elif link.address == subnet.broadcast_address:
            yield address, f"{link.address} is the network's broadcast address; {allowed}"


def is_pair(subnet: IPv4Network) -> bool:
    """Of two addresses both are nodes' (RFC 3021): there is neither a network's nor a broadcast."""
    return subnet.prefixlen == 31


def firmware_has_room(networks: dict[str, Network], boot: Boot) -> Found:
    """DHCP and Wake-on-LAN need a broadcast address."""
    network = networks.get(boot.network)
    if network and is_pair(network.subnet):
        text = f"{network.subnet} has no broadcast address, which firmware needs"
        yield ("networks", boot.network, "subnet"), f"{text}; allowed: at most 30 bits"


def dns_is_reachable(networks: dict[str, Network], boot: Boot) -> Found:
    for index, server in enumerate(boot.dns):
        if boot.nat is None and not any(server in each.subnet for each in networks.values()):
            text = f"{server} is in no network of the nodes, and without nat they have no way there"
            yield ("boot", "dns", index), f"{text}; name boot.nat, or another server"


def nodes_have_their_links(
    networks: dict[str, Network],
    boot: Boot,
    ray: Ray,
    control: Node,
    compute_nodes: tuple[Node, ...],
) -> Found:
    for network in dict.fromkeys((boot.network, ray.network)):
        users = [key for key, of in (("boot", boot), ("ray", ray)) if of.network == network]
        named = " and ".join(f"{key}.network" for key in users)
        for loc, node in _nodes(control, compute_nodes):
            if network in networks and network not in node.links:
                yield (*loc, "links"), f"{node.name} has no link on '{network}'; needed for {named}"
    for loc, node in _nodes(control, compute_nodes)[1:]:
        link = node.links.get(boot.network)
        if link and not link.mac:
            text = "is missing; needed for its DHCP lease on boot.network"
            yield (*loc, "links", boot.network, "mac"), text


def carried_networks_are_between_two(
    networks: dict[str, Network], control: Node, compute_nodes: tuple[Node, ...]
) -> Found:
    """Routes come from it: each end needs an address on both, and a pair has one way only."""
    pairs: dict[tuple[str, ...], str] = {}
    for name, network in networks.items():
        where, carried = ("networks", name, "carries"), network.carries
        if carried is None:
            continue
        ends = [node for _, node in _nodes(control, compute_nodes) if name in node.links]
        missing = [node.name for node in ends if carried not in node.links]
        pair = (carried, *sorted(node.name for node in ends))
        if carried not in networks:
            yield where, f"there is no network '{carried}'; {nearest(carried, networks)}"
        elif carried == name or networks[carried].carries:
            allowed = [other for other, one in networks.items() if not one.carries]
            text = f"'{carried}' cannot be carried; allowed: {', '.join(allowed) or 'none'}"
            yield where, text
        elif len(ends) != 2:
            listed = ", ".join(node.name for node in ends) or "no node"
            yield where, f"only two nodes can have a link on such a network; here: {listed}"
        elif missing:
            yield where, f"{missing[0]} has no link on '{carried}'; both ends need one"
        elif pair in pairs:
            yield where, f"'{pairs[pair]}' carries it between the same nodes; keep one"
        pairs.setdefault(pair, name)


def hardware_is_known(
    hardware: dict[str, Hardware],
    networks: dict[str, Network],
    control: Node,
    compute_nodes: tuple[Node, ...],
) -> Found:
    for loc, node in _nodes(control, compute_nodes):
        if node.hardware and node.hardware not in hardware:
            text = f"there is no hardware.{node.hardware}; {nearest(node.hardware, hardware)}"
            yield (*loc, "hardware"), text
    for name, one in hardware.items():
        for network in one.links:
            if network not in networks:
                text = f"there is no network '{network}'; {nearest(network, networks)}"
                yield ("hardware", name, "links", network), text
        devices = [device.name for device in one.pci]
        for index, sign in enumerate(one.signs):
            loc = ("hardware", name, "signs", index, "device")
            if sign.device and sign.device not in devices:
                yield (
                    loc,
                    f"there is no device '{sign.device}' in pci; {nearest(sign.device, devices)}",
                )
            elif sign.device and sign.file:
                yield loc, "is only for lines of the kernel's log, without file; leave it out"
        repeated = Counter([*(each.name for each in one.signs), *(c.name for c in one.commands)])
        for title, count in repeated.items():
            if count > 1:
                text = f"'{title}' is the name of {count} checks; names must be unique"
                yield ("hardware", name), text


def nodes_differ(control: Node, compute_nodes: tuple[Node, ...]) -> Found:
    nodes = _nodes(control, compute_nodes)
    names = [((*loc, "name"), node.host_name, node.name) for loc, node in nodes]
    links = _links(control, compute_nodes)
    macs = [((*loc, "mac"), link.mac, node.name) for loc, node, _, link in links if link.mac]
    addresses = [((*loc, "address"), str(link.address), node.name) for loc, node, _, link in links]
    yield from _repeated(names, "is also the name of another node; names must be unique")
    yield from _repeated(macs, "is also the hardware address of {}; addresses must be unique")
    yield from _repeated(addresses, "is also the address of {}; addresses must be unique")
    for loc, node in nodes:
        interfaces = [
            ((*loc, "links", name, "interface"), link.interface, name)
            for name, link in node.links.items()
        ]
        yield from _repeated(
            interfaces, "is also the link on '{}'; each link needs its own interface"
        )


def accelerators_are_on_compute_nodes(control: Node, compute_nodes: tuple[Node, ...]) -> Found:
    if control.accelerators:
        text = "the control node only holds Ray's head; allowed: 0"
        yield ("control", "accelerators"), text
    if not sum(node.accelerators for node in compute_nodes):
        text = "no compute node has an accelerator; set accelerators to 1 or more on one"
        yield ("compute_nodes",), text


def accounts_agree(users: Users) -> Found:
    accounts = [(("users", "accounts", index), one) for index, one in enumerate(users.accounts)]
    names = [((*loc, "name"), one.name, one.name) for loc, one in accounts]
    uids = [((*loc, "uid"), str(one.uid), one.name) for loc, one in accounts]
    yield from _repeated(names, "is also the name of another account; names must be unique")
    yield from _repeated(uids, "is also the uid of {}; uids must be unique")
    if users.service not in {one.name for one in users.accounts}:
        known = [one.name for one in users.accounts]
        text = f"'{users.service}' is not in users.accounts; {nearest(users.service, known)}"
        yield ("users", "service"), text


def loaders_are_for_compute_nodes(control: Node) -> Found:
    if control.loader:
        yield ("control", "loader"), "the control node does not boot from the network; leave it out"


def loaders_are_served(boot: Boot, compute_nodes: tuple[Node, ...]) -> Found:
    for index, node in enumerate(compute_nodes):
        if node.loader and boot.secure:
            text = "has no effect with boot.secure, which decides what nodes load; leave it out"
            yield ("compute_nodes", index, "loader"), text


def power_fits_its_driver(power: Power, control: Node, compute_nodes: tuple[Node, ...]) -> Found:
    if control.power:
        text = "the control node is a container on this machine; leave it out"
        yield ("control", "power"), text
    yield from _power(("power",), power)
    for index, node in enumerate(compute_nodes):
        if node.power:
            yield from _power(("compute_nodes", index, "power"), node.power)


def _power(loc: Loc, power: Power) -> Found:
    commands = power_keys.OF_COMMAND if power.driver != "command" else ()
    for key in commands:
        if getattr(power, key) == Power.model_fields[key].default:
            continue
        yield (*loc, key), f"has no effect with driver: {power.driver}; leave it out"
    if power.driver != "command":
        return
    if power.on is None:
        yield (*loc, "on"), "is missing; needed for driver: command"
    if power.status_says and not power.status:
        yield (*loc, "status_says"), "has no effect without status; add that, or leave it out"
    for key in ("on", "off", "status"):
        argv: tuple[str, ...] | None = getattr(power, key)
        if argv == ():
            yield (*loc, key), "is empty; allowed: a command and its arguments, a list"
        for index, word in enumerate(argv or ()):
            for name in power_keys.PLACEHOLDER.findall(word):
                if name not in power_keys.KEYS:
                    allowed = ", ".join(f"{{{each}}}" for each in power_keys.KEYS)
                    yield (
                        (*loc, key, index),
                        f"'{{{name}}}' is not a placeholder; allowed: {allowed}",
                    )


def cards_are_shared_by_the_control_node(compute_nodes: tuple[Node, ...]) -> Found:
    for index, node in enumerate(compute_nodes):
        for network, link in node.links.items():
            if link.shared:
                where = ("compute_nodes", index, "links", network, "shared")
                yield where, "is only for links of the control node; leave it out"


def nat_is_another_network(networks: dict[str, Network], boot: Boot, control: Node) -> Found:
    where = ("boot", "nat")
    if boot.nat is None:
        return
    if boot.nat not in networks:
        yield where, f"there is no network '{boot.nat}'; {nearest(boot.nat, networks)}"
    elif boot.nat == boot.network:
        yield where, f"'{boot.nat}' is the boot network itself; name the network that leads outside"
    elif boot.nat not in control.links:
        links = [name for name in control.links if name != boot.network]
        text = f"{control.name} has no link on '{boot.nat}'; allowed: {', '.join(links) or 'none'}"
        yield where, text


def ports_differ(boot: Boot, ray: Ray, serving: Serving) -> Found:
    """On the control node; with ``boot.peers`` a compute node has two."""
    ports: list[tuple[Loc, int]] = [
        (("boot", "http_port"), boot.http_port),
        (("ray", "port"), ray.port),
        (("ray", "dashboard_port"), ray.dashboard_port),
        (("serving", "endpoint_port"), serving.endpoint_port),
    ]
    named = [(loc, str(port), ".".join(map(str, loc))) for loc, port in ports]
    yield from _repeated(named, "is also {}, on the control node too; ports must be unique")
    if boot.peers and boot.http_port == serving.port:
        text = f"{serving.port} is also boot.http_port, with boot.peers on compute nodes too"
        yield ("serving", "port"), f"{text}; ports must be unique"
    taken = {serving.port: "serving.port"}
    taken |= {boot.http_port: "boot.http_port"} if boot.peers else {}
    if serving.executor == "mp" and (other := taken.get(serving.meeting_port)):
        text = f"{serving.meeting_port} is also {other}, on compute nodes too"
        yield ("serving", "meeting_port"), f"{text}; ports must be unique"


CHECKS: tuple[Check, ...] = (
    name_is_the_files,
    networks_are_apart,
    gateways_are_in_their_networks,
    named_networks_exist,
    links_are_in_their_networks,
    firmware_has_room,
    dns_is_reachable,
    nodes_have_their_links,
    of_cards,
    vlans_fit_into_packets,
    carried_networks_are_between_two,
    hardware_is_known,
    nodes_differ,
    accelerators_are_on_compute_nodes,
    accounts_agree,
    loaders_are_for_compute_nodes,
    loaders_are_served,
    power_fits_its_driver,
    cards_are_shared_by_the_control_node,
    nat_is_another_network,
    ports_differ,
    models_have_names_of_their_own,
    models_have_nodes_of_their_own,
    copies_divide_the_nodes,
    placeholders_are_known,
    caches_have_their_own_variables,
    workloads_are_possible,
    layout_has_a_workload,
)


def _nodes(control: Node, compute_nodes: tuple[Node, ...]) -> list[tuple[Loc, Node]]:
    compute = [(("compute_nodes", index), node) for index, node in enumerate(compute_nodes)]
    return [(("control",), control), *compute]


def _links(control: Node, compute_nodes: tuple[Node, ...]) -> list[tuple[Loc, Node, str, Link]]:
    return [
        ((*loc, "links", name), node, name, link)
        for loc, node in _nodes(control, compute_nodes)
        for name, link in node.links.items()
    ]


def _repeated(values: Iterable[tuple[Loc, str, str]], text: str) -> Found:
    """Values that an earlier one of (where, value, owner) has; ``{}`` in the text is its owner."""
    owners: dict[str, str] = {}
    for loc, value, owner in values:
        if value in owners:
            yield loc, f"{value} {text.format(owners[value])}"
        owners.setdefault(value, owner)
