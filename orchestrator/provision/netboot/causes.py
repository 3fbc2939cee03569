"""Why a node does not get on: a table of rules, the first that knows something is told. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.provision.netboot.sources import DONE, FAILED
from orchestrator.provision.netboot.timeline import LATE, BootStep, BootTimeline, Netboot, is_late

#: Seconds without anything new after which a boot counts as stuck; firmware takes its time, and so
#: does a kernel until the initrd has a network to report over.
PATIENCE = {"power": 120.0, "initrd": 90.0, "switch": 90.0}
PATIENCE_ELSE = 45.0
#: A boot that came so far is not the boot's business any more.
BOOTED = ("sshd", "configured", "ray", "ready")


@dataclass(frozen=True)
class BootCause:
    """What probably holds a node, and what to do about it."""

    text: str
    hint: str


@dataclass(frozen=True)
class BootObservation:
    """What a rule looks at."""

    boot: BootTimeline
    netboot: Netboot
    at: BootStep

    @property
    def reached(self) -> str:
        return self.boot.reached

    def failed(self, step: str, pattern: str = "") -> re.Match[str] | None:
        """Whether the boot is at ``step`` (`layer` means any of them), which failed saying that."""
        if self.at.step.partition(":")[0] != step or self.at.status != FAILED:
            return None
        return re.search(pattern, self.at.text)


Rule = Callable[[BootObservation], BootCause | None]


def stuck(
    boot: BootTimeline, netboot: Netboot, now: float, *, answers: bool = False
) -> BootCause | None:
    """The likely cause where nothing was seen of a boot for a while, or a step failed last.

    None for a boot that goes on, has ended well, or of which nothing is known. Of a node that
    ``answers`` over SSH only a late layer can fail.
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
        "Switch that one off on this network, or set boot.dhcp: proxy in the profile.",
    )


def other_card(observed: BootObservation) -> BootCause | None:
    if observed.reached != "power" or not observed.netboot.unknown:
        return None
    macs = ", ".join(observed.netboot.unknown)
    return BootCause(
        f"no DHCP request came from the profile's hardware address, but one from {macs}",
        "If that is this node: correct its mac in the profile, or let it boot from the other card.",
    )


def no_dhcp(observed: BootObservation) -> BootCause | None:
    if observed.reached != "power":
        return None
    return BootCause(
        "no DHCP request was seen",
        "Check cable and switch port, that its firmware boots from the network first, and that"
        " its link on boot.network is the card that boots.",
    )


def no_address(observed: BootObservation) -> BootCause | None:
    if observed.reached != "dhcp" or observed.at.status == DONE:
        return None
    return BootCause(
        "it asks for an address, and does not take the one that it is offered",
        "Another DHCP server may answer first, or the answer does not reach it: look for one on"
        " this network, and at the switch (DHCP snooping).",
    )


def no_loader(observed: BootObservation) -> BootCause | None:
    if observed.reached != "dhcp":
        return None
    return BootCause(
        "it has an address, but fetches no loader",
        "Is Secure Boot on? Then set boot.secure: true, or switch it off. Is another machine named"
        " as boot server on this network?",
    )


def loader_gone(observed: BootObservation) -> BootCause | None:
    if not observed.failed("loader"):
        return None
    return BootCause(
        f"the loader that it asks for is not there: {observed.at.text}",
        "Correct boot.loaders or the node's loader in the profile, then: orchestrate up",
    )


def no_script(observed: BootObservation) -> BootCause | None:
    if observed.reached != "loader":
        return None
    return BootCause(
        "it has its loader, which does not ask for a boot script",
        "iPXE may lack a driver for this card: set loader: snponly.efi for the node. With Secure"
        " Boot on, firmware refuses iPXE: set boot.secure: true.",
    )


def image_gone(observed: BootObservation) -> BootCause | None:
    gone = r"HTTP 404|404 Not Found|no such file"
    steps = ("kernel", "initrd", "manifest", "layer", LATE)
    if not any(observed.failed(step, gone) for step in steps):
        return None
    return BootCause(
        f"the image that it boots is not served (any more): {observed.at.text}",
        "It was started with an older script. Run: orchestrate up, then restart the node.",
    )


def no_kernel(observed: BootObservation) -> BootCause | None:
    if observed.reached != "script":
        return None
    return BootCause(
        "it has its boot script, but fetches no kernel",
        "Its console says why.",
    )


def no_init(observed: BootObservation) -> BootCause | None:
    if observed.reached == "kernel":
        return BootCause(
            "the kernel was fetched, but no initrd",
            "Its console says why. With boot.secure, a kernel that Debian did not sign is refused.",
        )
    if observed.reached != "initrd":
        return None
    return BootCause(
        "kernel and initrd were fetched, but the initrd does not report",
        "Its console says why: no driver for the card in the image's initrd"
        " (system.initrd.modules), too little memory, or no link.",
    )


def no_network(observed: BootObservation) -> BootCause | None:
    if not observed.failed("network"):
        return None
    return BootCause(
        f"its initrd has no network: {observed.at.text}",
        "No link: cable and switch. No card: its driver has to be in the image's initrd"
        " (system.initrd.modules).",
    )


def wrong_hash(observed: BootObservation) -> BootCause | None:
    steps = ("manifest", "layer", LATE)
    if not any(observed.failed(step, "not what the manifest says") for step in steps):
        return None
    what = observed.at.step.partition(":")[2] or observed.at.step
    return BootCause(
        f"{what} is not what the image's id says: {observed.at.text}",
        "The served file is damaged, or somebody changed it on its way. Run: orchestrate up, which"
        " lays it out anew; if it comes again, look for who answers at that address.",
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
        "If another machine took it, find that machine first; then restart the node.",
    )


def no_ssh(observed: BootObservation) -> BootCause | None:
    if observed.reached != "switch":
        return None
    return BootCause(
        "it has started its system, but does not answer over SSH",
        "See its console; orchestrate up says how SSH fails.",
    )


def said_so(observed: BootObservation) -> BootCause | None:
    """A step that failed told its cause; of one that hangs, all is known that was seen."""
    if observed.at.status == FAILED:
        return BootCause(
            f"{observed.at.step}: {observed.at.text}", "It tries again by itself, with pauses."
        )
    said = f"{observed.at.step} {observed.at.status} {observed.at.text}".rstrip()
    return BootCause(f"nothing was seen of it since: {said}", "See its console.")


#: In the order of a boot; docs/reference/boot.md lists them for people.
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
