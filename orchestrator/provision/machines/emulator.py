"""QEMU: its command line, its process, and a diagnosis of a guest that does not come up."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.waiting import as_long_as
from orchestrator.provision.machines import health, netns, qmp
from orchestrator.provision.machines.accel import QEMU, Accelerator
from orchestrator.provision.machines.firmware import Firmware
from orchestrator.provision.machines.health import Ailment
from orchestrator.provision.machines.processes import Process, ended, kill

NIC = "virtio-net-pci"
#: Files of a machine: the firmware's variables, the serial port's output, QEMU's control socket,
#: and QEMU's events (EVENTS.out, a line of JSON each; QEMU reads its commands from EVENTS.in).
VARIABLES = "variables.fd"
CONSOLE = "console.log"
CONTROL = "qmp"
EVENTS = "events"
#: Seconds from starting QEMU until it accepts commands.
START_TIMEOUT = 20.0


@dataclass(frozen=True)
class VirtualHardware:
    """A machine's parts. `memory`: bytes. `nics`: tap -> hardware address, in boot order."""

    name: str
    firmware: Firmware
    memory: int
    cpus: int
    nics: Mapping[str, str]
    disk: Path | None = None
    #: Further arguments for QEMU.
    extra: Sequence[str] = ()


def argv(hardware: VirtualHardware, way: Accelerator) -> list[str]:
    """QEMU's command line. Relative paths in it are in QEMU's working directory, `home`."""
    words = [QEMU, "-name", hardware.name, "-nodefaults", "-no-user-config", "-display", "none"]
    words += [*way.argv, *hardware.firmware.words(VARIABLES)]
    words += ["-m", f"{hardware.memory >> 20}M", "-smp", str(hardware.cpus)]
    words += ["-device", "virtio-rng-pci"]
    words += ["-chardev", f"file,id=console,path={CONSOLE}", "-serial", "chardev:console"]
    words += ["-chardev", f"pipe,id=events,path={EVENTS}", "-mon", "chardev=events,mode=control"]
    words += ["-qmp", f"unix:{CONTROL},server=on,wait=off"]
    rom = "" if hardware.firmware.nic_rom else ",romfile="
    for number, (tap, mac) in enumerate(hardware.nics.items()):
        words += ["-netdev", f"tap,id=net{number},ifname={tap},script=no,downscript=no"]
        device = f"{NIC},id=nic{number},netdev=net{number},mac={mac}"
        words += ["-device", f"{device},bootindex={number + 1}{rom}"]
    if hardware.disk:
        words += ["-drive", f"if=none,id=disk,format=raw,discard=unmap,file={hardware.disk}"]
        words += ["-device", "virtio-blk-pci,drive=disk"]
    return [*words, *hardware.extra]


class NotStarted(UserError):
    """QEMU ended before it accepted commands."""


@dataclass(frozen=True)
class Emulator:
    """One QEMU process. All its files are below `home`.

    `space`: the network namespace that it runs in; if empty, the caller's.
    """

    home: Path
    space: str = ""

    @property
    def console(self) -> Path:
        return self.home / CONSOLE

    @property
    def log(self) -> Path:
        return self.home / "qemu.log"

    @property
    def process(self) -> Process:
        return Process(self.home / "process.json")

    @property
    def events(self) -> Path:
        return self.home / f"{EVENTS}.out"

    def launch(self, hardware: VirtualHardware, way: Accelerator, *, outlives: bool = True) -> None:
        """Power on. `outlives`: QEMU keeps running when this command ends or gets Ctrl-C.

        Raises UserError if QEMU or the firmware is missing, NotStarted if QEMU does not start.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        hardware.firmware.prepare(self.home / VARIABLES)
        self.log.unlink(missing_ok=True)
        self.console.write_bytes(b"")  # so that others can open it before QEMU writes
        words = argv(hardware, way)
        with ExitStack() as stack:
            stack.callback(os.close, self._order_events())
            with netns.entered(self.space) if self.space else ExitStack():
                self.process.start(words, log=self.log, cwd=self.home, outlives=outlives)
            self._wait_for_control(hardware.name)

    def _order_events(self) -> int:
        """Make QEMU write its events to a file, so that none is lost while nobody listens.

        Returns the open pipe with the command for it. Close it after QEMU has read the command.
        """
        pipe = self.home / f"{EVENTS}.in"
        for file in (pipe, self.events):
            file.unlink(missing_ok=True)
        self.events.touch()
        os.mkfifo(pipe)
        handle = os.open(pipe, os.O_RDWR)
        os.write(handle, b'{"execute": "qmp_capabilities"}\n')
        return handle

    def _wait_for_control(self, name: str) -> None:
        """Wait until QEMU accepts commands, or its guest has run and ended already.

        Raises NotStarted with QEMU's messages if it ended without running a guest, or takes longer
        than START_TIMEOUT.
        """

        def starts() -> bool:
            return self.process.pid() is not None and not qmp.listens(self.home / CONTROL)

        late = as_long_as(starts, START_TIMEOUT, 0.02)
        gone = self.process.pid() is None
        if gone and any(health.told(self.events, "SHUTDOWN")):
            return
        if gone or late:
            self.stop(0)
            lines = [f"{name}: QEMU did not start", *self.said()]
            raise NotStarted("\n".join(lines), f"Its log: {self.log}")

    def said(self) -> list[str]:
        """The end of QEMU's log, as lines of an error."""
        return [f"  QEMU: {line}" for line in health.log_end(self.log)]

    def qmp(self, command: str, **arguments: object) -> object:
        """Run a QMP command. Raises OSError or RuntimeError as `qmp.execute` does."""
        return qmp.execute(self.home / CONTROL, command, **arguments)

    def ailment(self, silence: float) -> Ailment | None:
        """Why the guest cannot come up; None if it can, or was not started.

        `silence`: seconds from power-on until the guest must have written to its console.
        """
        if not self.process.record.exists():
            return None
        if self.process.pid() is None:
            return health.ended(self.events)
        return (
            health.stopped(self.home / CONTROL)
            or health.resets(self.events)
            or health.panicked(self.console)
            or self._silent(silence)
        )

    def _silent(self, limit: float) -> Ailment | None:
        try:
            if self.console.stat().st_size or self.seconds < limit:
                return None
        except FileNotFoundError:
            return None  # another command is switching it off
        return Ailment(f"no console output in {limit:g} s since power-on")

    @property
    def seconds(self) -> float:
        return time.time() - self.process.record.stat().st_mtime

    def stop(self, timeout: float) -> None:
        """Press the power button; kill QEMU after `timeout` seconds, or at once if it is 0."""
        pid = self.process.pid()
        if pid is not None:
            if timeout > 0:
                # QEMU may have no socket yet, or have ended: it is killed below.
                with suppress(OSError, RuntimeError):
                    self.qmp("system_powerdown")
            if not ended(pid, timeout):
                kill([pid])
        self.clear()

    def clear(self) -> None:
        for name in ("process.json", CONTROL):
            (self.home / name).unlink(missing_ok=True)
