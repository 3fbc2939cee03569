"""What a machine has to have, as data: ``orchestrate verify`` looks, and knows no machine by name.

The judging is in ``verify.hardware``, the looking in ``verify.probe_hardware``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.profile.first_run import FirstRun
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

Severity = Literal["failure", "warning"]
Dtype = Literal["float16", "bfloat16", "float32"]


class Upstream(Section):
    """The link by which a card is connected to the slot. Of a card with a bridge of its own it is
    the bridge's: the card's own link is inside the card."""

    id: PciId | None = Field(
        default=None,
        description="VENDOR:DEVICE of the card's bridge, as `lspci -n` prints it. Default: of all "
        "links between card and processor the one with the smallest part of its lanes.",
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Minimum number of lanes. Default: as many as the card has.",
    )
    speed: float | None = Field(
        default=None,
        gt=0,
        le=256,
        description="Minimum speed of a lane in GT/s. Default: any, since many cards slow their "
        "lanes down while they have nothing to do.",
    )
    advice: Line = Field(description=ADVICE)


class PciDevice(Section):
    """A PCI device. Its presence, its driver, each BAR and its link are separate checks."""

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
    upstream: Upstream | None = Field(
        default=None,
        description="The link to the slot: what was negotiated against what is possible. A bridge "
        "that is not visible, as in a virtual machine, is not judged.",
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
    device: Line | None = Field(
        default=None,
        description="For the kernel's log: the `name` of the PCI device (in `pci`) that it is "
        "about. A line with the address of another device does not count. If `wanted`, as many "
        "devices as its `count` need a line. A line that names no device is about all of them.",
    )
    wanted: bool = Field(default=True, description="`false`: such a line must not exist.")
    severity: Severity = Field(
        default="failure",
        description="`warning`: for what serving does not need. It is shown, and `verify` still "
        "succeeds.",
    )
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

    device: Literal["xpu", "cuda", "cpu"] = Field(description="The device type, as torch names it.")
    count: int = Field(default=1, ge=1, le=64, description="The number of such devices.")
    timeout_s: float = Field(default=60, gt=0, le=300, description="Timeout in seconds.")
    advice: Line = Field(description=ADVICE)


class Limit(Section):
    """Something that the accelerators cannot compute."""

    reason: Line = Field(description="Why, shown when a profile is refused.")
    instead: Line = Field(description="What works instead, shown when a profile is refused.")


class DtypeLimit(Limit):
    """The number formats that they compute in."""

    only: tuple[Dtype, ...] = Field(min_length=1, description="Allowed formats.")


class BackendLimit(Limit):
    """vLLM's attention backends that have kernels for them."""

    only: tuple[Line, ...] = Field(
        min_length=1,
        description="Allowed values of vLLM's `attention-backend`. The flag must be set, because "
        "vLLM's own choice may be another one.",
    )


class BitsLimit(Limit):
    """The widths of packed integer weights (AWQ, GPTQ and formats like them)."""

    only: tuple[int, ...] = Field(min_length=1, description="Allowed bits of a weight.")


class MultipleLimit(Limit):
    """The sizes that kernels for packed integer weights take."""

    multiple: int = Field(
        ge=1, description="Group sizes and the input size of each rank must be multiples of it."
    )


class Capabilities(Section):
    """Limits of the accelerators. A profile that exceeds one is refused before anything starts."""

    no_fp64: Limit | None = Field(
        default=None,
        description="They have no double precision. Models with experts are refused: the kernels "
        "that choose experts need it.",
    )
    dtypes: DtypeLimit | None = Field(default=None, description=DtypeLimit.__doc__)
    attention_backends: BackendLimit | None = Field(default=None, description=BackendLimit.__doc__)
    weight_bits: BitsLimit | None = Field(default=None, description=BitsLimit.__doc__)
    packed_sizes: MultipleLimit | None = Field(default=None, description=MultipleLimit.__doc__)


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
    capabilities: Capabilities = Field(default=Capabilities(), description=Capabilities.__doc__)
    first_run: FirstRun = Field(default=FirstRun(), description=FirstRun.__doc__)
