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

ADVICE = "What to do where it is not so."


class PciDevice(Section):
    """A PCI device. That it is there, its driver, and each BAR are checks of their own."""

    name: Line = Field(description="What people call it.")
    id: PciId = Field(description="VENDOR:DEVICE in hexadecimal, as `lspci -n` prints it.")
    count: int = Field(default=1, ge=1, le=64, description="How many of them.")
    driver: ModuleName = Field(description="The kernel driver that is bound to each.")
    advice: Line = Field(description="What to do where another driver is, or none.")
    bars: dict[BarNumber, Size] = Field(
        default={},
        description="By number: the least size of its memory regions. A smaller one means that "
        "resizable BAR is off.",
    )


class Sign(Section):
    """A line that has to be (or must not be) in a file, or in the kernel's log of this boot."""

    name: Line = Field(description="What it is a sign of.")
    file: AbsolutePath | None = Field(
        default=None,
        description="Where: a path, in which `*` stands for any name. Not set: the kernel's log.",
    )
    matches: Regex = Field(description="A regular expression that the line matches somewhere.")
    wanted: bool = Field(default=True, description="`false`: there must be no such line.")
    advice: Line = Field(description=ADVICE)


class LinkSpeed(Section):
    """What a link has to run at. Without a speed it only has to be up."""

    ethernet: int | None = Field(
        default=None, ge=10, le=800_000, description="Least speed in Mb/s, as the card reports it."
    )
    usb4: int | None = Field(
        default=None,
        ge=1,
        le=240,
        description="Least speed in Gb/s of a USB4 or Thunderbolt link to another host: that of a "
        "lane times the lanes.",
    )
    advice: Line = Field(description=ADVICE)


class Command(Section):
    """A command that ends well, and what its output has."""

    name: Line = Field(description="What it shows.")
    argv: tuple[Line, ...] = Field(min_length=1, description="Its words; no shell reads them.")
    matches: Regex = Field(description="A regular expression that its output matches somewhere.")
    timeout_s: float = Field(default=20, gt=0, le=300, description="Seconds that it may take.")
    advice: Line = Field(description=ADVICE)


class Torch(Section):
    """What torch sees, asked with the image's Python. It also has to compute right."""

    device: Literal["xpu", "cuda"] = Field(description="The kind of device, as torch calls it.")
    count: int = Field(default=1, ge=1, le=64, description="How many of them.")
    timeout_s: float = Field(default=60, gt=0, le=300, description="Seconds that it may take.")
    advice: Line = Field(description=ADVICE)


class Hardware(Section):
    """What each machine of a kind has to have. Every entry is a check of `orchestrate verify`."""

    memory: Size | None = Field(
        default=None, description="Least memory, as the kernel counts it: less than is built in."
    )
    modules: tuple[ModuleName, ...] = Field(default=(), description="Kernel modules, loaded.")
    devices: tuple[AbsolutePath, ...] = Field(
        default=(), description="Device files; `*` stands for any name."
    )
    pci: tuple[PciDevice, ...] = Field(default=(), description="PCI devices.")
    signs: tuple[Sign, ...] = Field(
        default=(), description="Lines of the kernel's log and of files: firmware, settings."
    )
    links: dict[Name, LinkSpeed] = Field(
        default={},
        description="By network (a key of `networks`): that the machine's link there is up, its "
        "speed, and its MTU where the network has one. A machine without a link there has no such "
        "check.",
    )
    level_zero: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="How many GPUs Level Zero has to show, or more (a processor's own counts too).",
    )
    torch: Torch | None = Field(default=None, description=Torch.__doc__)
    commands: tuple[Command, ...] = Field(
        default=(), description="Commands that show whether it works."
    )
