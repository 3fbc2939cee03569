"""The desired state of what a node lets in: a few ports for all, the rest for other nodes. Pure.

Ray, vLLM and its collectives listen on ports that Linux chooses, some without any authentication.
Towards the control node's boot files it lets out only what root sends.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.core.templating import render
from orchestrator.node.paths import ETC, SSH_PORT
from orchestrator.node.resources import Resource, Step, service
from orchestrator.profile import Node, Profile

UNIT, RULES = "orchestrate-firewall.service", f"{ETC}/firewall.nft"
#: Connections of one address to a public port, half-open ones too; and to the endpoint, where many
#: clients may be behind one router.
CONNECTIONS, CLIENTS = 100, 1000
#: Succeeds where rules are in force: units whose ports it guards run it first, as root.
IN_FORCE = "/bin/sh -c '/usr/sbin/nft list table inet orchestrate_firewall >/dev/null'"


def firewall(profile: Profile, node: Node, *, serves: bool) -> Iterable[Resource]:
    """Its rules, and the unit that puts them in force, before anything listens.

    ``serves``: a server of vLLM's is on the node.
    """
    text = render(
        "firewall.nft",
        nodes=[link.address for each in profile.nodes for link in each.links.values()],
        public=public(profile, node),
        boots=_macs(profile) if profile.is_control(node) and profile.boot.dhcp != "off" else [],
        model=profile.serving.port if serves else None,
        boot={
            "address": profile.boot_link(profile.control).address,
            "port": profile.boot.http_port,
        },
        asker=profile.ray_address(profile.control),
    )
    files = {RULES: text, f"/etc/systemd/system/{UNIT}": render(UNIT, rules=RULES)}
    yield from service(Step.BASE, UNIT, files)


def public(profile: Profile, node: Node) -> dict[int, int]:
    """TCP ports that are for everybody: what is there asks for a key, or has no secret.

    With each, how many connections one address may have.
    """
    files = {profile.boot.http_port: CONNECTIONS}
    if profile.is_control(node):
        return {SSH_PORT: CONNECTIONS, profile.serving.endpoint_port: CLIENTS, **files}
    return {SSH_PORT: CONNECTIONS, **(files if profile.boot.peers else {})}


def _macs(profile: Profile) -> list[str]:
    """The hardware addresses of the machines that boot."""
    return [mac for node in profile.compute_nodes if (mac := profile.boot_link(node).mac)]
