"""Simulated machines with real firmware, in QEMU: they PXE boot as boards do.

The control node is a container, as with the driver `nspawn`. Nothing is put into the others: what
they know, they got over the network.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import paths
from orchestrator.errors import UserError
from orchestrator.machines import netns, qmp
from orchestrator.machines.accel import QEMU, Accelerator, accelerator
from orchestrator.machines.firmware import Firmware, firmware
from orchestrator.machines.layers import Layers
from orchestrator.machines.nspawn import Container
from orchestrator.machines.processes import Process, ended, kill
from orchestrator.machines.simulator import Machine
from orchestrator.machines.switch import Switch
from orchestrator.run import run

if TYPE_CHECKING:
    from orchestrator.identity import BootFile
    from orchestrator.profile import Node

NIC = "virtio-net-pci"
#: Files of a machine: the firmware's variables, what it writes to its serial port, QEMU's socket.
VARIABLES = "variables.fd"
CONSOLE = "console.log"
CONTROL = "qmp"
#: Seconds for QEMU to be there once it is started.
START_TIMEOUT = 20.0
#: A file system with this label is where the initrd keeps layers for the next boot.
CACHE_LABEL = "orchestrate-cache"


@dataclass(frozen=True)
class Hardware:
    """What a machine is made of. `nics`: tap -> hardware address, the one that boots first."""

    name: str
    firmware: Firmware
    memory: int
    cpus: int
    nics: Mapping[str, str]
    disk: Path | None = None
    #: Further words for QEMU.
    extra: Sequence[str] = ()


def argv(hardware: Hardware, way: Accelerator) -> list[str]:
    """QEMU's command line. Its own files are in its working directory."""
    words = [QEMU, "-name", hardware.name, "-nodefaults", "-no-user-config", "-display", "none"]
    words += [*way.argv, *hardware.firmware.words(VARIABLES)]
    words += ["-m", f"{hardware.memory >> 20}M", "-smp", str(hardware.cpus)]
    words += ["-device", "virtio-rng-pci"]
    words += ["-chardev", f"file,id=console,path={CONSOLE}", "-serial", "chardev:console"]
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


@dataclass(frozen=True)
class Guest:
    """One QEMU process, in the network namespace `space`. All that it makes lies under `home`."""

    home: Path
    space: str

    @property
    def console(self) -> Path:
        return self.home / CONSOLE

    @property
    def process(self) -> Process:
        return Process(self.home / "process.json")

    def start(self, hardware: Hardware) -> None:
        """Power on. What QEMU itself says goes to qemu.log; the console is kept apart.

        Raises UserError where QEMU or the firmware is missing, or QEMU does not start.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        hardware.firmware.prepare(self.home / VARIABLES)
        log = self.home / "qemu.log"
        log.unlink(missing_ok=True)
        self.console.write_bytes(b"")  # there for who waits for a line of it
        words = argv(hardware, accelerator())
        with netns.entered(self.space):
            self.process.start(words, log=log, cwd=self.home)
        self._wait_for_control(hardware.name, log)

    def _wait_for_control(self, name: str, log: Path) -> None:
        """Return when QEMU has made its socket. Raises UserError with its words where it ended."""
        deadline = time.monotonic() + START_TIMEOUT
        while not (self.home / CONTROL).exists():
            if self.process.pid() is None or time.monotonic() > deadline:
                self.stop(0)
                said = log.read_text(errors="replace").strip() or "it said nothing"
                raise UserError(f"{name}: QEMU did not start: {said}", f"Its log: {log}")
            time.sleep(0.02)

    def qmp(self, command: str, **arguments: object) -> object:
        """A command to QEMU; raises OSError or RuntimeError as `qmp.execute` does."""
        return qmp.execute(self.home / CONTROL, command, **arguments)

    def stop(self, timeout: float) -> None:
        """The power button; after `timeout` seconds, or at once with 0, the plug."""
        pid = self.process.pid()
        if pid is not None:
            if timeout > 0:
                # Before its socket is there, or after it ended: the plug is left.
                with suppress(OSError, RuntimeError):
                    self.qmp("system_powerdown")
            if not ended(pid, timeout):
                kill([pid])
        self.clear()

    def clear(self) -> None:
        for name in ("process.json", CONTROL):
            (self.home / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class QemuMachine:
    """A compute node in QEMU."""

    node: Node
    home: Path
    switch: Switch

    netboots = True

    @property
    def guest(self) -> Guest:
        return Guest(self.home, self.switch.space)

    @property
    def boot_timeout(self) -> float:
        return accelerator().boot_timeout

    @property
    def console(self) -> Path:
        return self.guest.console

    def plug(self) -> None:
        self.switch.plug_taps(self.node)

    def running(self) -> bool:
        return self.guest.process.pid() is not None

    def leader(self) -> int:
        raise UserError(
            f"{self.node.name} is a machine of its own: its processes are not this machine's",
            f"Reach it over SSH: orchestrate sim shell {self.node.name}",
        )

    def power_on(self, files: dict[str, BootFile]) -> None:
        self.guest.clear()
        self.guest.start(self.hardware())

    def power_off(self, timeout: float) -> None:
        self.guest.stop(timeout)

    def clear(self) -> None:
        self.guest.clear()

    def hardware(self) -> Hardware:
        """As the profile says; the NIC on the boot network is the first to boot."""
        profile = self.switch.profile
        taps = self.switch.plug_taps(self.node)
        simulation = profile.simulation
        return Hardware(
            name=self.node.name,
            firmware=firmware(simulation.firmware, secure=profile.boot.secure),
            memory=simulation.memory,
            cpus=simulation.cpus,
            nics={
                taps[network]: self.switch.mac(self.node, network) for network in self.boot_order()
            },
            disk=self.disk(simulation.cache_disk) if simulation.cache_disk else None,
        )

    def boot_order(self) -> list[str]:
        """The node's networks, the one that it boots from first."""
        boot = self.switch.profile.boot.network
        return sorted(self.node.links, key=lambda network: network != boot)

    def disk(self, size: int) -> Path:
        """The disk that keeps layers, made at first use. It outlasts `down`, as a real one."""
        disk = paths.cluster(self.switch.profile.name) / "disks" / f"{self.node.name}.raw"
        if not disk.exists():
            make_disk(disk, size)
        return disk


def make_disk(path: Path, size: int) -> None:
    """An empty file system with the cache's label; takes room only as it fills. `size` in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        file.truncate(size)
    run(["mkfs.ext4", "-q", "-L", CACHE_LABEL, beside], what="make a cache disk")
    beside.replace(path)


def machine(node: Node, home: Path, switch: Switch, layers: Layers) -> Machine:
    """The machine of a node: the control node is a container."""
    if switch.profile.is_control(node):
        return Container(node, home, switch, layers)
    return QemuMachine(node, home, switch)
