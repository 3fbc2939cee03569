"""Why a node does not get on: a table of causes, each told by the last step that was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.netboot.timeline import DONE, FAILED, Boot, Netboot

#: Seconds without anything new after which a boot counts as stuck.
PATIENCE = 45.0


@dataclass(frozen=True)
class Cause:
    """What probably holds a node, and what to do about it."""

    text: str
    hint: str


def stuck(boot: Boot, netboot: Netboot, now: float) -> Cause | None:
    """The likely cause where nothing was seen of a boot for a while, or a step failed last.

    None for a boot that goes on or has ended well.
    """
    if boot.reached in ("sshd", "configured", "ray", "ready"):
        return None
    last = boot.steps[-1] if boot.steps else None
    failed = last is not None and last.status == FAILED
    if not failed and boot.steps and now - boot.seen < PATIENCE:
        return None
    return next(cause for rule in RULES if (cause := rule(boot, netboot)))


def no_power(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.steps:
        return None
    return Cause("nothing was seen of it yet", "Is it on? orchestrate up")


def no_dhcp(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached != "power":
        return None
    if netboot.unknown:
        seen = ", ".join(netboot.unknown)
        return Cause(
            f"it sent no DHCP request from the profile's hardware address, but {seen} did",
            "If that is this node: correct its mac in the profile.",
        )
    return Cause(
        "no DHCP request was seen",
        "Check its cable and switch port, that it boots from the network first, and that the link"
        " on boot.network is the card that boots.",
    )


def no_answer(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached != "dhcp" or boot.steps[-1].status == DONE:
        return None
    if netboot.foreign_servers:
        return Cause(
            "another DHCP server answered it",
            "Switch that one off on this network, or set boot.dhcp: proxy.",
        )
    return Cause(
        "it asks for an address and does not take the one that it is offered",
        "A second DHCP server may answer first: see orchestrate netboot options.",
    )


def no_loader(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached != "dhcp":
        return None
    return Cause(
        "it has an address, but fetches no loader",
        "Its firmware may want Secure Boot (boot.secure), or takes the loader from another server.",
    )


def no_script(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached != "loader":
        return None
    return Cause(
        "its loader does not reach the control node",
        "iPXE may lack a driver for this card: set loader: snponly.efi for the node.",
    )


def no_kernel(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached == "script":
        return Cause(
            "it has its boot script, but fetches no kernel",
            "Its console says why; the image of the script may be gone: orchestrate up.",
        )
    if boot.reached in ("kernel", "initrd") and boot.steps[-1].status == FAILED:
        return Cause(
            f"{boot.steps[-1].text}: the image that it boots is not there (any more)",
            "Run: orchestrate up, then restart the node.",
        )
    return None


def no_init(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached not in ("kernel", "initrd"):
        return None
    return Cause(
        "kernel and initrd are loaded, but the initrd does not report",
        "Its console says why. Without network there: does the image's initrd have the card's"
        " driver (system.initrd.modules)?",
    )


def refused(boot: Boot, netboot: Netboot) -> Cause | None:
    if boot.reached != "identity":
        return None
    return Cause(
        f"its identity was refused: {boot.steps[-1].text}",
        "If another machine took it, find that machine first; then restart the node.",
    )


def said_so(boot: Boot, netboot: Netboot) -> Cause | None:
    """The initrd tells its own causes."""
    last = boot.steps[-1]
    if last.status == FAILED:
        return Cause(f"{last.step}: {last.text}", "It tries again by itself, with pauses.")
    return Cause(
        f"nothing since {last.step} {last.status} {last.text}".rstrip(), "See its console."
    )


RULES: tuple[Callable[[Boot, Netboot], Cause | None], ...] = (
    no_power,
    no_dhcp,
    no_answer,
    no_loader,
    no_script,
    no_kernel,
    no_init,
    refused,
    said_so,
)
