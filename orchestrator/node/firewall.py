"""The desired state of what a node lets in: a few ports for all, the rest for other nodes. Pure.

Ray, vLLM and its collectives listen on ports that Linux chooses, some without any authentication.
Towards the control node's boot files it lets out only what root sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.core.templating import render
from orchestrator.node.paths import ETC, SSH_PORT
from orchestrator.node.resources import Resource, Step, service

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

UNIT, RULES = "orchestrate-firewall.service", f"{ETC}/firewall.nft"
#: Succeeds where rules are in force: units whose ports it guards run it first, as root.
IN_FORCE = "/bin/sh -c '/usr/sbin/nft list table inet orchestrate_firewall >/dev/null'"


def firewall(profile: Profile, node: Node) -> Iterable[Resource]:
    """Its rules, and the unit that puts them in force, before anything listens."""
    serves = node.name == profile.server.name
    text = render(
        "firewall.nft",
        nodes=[link.address for each in profile.nodes for link in each.links.values()],
        public=public(profile, node),
        model=profile.serving.port if serves else None,
        boot={
            "address": profile.boot_link(profile.control).address,
            "port": profile.boot.http_port,
        },
        asker=profile.ray_address(profile.control),
    )
    files = {RULES: text, f"/etc/systemd/system/{UNIT}": render(UNIT, rules=RULES)}
    yield from service(Step.BASE, UNIT, files)


def public(profile: Profile, node: Node) -> list[int]:
    """TCP ports that are for everybody: what is there asks for a key, or has no secret."""
    if profile.is_control(node):
        return [SSH_PORT, profile.serving.endpoint_port, profile.boot.http_port]
    return [SSH_PORT, *([profile.boot.http_port] if profile.boot.peers else [])]
