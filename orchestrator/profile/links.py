"""Links that are no card of their own: VLANs and bonds.

A node makes them at its boot (provision/identity.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import Interface


class Vlan(Section):
    """A VLAN (802.1Q): the link's packets go tagged through another interface of the node."""

    id: int = Field(ge=1, le=4094, description="The VLAN's number, as the switch has it.")
    interface: Interface = Field(
        description="The interface that carries it: one of the node's other links, or a card "
        "without a link of its own."
    )


class Bond(Section):
    """Several cards as one interface."""

    interfaces: tuple[Interface, ...] = Field(
        min_length=1, description="The cards. None of them has a link of its own."
    )
    mode: Literal["802.3ad", "active-backup", "balance-xor"] = Field(
        default="802.3ad",
        description="`802.3ad`: LACP, with a switch that does it too. `balance-xor`: a static "
        "group of the switch. `active-backup`: one card at a time, any switch. In the first two "
        "a connection takes one cable, and several take all of them.",
    )
