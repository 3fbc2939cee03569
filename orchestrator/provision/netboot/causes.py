"""Why a node's boot is stuck: the first rule of a table that matches gives the cause. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.provision.netboot.sources import DONE, FAILED
from orchestrator.provision.netboot.timeline import LATE, BootStep, BootTimeline, Netboot, is_late

#: Seconds without any event after which a boot counts as stuck, by the step that it reached.
#: Firmware is slow, and an initrd cannot report before it has a network.
PATIENCE = {"power": 120.0, "initrd": 90.0, "switch": 90.0}
PATIENCE_ELSE = 45.0
#: After these steps the boot itself is over.
BOOTED = ("sshd", "configured", "ray", "ready")


@dataclass(frozen=True)
class BootCause:
    """The likely cause of a stuck boot, and what to do about it."""

    text: str
    hint: str


@dataclass(frozen=True)
class BootObservation:
    """A rule's input: the node's boot, all logs, and the step that the boot is at."""

    boot: BootTimeline
    netboot: Netboot
    at: BootStep

    @property
    def reached(self) -> str:
        return self.boot.reached

    def failed(self, step: str, pattern: str = "") -> re.Match[str] | None:
        """A match if the boot's current step is ``step``, has failed, and its text has ``pattern``.

        `layer` stands for any layer's step.
        """
        if self.at.step.partition(":")[0] != step or self.at.status != FAILED:
            return None
        return re.search(pattern, self.at.text)


Rule = Callable[[BootObservation], BootCause | None]


def stuck(
    boot: BootTimeline, netboot: Netboot, now: float, *, answers: bool = False
) -> BootCause | None:
    """The likely cause of a boot without new events for a while, or with a failed step.

    None for a boot that goes on, has succeeded, or has no events. ``answers``: the node answers
    over SSH, so that only a late layer can still fail.
    """
    at = boot.current
    if at is None:
        return None
    if (answers or boot.reached in BOOTED) and not (is_late(at.step) and at.status == FAILED):
        return None
    patience = PATIENCE.get(boot.reached, PATIENCE_ELSE)
    if at.status != FAILED and now - boot.seen < patience:
        return None
    observed = BootObservation(boot, netboot, at)
    return next(cause for rule in RULES if (cause := rule(observed)))


def foreign_server(observed: BootObservation) -> BootCause | None:
    if not observed.boot.foreign or observed.reached not in ("power", "dhcp", "loader"):
        return None
    return BootCause(
        f"another DHCP server answered: {observed.boot.foreign}",
        "Switch that server off on this network, or set boot.dhcp: proxy in the profile.",
    )


def other_card(observed: BootObservation) -> BootCause | None:
    if observed.reached != "power" or not observed.netboot.unknown:
        return None
    macs = ", ".join(observed.netboot.unknown)
    return BootCause(
        f"no DHCP request came from the MAC in the profile, but one from {macs}",
        "If that is this node: correct its mac in the profile, or let it boot from the other card.",
    )


def no_dhcp(observed: BootObservation) -> BootCause | None:
    if observed.reached != "power":
        return None
    return BootCause(
        "no DHCP request was seen",
        "Check the cable, the switch port, the boot order in its firmware, and that its link on"
        " boot.network is the card that boots.",
    )


def no_address(observed: BootObservation) -> BootCause | None:
    if observed.reached != "dhcp" or observed.at.status == DONE:
        return None
    return BootCause(
        "it requests an address but does not accept the offered one",
        "Another DHCP server may answer first, or the answer does not arrive. Look for another"
        " server on this network, and for DHCP snooping on the switch.",
    )


def no_loader(observed: BootObservation) -> BootCause | None:
    if observed.reached != "dhcp":
        return None
    return BootCause(
        "it has an address but fetches no loader",
        "If Secure Boot is on, set boot.secure: true or switch it off. Look for other boot"
        " servers on this network.",
    )


def loader_gone(observed: BootObservation) -> BootCause | None:
    if not observed.failed("loader"):
        return None
    return BootCause(
        f"the requested loader does not exist: {observed.at.text}",
        "Correct boot.loaders or the node's loader in the profile, then: orchestrate up",
    )


def no_script(observed: BootObservation) -> BootCause | None:
    if observed.reached != "loader":
        return None
    return BootCause(
        "it fetched its loader, but the loader requests no boot script",
        "iPXE may lack a driver for this card: set loader: snponly.efi for the node. With Secure"
        " Boot on, firmware refuses iPXE: set boot.secure: true.",
    )


def image_gone(observed: BootObservation) -> BootCause | None:
    gone = r"HTTP 404|404 Not Found|no such file"
    steps = ("kernel", "initrd", "manifest", "layer", LATE)
    if not any(observed.failed(step, gone) for step in steps):
        return None
    return BootCause(
        f"the image that it boots is not served (anymore): {observed.at.text}",
        "It booted with an outdated script. Run: orchestrate up, then restart the node.",
    )


def no_kernel(observed: BootObservation) -> BootCause | None:
    if observed.reached != "script":
        return None
    return BootCause(
        "it has its boot script but fetches no kernel",
        "See its console for the reason.",
    )


def no_init(observed: BootObservation) -> BootCause | None:
    if observed.reached == "kernel":
        return BootCause(
            "it fetched the kernel but no initrd",
            "See its console. With boot.secure, a kernel without Debian's signature is refused.",
        )
    if observed.reached != "initrd":
        return None
    return BootCause(
        "it fetched kernel and initrd, but the initrd does not report",
        "See its console. Common causes: no driver for the card in the image's initrd"
        " (system.initrd.modules), too little memory, no link; with boot.secure: own, firmware that"
        " does not know your key.",
    )


def no_network(observed: BootObservation) -> BootCause | None:
    if not observed.failed("network"):
        return None
    return BootCause(
        f"its initrd has no network: {observed.at.text}",
        "No link: check cable and switch. No card: add its driver to the image's initrd"
        " (system.initrd.modules).",
    )


def wrong_hash(observed: BootObservation) -> BootCause | None:
    steps = ("manifest", "layer", LATE)
    if not any(observed.failed(step, "not what the manifest says") for step in steps):
        return None
    what = observed.at.step.partition(":")[2] or observed.at.step
    return BootCause(
        f"{what} does not match the image's id: {observed.at.text}",
        "The served file is damaged, or was changed in transit. Run: orchestrate up, which"
        " restores it. If it recurs, find out which machine answers at that address.",
    )


def memory(observed: BootObservation) -> BootCause | None:
    if not observed.failed("manifest", "of memory"):
        return None
    return BootCause(observed.at.text, "Give it more memory, or a disk labelled orchestrate-cache.")


def no_identity(observed: BootObservation) -> BootCause | None:
    if not observed.failed("identity", "refused"):
        return None
    return BootCause(
        f"its identity was refused: {observed.at.text}",
        "If another machine took it, find that machine first. Then restart the node.",
    )


def no_ssh(observed: BootObservation) -> BootCause | None:
    if observed.reached != "switch":
        return None
    return BootCause(
        "its system has started but does not answer over SSH",
        "See its console; orchestrate up reports how SSH fails.",
    )


def said_so(observed: BootObservation) -> BootCause | None:
    """The last rule: the failed step's own text, or the last step that was seen."""
    if observed.at.status == FAILED:
        return BootCause(f"{observed.at.step}: {observed.at.text}", "It retries by itself.")
    said = f"{observed.at.step} {observed.at.status} {observed.at.text}".rstrip()
    return BootCause(f"no sign of it since: {said}", "See its console.")


#: In the order of a boot. docs/reference/boot.md lists the causes.
RULES: tuple[Rule, ...] = (
    foreign_server,
    other_card,
    no_dhcp,
    no_address,
    no_loader,
    loader_gone,
    no_script,
    image_gone,
    no_kernel,
    no_init,
    no_network,
    wrong_hash,
    memory,
    no_identity,
    no_ssh,
    said_so,
)
