"""The firmware of QEMU machines: QEMU's own SeaBIOS, or UEFI (OVMF) from Debian's package."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError

#: Where Debian's package installs OVMF's files.
OVMF = Path("/usr/share/OVMF")
PACKAGE = "ovmf"


@dataclass(frozen=True)
class Firmware:
    """A machine type and its firmware. `code` and `variables` are None for SeaBIOS.

    ``nic_rom``: whether the network card has an iPXE ROM. SeaBIOS needs it, since it has no PXE.
    OVMF has its own PXE, which the ROM would replace.
    """

    machine: str
    nic_rom: bool
    code: Path | None = None
    variables: Path | None = None
    argv: tuple[str, ...] = ()

    def prepare(self, store: Path) -> None:
        """Copy the variables to `store`, the machine's own. Raises UserError if OVMF is missing."""
        for file in (self.code, self.variables):
            if file and not file.exists():
                raise UserError(
                    f"the machine's firmware {file} is not installed",
                    f"On Debian: apt-get install {PACKAGE}",
                )
        if self.variables and not store.exists():
            shutil.copy(self.variables, store)

    def words(self, store: str) -> list[str]:
        """QEMU's arguments; `store` is the machine's copy, relative to QEMU's working directory."""
        words = ["-machine", self.machine, *self.argv]
        if self.code:
            drive = "if=pflash,format=raw,unit"
            words += ["-drive", f"{drive}=0,readonly=on,file={self.code}"]
            words += ["-drive", f"{drive}=1,file={store}"]
        return words


#: Without graphics, SeaBIOS and iPXE write to the serial port, and so to the console log.
BIOS = Firmware("q35,graphics=off", nic_rom=True)
UEFI = Firmware(
    "q35", nic_rom=False, code=OVMF / "OVMF_CODE_4M.fd", variables=OVMF / "OVMF_VARS_4M.fd"
)
#: Secure Boot is on with Microsoft's keys; SMM protects the variables from the guest.
SECURE = Firmware(
    "q35,smm=on",
    nic_rom=False,
    code=OVMF / "OVMF_CODE_4M.secboot.fd",
    variables=OVMF / "OVMF_VARS_4M.ms.fd",
    argv=("-global", "driver=cfi.pflash01,property=secure,value=on"),
)


def firmware(kind: str, *, secure: bool) -> Firmware:
    """The firmware of `simulation.firmware` and `boot.secure`; BIOS has no Secure Boot."""
    if kind == "bios":
        return BIOS
    return SECURE if secure else UEFI
