"""Whether QEMU can run guests with KVM here. A device node says little: only a guest proves it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.run import run

QEMU = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
#: Seconds for the try: firmware and five instructions.
TRY_TIMEOUT = 20.0

#: A boot sector that ends QEMU with an exit code of its own, through the device isa-debug-exit:
#: that turns a value v written to its port into the exit code 2 * v + 1.
EXIT_PORT = 0xF4
VALUE = 0x2A
BOOT_SECTOR = (
    bytes([0xB0, VALUE])  # mov al, VALUE
    + bytes([0xE6, EXIT_PORT])  # out EXIT_PORT, al
    + bytes([0xF4])  # hlt
    + bytes([0xEB, 0xFD])  # jmp to the hlt
).ljust(510, b"\0") + b"\x55\xaa"  # what the firmware knows a boot sector by


@dataclass(frozen=True)
class Accelerator:
    """How QEMU runs a guest's instructions. `boot_timeout`: seconds from power to SSH."""

    name: str
    argv: tuple[str, ...]
    boot_timeout: float


KVM = Accelerator("kvm", ("-accel", "kvm", "-cpu", "host"), 600.0)
TCG = Accelerator("tcg", ("-accel", "tcg,thread=multi", "-cpu", "max"), 1200.0)


@cache
def accelerator() -> Accelerator:
    """KVM where a guest really runs on it, else QEMU's own translation. Tried once a process."""
    return KVM if DEVICE.exists() and boots(KVM) else TCG


def boots(way: Accelerator) -> bool:
    """Whether the boot sector above runs to its end. Raises UserError where QEMU is missing."""
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "sector"
        disk.write_bytes(BOOT_SECTOR)
        argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-m", "64"]
        argv += [*way.argv, "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"]
        argv += ["-drive", f"file={disk},format=raw,if=ide,snapshot=on", "-boot", "c"]
        try:
            tried = run(argv, what="try a virtual machine", ok=None, timeout=TRY_TIMEOUT)
        except UserError as error:
            if "not installed" in error.message:
                raise
            return False  # it hangs
    return tried.code == 2 * VALUE + 1
