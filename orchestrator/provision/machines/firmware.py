"""The firmware of QEMU machines: SeaBIOS of QEMU's own, or UEFI (OVMF) of Debian's package."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError

#: Where Debian's package puts them.
OVMF = Path("/usr/share/OVMF")
PACKAGE = "ovmf"


@dataclass(frozen=True)
class Firmware:
    """What a machine starts with. `code` and `variables` are None for SeaBIOS.

    ``nic_rom`` says whether the NIC brings iPXE of its own. SeaBIOS needs that, it has no PXE;
    OVMF has its own, which the ROM would get ahead of.
    """

    machine: str
    nic_rom: bool
    code: Path | None = None
    variables: Path | None = None
    argv: tuple[str, ...] = ()

    def prepare(self, store: Path) -> None:
        """Give a machine its own copy of the variables. Raises UserError where OVMF is missing."""
        for file in (self.code, self.variables):
            if file and not file.exists():
                raise UserError(
                    f"the machine's firmware {file} is not installed",
                    f"On Debian: apt-get install {PACKAGE}",
                )
        if self.variables and not store.exists():
            shutil.copy(self.variables, store)

    def words(self, store: str) -> list[str]:
        """QEMU's arguments; `store` is the machine's copy, from where QEMU runs."""
        words = ["-machine", self.machine, *self.argv]
        if self.code:
            drive = "if=pflash,format=raw,unit"
            words += ["-drive", f"{drive}=0,readonly=on,file={self.code}"]
            words += ["-drive", f"{drive}=1,file={store}"]
        return words


#: Without graphics, SeaBIOS and iPXE write to the serial port, so to the console's log.
BIOS = Firmware("q35,graphics=off", nic_rom=True)
UEFI = Firmware(
    "q35", nic_rom=False, code=OVMF / "OVMF_CODE_4M.fd", variables=OVMF / "OVMF_VARS_4M.fd"
)
#: Microsoft's keys are enrolled and Secure Boot is on; the variables are guarded by SMM.
SECURE = Firmware(
    "q35,smm=on",
    nic_rom=False,
    code=OVMF / "OVMF_CODE_4M.secboot.fd",
    variables=OVMF / "OVMF_VARS_4M.ms.fd",
    argv=("-global", "driver=cfi.pflash01,property=secure,value=on"),
)


def firmware(kind: str, *, secure: bool) -> Firmware:
    """By the profile's `simulation.firmware` and `boot.secure`; BIOS knows no Secure Boot."""
    if kind == "bios":
        return BIOS
    return SECURE if secure else UEFI
