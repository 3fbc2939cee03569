"""What a machine has to have, as data: ``orchestrate verify`` looks, and knows no machine by name.

The judging is in ``verify.hardware``, the looking in ``verify.probe_hardware``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import (
    AbsolutePath,
    BarNumber,
    Line,
    ModuleName,
    Name,
    PciId,
    Regex,
    Size,
)

ADVICE = "Advice shown if the check fails."


class PciDevice(Section):
    """A PCI device. Its presence, its driver and each BAR are separate checks."""

    name: Line = Field(description="The device's name, shown in checks.")
    id: PciId = Field(description="VENDOR:DEVICE in hexadecimal, as `lspci -n` prints it.")
    count: int = Field(default=1, ge=1, le=64, description="The number of such devices.")
    driver: ModuleName = Field(description="The kernel driver that each device must be bound to.")
    advice: Line = Field(description="Advice shown if a device has another driver, or none.")
    bars: dict[BarNumber, Size] = Field(
        default={},
        description="Minimum size of its memory regions (BARs), by number. A smaller region means "
        "that resizable BAR is off.",
    )


class Sign(Section):
    """A line that must (or must not) be in a file, or in the kernel's log of this boot."""

    name: Line = Field(description="The check's name.")
    file: AbsolutePath | None = Field(
        default=None,
        description="The file to search; `*` in the path matches any name. Default: the kernel's "
        "log.",
    )
    matches: Regex = Field(description="A regular expression that matches a part of the line.")
    wanted: bool = Field(default=True, description="`false`: such a line must not exist.")
    advice: Line = Field(description=ADVICE)


class LinkSpeed(Section):
    """The minimum speed of a link. Without a speed, it only has to be up."""

    ethernet: int | None = Field(
        default=None,
        ge=10,
        le=800_000,
        description="Minimum speed in Mb/s, as the card reports it.",
    )
    usb4: int | None = Field(
        default=None,
        ge=1,
        le=240,
        description="Minimum speed in Gb/s of a USB4 or Thunderbolt link to another host: the speed"
        " of a lane times the number of lanes.",
    )
    advice: Line = Field(description=ADVICE)


class Command(Section):
    """A command that must exit with 0, and what its output must contain."""

    name: Line = Field(description="The check's name.")
    argv: tuple[Line, ...] = Field(
        min_length=1, description="The command and its arguments. No shell interprets them."
    )
    matches: Regex = Field(
        description="A regular expression that matches a part of a line of its output."
    )
    timeout_s: float = Field(default=20, gt=0, le=300, description="Timeout in seconds.")
    advice: Line = Field(description=ADVICE)


class Torch(Section):
    """Devices that torch must find with the image's Python. Each must also compute correctly."""

    device: Literal["xpu", "cuda"] = Field(description="The device type, as torch names it.")
    count: int = Field(default=1, ge=1, le=64, description="The number of such devices.")
    timeout_s: float = Field(default=60, gt=0, le=300, description="Timeout in seconds.")
    advice: Line = Field(description=ADVICE)


class Hardware(Section):
    """Required hardware of one kind of machine. Every entry is a check of `orchestrate verify`."""

    memory: Size | None = Field(
        default=None,
        description="Minimum memory, as the kernel reports it: less than the installed size.",
    )
    modules: tuple[ModuleName, ...] = Field(
        default=(), description="Kernel modules that must be loaded."
    )
    devices: tuple[AbsolutePath, ...] = Field(
        default=(), description="Device files that must exist; `*` matches any name."
    )
    pci: tuple[PciDevice, ...] = Field(default=(), description="PCI devices.")
    signs: tuple[Sign, ...] = Field(
        default=(),
        description="Lines that the kernel's log or files must (or must not) contain, such as "
        "firmware messages and settings.",
    )
    links: dict[Name, LinkSpeed] = Field(
        default={},
        description="Links by network (a key of `networks`). Each must be up and have at least this"
        " speed, and the network's MTU if it has one. A machine without a link on the "
        "network has no such check.",
    )
    level_zero: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Minimum number of GPUs that Level Zero reports (integrated GPUs count too).",
    )
    torch: Torch | None = Field(default=None, description=Torch.__doc__)
    commands: tuple[Command, ...] = Field(
        default=(), description="Commands that test the hardware."
    )
