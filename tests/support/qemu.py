"""A QEMU that plays KVMs which this machine does not have, and kernels of a few instructions."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

#: Seconds for what takes seconds; the waits that these tests are about took minutes.
DEADLINE = 60.0

T = TypeVar("T")

#: Stands in for QEMU where `-accel kvm` is asked for, and is the real one elsewhere.
PLAYER = """#!{python} -I
import contextlib, json, os, pathlib, resource, socket, sys, time

here, words = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(words) + "\\n")
mode = (here / "mode").read_text()
if mode == "good":
    words = [{{"kvm": "tcg", "host": "max"}}.get(word, word) for word in words]
if "kvm" not in words:
    os.execv("{real}", ["{real}", *words])
if mode == "aborts":
    print("qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69", file=sys.stderr, flush=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()
control = socket.socket(socket.AF_UNIX)
control.bind("qmp")
control.listen()
if mode == "shuts down":
    event = {{"event": "SHUTDOWN", "data": {{"guest": True, "reason": "guest-shutdown"}}}}
    pathlib.Path("events.out").write_text(json.dumps(event) + "\\n")
    time.sleep(0.2)
    sys.exit(0)
if mode == "internal-error":
    print((here / "registers").read_text(), file=sys.stderr, flush=True)
status = "running" if mode == "silent" else mode
answers = {{"query-status": {{"status": status, "running": status == "running"}}}}
while True:
    client, _ = control.accept()
    # Who connects may go away at once.
    with contextlib.suppress(OSError), client, client.makefile("rw") as stream:
        print(json.dumps({{"QMP": {{}}}}), file=stream, flush=True)
        for line in stream:
            answer = answers.get(json.loads(line)["execute"], {{}})
            print(json.dumps({{"return": answer}}), file=stream, flush=True)
"""

#: What QEMU 7.2 wrote under kvm_pvm when OVMF met an x87 instruction; shortened.
REGISTERS = """\
KVM internal error. Suberror: 1
extra data[0]: 0x0000000000000001
extra data[1]: 0xed742dd9e3db9b0f
emulation failure
EAX=00000000 EBX=00807000 ECX=00000001 EDX=00807154
ESI=00000000 EDI=00000000 EBP=0081fff0 ESP=0081fe70
EIP=fffced45 EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0008 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
GDT=     ffffff30 0000001f
CR0=40000033 CR2=00000000 CR3=00000000 CR4=00000640
EFER=0000000000000000
Code=66 90 90 cd 03 c3 66 90 90 53 <9b> db e3 d9 2d 74 ed fc ff b8 01 00 00 00 0f a2
"""


@dataclass(frozen=True)
class Player:
    """The QEMU that plays, in a directory that is the first of PATH."""

    home: Path

    def plays(self, mode: str) -> None:
        (self.home / "mode").write_text(mode)

    @property
    def calls(self) -> list[list[str]]:
        """The command lines of machines."""
        log = self.home / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [words for words in map(json.loads, lines) if "--version" not in words]

    @property
    def calls_with_kvm(self) -> int:
        return sum("kvm" in words for words in self.calls)


def player_at(home: Path) -> Player:
    real = shutil.which("qemu-system-x86_64")
    assert real, "these tests need QEMU"
    home.mkdir()
    program = home / "qemu-system-x86_64"
    program.write_text(PLAYER.format(python=sys.executable, real=real))
    program.chmod(0o755)
    (home / "registers").write_text(REGISTERS)
    made = Player(home)
    made.plays("good")
    return made


def says(text: str) -> bytes:
    """Instructions that write a text to the first serial port, and halt."""
    code = bytes.fromhex("ba f8 03")  # mov dx, 0x3f8
    for letter in text.encode():
        code += bytes([0xB0, letter, 0xEE])  # mov al, LETTER; out dx, al
    return code + HALT


HALT = bytes.fromhex("f4 eb fd")  # hlt; jmp to the hlt
#: mov dx, 0x604; mov ax, 0x2000; out dx, ax: the power management of QEMU's q35 by SeaBIOS.
SHUT_DOWN = bytes.fromhex("ba 04 06 b8 00 20 ef") + HALT
#: mov dx, 0xcf9; mov al, 6; out dx, al: the chipset's reset.
RESET = bytes.fromhex("ba f9 0c b0 06 ee") + HALT


def image_at(home: Path, code: bytes) -> Path:
    """An image whose kernel is `code`, in the form of the Linux boot protocol, run in real mode."""
    setup = bytearray(1024)
    setup[0x1F1] = 1  # sectors of setup code, after the first
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x6e"  # jmp to 0x270, behind the header
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x204)  # the protocol's version
    setup[0x211] = 1  # the kernel proper is loaded high
    struct.pack_into("<I", setup, 0x22C, 0x37FFFFFF)  # how high the initrd may lie
    assert len(code) <= len(setup) - 0x270
    setup[0x270 : 0x270 + len(code)] = code
    home.mkdir(exist_ok=True)
    (home / "kernel").write_bytes(bytes(setup) + bytes(512))
    (home / "initrd").write_bytes(bytes(512))
    return home


def until(look: Callable[[], T | None]) -> T:
    """Wait until `look` finds something."""
    deadline = time.monotonic() + DEADLINE
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"not in {DEADLINE:g} s"
        time.sleep(0.1)
    return found
