"""Try whether KVM works here, with the real firmware, kernel and initrd.

The guest has neither disk nor network. QEMU starts it with the image's kernel and initrd. The trial
succeeds as soon as the initrd writes its first line to the console.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.provision.machines import health
from orchestrator.provision.machines.accel import KVM, QEMU
from orchestrator.provision.machines.emulator import Emulator, NotStarted, VirtualHardware
from orchestrator.provision.machines.firmware import SECURE, UEFI
from orchestrator.provision.machines.health import Ailment

#: Limits in seconds: for the whole trial, and without new console output.
DEADLINE, SILENCE = 60.0, 20.0
POLL = 0.1
#: The image's initrd begins its console lines with this (images/initrd/common.sh).
WORD = b"orchestrate: "


def why_not(hardware: VirtualHardware, image: Path | None) -> str:
    """Why KVM does not run such machines here, in a few words; empty if it does.

    Without an image, only the firmware is tried, until its first output. Raises UserError if QEMU
    or the firmware is missing, or the trial was interrupted.
    """
    with tempfile.TemporaryDirectory() as directory:
        emulator = Emulator(Path(directory) / "try")
        try:
            emulator.launch(bare(hardware, image), KVM, outlives=False)
            return _watched(emulator, WORD if image else b"")
        except NotStarted:
            return _told(health.ended(emulator.events), emulator)
        finally:
            emulator.stop(0)


def bare(hardware: VirtualHardware, image: Path | None) -> VirtualHardware:
    """The machine without disk and network; QEMU loads the image's kernel and initrd directly."""
    firmware = hardware.firmware
    if firmware.code == SECURE.code:  # Secure Boot would refuse the kernel as QEMU loads it
        firmware = dataclasses.replace(firmware, variables=UEFI.variables, enrolled=b"")
    words: list[str] = []
    if image:
        words = ["-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")]
        words += ["-append", "console=ttyS0"]
    return dataclasses.replace(hardware, firmware=firmware, nics={}, disk=None, extra=words)


def _watched(emulator: Emulator, word: bytes) -> str:
    """Wait until the console shows `word` (if empty: any output). Returns "", else the failure."""
    begun = heard = time.monotonic()
    said = b""
    while True:
        now, before = time.monotonic(), said
        said = emulator.console.read_bytes()
        if said and word in said:
            return ""
        if said != before:
            heard = now
        if ailment := emulator.ailment(SILENCE):
            return _told(ailment, emulator)
        if now - heard > SILENCE or now - begun > DEADLINE:
            last = health.last_line(emulator.console)
            return f"no kernel reached its init in {now - begun:.0f} s; last console line: {last}"
        time.sleep(POLL)


def _told(ailment: Ailment, emulator: Emulator) -> str:
    """The ailment's text with the first line of QEMU's log; later lines are consequences.

    Raises UserError if a signal ended QEMU.
    """
    if ailment.interrupted:
        raise UserError("interrupted during the KVM trial")
    first = next(iter(health.log_end(emulator.log)), "").removeprefix(f"{QEMU}: ")
    return f"{ailment.text}: {first}" if first else ailment.text
