"""What a profile says about power: how a real machine is switched on and off."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import Line

#: A placeholder of a command's words.
PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
#: What a placeholder can name: the node's name, its place in `compute_nodes`, its boot link's.
KEYS = ("node", "index", "mac", "address", "interface")
#: The keys that only the driver `command` reads.
OF_COMMAND = ("on", "off", "status", "status_says", "network", "command_timeout_s")

Argv = tuple[Line, ...]


class Power(Section):
    """How real machines (`machines: real`) are switched on and off; simulated ones do not read it.

    A machine that answers over SSH is always shut down in order first.
    """

    driver: Literal["wol", "command", "manual"] = Field(
        default="manual",
        description="`wol`: by Wake-on-LAN, from the control node's card on the boot network. "
        "`command`: by commands of yours (a smart plug, AMT, IPMI). `manual`: by a person, who is "
        "told to.",
    )
    on: Argv | None = Field(
        default=None,
        description="Of `command`: the command and its arguments that switch a machine on, also "
        "one that is on already. In each word `{node}`, `{index}`, `{mac}`, `{address}` and "
        "`{interface}` become those of the node, the last three of its link on the boot network. "
        "It runs in the profile's directory, without a shell.",
    )
    off: Argv | None = Field(
        default=None,
        description="Of `command`: what cuts the power, once the machine was shut down over SSH "
        "or does not answer. Not set: a machine that does not answer stays on.",
    )
    status: Argv | None = Field(
        default=None,
        description="Of `command`: what tells whether a machine has power: exit code 0 for yes, 1 "
        "for no. Not set: a machine is on when it answers on the network.",
    )
    status_says: Line | None = Field(
        default=None,
        description="Of `command`: text in what `status` prints when a machine has power. With "
        "it the exit code has to be 0 in any case.",
    )
    network: Literal["host", "cluster"] = Field(
        default="host",
        description="Of `command`: where the commands' connections go. `host`: by this machine's "
        "own networks; `cluster`: by the control node's, as for a controller that shares the "
        "node's cable.",
    )
    command_timeout_s: float = Field(
        default=30, gt=0, le=3600, description="Of `command`: seconds that a command may take."
    )
    boot_timeout_s: float = Field(
        default=900,
        gt=0,
        le=86400,
        description="Seconds from power (with `manual`: from the request to the person) to SSH.",
    )
    off_timeout_s: float = Field(
        default=90,
        gt=0,
        le=3600,
        description="Seconds that a machine may take to shut down in order.",
    )
