"""The firmware of QEMU machines: QEMU's own SeaBIOS, or UEFI (OVMF) from Debian's package."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.provision import secure_boot

#: Where Debian's package installs OVMF's files.
OVMF = Path("/usr/share/OVMF")
PACKAGE = "ovmf"
#: The type of its variables' store, the mark of each variable, and the attributes of those that
#: hold keys (kept, for boot and running system, changed by a signature only).
STORE = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
USED, ATTRIBUTES = b"\xaa\x55", 0x27


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
    #: Its own keys for Secure Boot: the value of its variables PK, KEK and db; empty if none.
    enrolled: bytes = field(default=b"", repr=False)

    def prepare(self, store: Path) -> None:
        """Make `store`, the machine's own variables. Raises UserError if OVMF is missing."""
        for file in (self.code, self.variables):
            if file and not file.exists():
                raise UserError(
                    f"the machine's firmware {file} is not installed",
                    f"On Debian: apt-get install {PACKAGE}",
                )
        if self.variables and not store.exists():
            variables = self.variables.read_bytes()
            store.write_bytes(enroll(variables, self.enrolled) if self.enrolled else variables)

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


def firmware(kind: str, *, secure: bool, enrolled: bytes = b"") -> Firmware:
    """The firmware of `simulation.firmware` and `boot.secure`; BIOS has no Secure Boot.

    ``enrolled``: the user's own key, instead of Microsoft's (secure_boot.py's `signature_list`).
    """
    if kind == "bios":
        return BIOS
    if enrolled:
        return replace(SECURE, variables=UEFI.variables, enrolled=enrolled)
    return SECURE if secure else UEFI


def enroll(store: bytes, signatures: bytes) -> bytes:
    """OVMF's variables with this value as PK, KEK and db: with a PK, Secure Boot is on.

    The format is EDK II's, of authenticated variables. Raises ValueError for another one.
    """
    (begin,) = struct.unpack_from("<H", store, 0x30)  # behind the header of the flash volume
    if store[begin : begin + 16] != STORE.bytes_le:
        raise ValueError("the firmware's variables are not EDK II's authenticated ones")
    at = begin + 28
    while store[at : at + 2] == USED:
        name, data = struct.unpack_from("<2I", store, at + 36)
        at = _aligned(at + 60 + name + data)
    new = bytearray()
    for variable, vendor in secure_boot.VARIABLES.items():
        name = f"{variable}\0".encode("utf-16-le")
        head = struct.pack("<2sBxI28x2I", USED, 0x3F, ATTRIBUTES, len(name), len(signatures))
        new += head + vendor.bytes_le + name + signatures
        new += b"\xff" * (_aligned(len(new)) - len(new))
    return store[:at] + bytes(new) + store[at + len(new) :]


def _aligned(number: int) -> int:
    return -(-number // 4) * 4
