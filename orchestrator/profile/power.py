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
    """How to switch real machines (`machines: real`) on and off; other drivers ignore it.

    A machine that answers over SSH is always shut down in order first.
    """

    driver: Literal["wol", "command", "manual"] = Field(
        default="manual",
        description="`wol`: Wake-on-LAN from the control node's card on the boot network. "
        "`command`: your own commands (a smart plug, AMT, IPMI). `manual`: `up` asks a "
        "person.",
    )
    on: Argv | None = Field(
        default=None,
        description="For `command`: the command and its arguments that switch a machine on. It must"
        " succeed for a machine that is already on. Placeholders: `{node}`, `{index}`, "
        "`{mac}`, `{address}`, `{interface}`; the last three are of the node's link on "
        "the boot network. It runs in the profile's directory, without a shell.",
    )
    off: Argv | None = Field(
        default=None,
        description="For `command`: the command that cuts the power, once the machine has shut down"
        " over SSH or does not answer. Default: a machine that does not answer stays "
        "on.",
    )
    status: Argv | None = Field(
        default=None,
        description="For `command`: the command that reports whether a machine has power: exit code"
        " 0 for yes, 1 for no. Default: a machine is on if it answers on the network.",
    )
    status_says: Line | None = Field(
        default=None,
        description="For `command`: text that `status` prints if a machine has power. The exit code"
        " must then be 0 in either case.",
    )
    network: Literal["host", "cluster"] = Field(
        default="host",
        description="For `command`: the network that the commands use. `host`: this machine's own "
        "networks. `cluster`: the control node's, for a controller that shares the "
        "node's cable.",
    )
    command_timeout_s: float = Field(
        default=30, gt=0, le=3600, description="For `command`: timeout of a command, in seconds."
    )
    boot_timeout_s: float = Field(
        default=900,
        gt=0,
        le=86400,
        description="Timeout from power-on (with `manual`: from the request) to SSH, in seconds.",
    )
    off_timeout_s: float = Field(
        default=90,
        gt=0,
        le=3600,
        description="Timeout of a clean shutdown, in seconds.",
    )
