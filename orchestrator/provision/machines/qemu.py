"""Simulated machines with real firmware, in QEMU: they PXE boot as boards do.

The control node is a container, as with the driver `nspawn`. Nothing is put into the others: what
they know, they got over the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image import store
from orchestrator.image.layers import Layers
from orchestrator.provision.machines import PowerState, accel, health, trial
from orchestrator.provision.machines.accel import AUTO, KVM, TCG, WAYS, Decision
from orchestrator.provision.machines.composed import Composed, Machine, home
from orchestrator.provision.machines.emulator import Emulator, NotStarted, VirtualHardware
from orchestrator.provision.machines.firmware import firmware
from orchestrator.provision.machines.network import prefix
from orchestrator.provision.machines.nspawn import Container
from orchestrator.provision.machines.switch import Switch
from orchestrator.provision.netboot import images

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile
    from orchestrator.provision.identity import BootFile

#: A file system with this label is where the initrd keeps layers for the next boot.
CACHE_LABEL = "orchestrate-cache"


@dataclass(frozen=True)
class Chosen:
    """What a person chose, and where; AUTO where nobody did."""

    name: str = AUTO
    where: str = ""


@dataclass(frozen=True)
class Guest(Emulator):
    """A machine in QEMU, under KVM or translation.

    `chosen` decides which, or a try of KVM does, with the kernel of `image`.
    """

    chosen: Chosen = Chosen()
    image: Path | None = None

    @property
    def record(self) -> Path:
        return self.home / "accel.json"

    @property
    def started_with(self) -> Decision | None:
        """How it was started last; None where it never was."""
        return accel.read(self.record)

    def start(self, hardware: VirtualHardware) -> None:
        """Power on. Raises UserError where QEMU or the firmware is missing, or does not start."""
        decision = self.decide(hardware)
        decision.write(self.record)
        try:
            self.launch(hardware, decision.way)
        except NotStarted as error:
            raise NotStarted(error.message, f"{advice(decision)}\n  {error.hint}") from None

    def decide(self, hardware: VirtualHardware) -> Decision:
        """As it was chosen by hand; else as a try found, now or before."""
        if self.chosen.name != AUTO:
            return Decision(WAYS[self.chosen.name], by=self.chosen.where)
        return accel.decide(
            lambda: accel.facts(hardware.firmware, self.image and self.image / "kernel"),
            lambda: trial.why_not(hardware, self.image),
        )

    def trouble(self, name: str) -> UserError | None:
        """What keeps the machine `name` from coming up, and what to do; None where nothing does.

        Where KVM passed its try and cannot run the guest after all, that is noted.
        """
        decision = self.started_with or Decision(TCG)
        ailment = self.ailment(decision.way.silence)
        if ailment is None:
            return None
        lines = [f"{name} does not run: {ailment.text}", *self.said()]
        if last := health.last_line(self.console):
            lines.append(f"  last console line: {last}")
        todo = advice(decision)
        if ailment.faulty and decision.tried:
            accel.remember(decision.facts, f"it passed the trial; then {ailment.text}")
            todo = "Recorded: 'orchestrate up' restarts it with translation (TCG), which is slower."
        return UserError("\n".join(lines), f"{todo}\n  Its console: {self.console}")


def advice(decision: Decision) -> str:
    """What to do with a machine that stopped."""
    if decision.way.name != KVM.name:
        return "'orchestrate up' restarts it."
    by = f" KVM was chosen by {decision.by}." if decision.by else ""
    return f"To use translation (TCG): orchestrate up --accel tcg.{by}"


@dataclass(frozen=True)
class QemuMachine:
    """A compute node in QEMU."""

    node: Node
    home: Path
    switch: Switch

    netboots = True

    @property
    def guest(self) -> Guest:
        profile = self.switch.profile
        return Guest(self.home, self.switch.space, chosen(profile), booted_image(profile))

    @property
    def boot_timeout(self) -> float:
        """The longer one until it is started."""
        decision = self.guest.started_with
        return (decision.way if decision else TCG).boot_timeout

    @property
    def console(self) -> Path:
        return self.guest.console

    def plug(self) -> None:
        self.switch.plug_taps(self.node)

    @property
    def console_place(self) -> str:
        return str(self.console)

    def state(self) -> PowerState:
        return PowerState.OFF if self.guest.process.pid() is None else PowerState.ON

    def leader(self) -> int:
        raise UserError(
            f"{self.node.name} is a separate machine: its processes do not run on this one",
            f"Reach it over SSH: orchestrate sim shell {self.node.name}",
        )

    def power_on(self, files: dict[str, BootFile]) -> None:
        self.guest.clear()
        self.guest.start(self.hardware())

    def trouble(self) -> UserError | None:
        return self.guest.trouble(self.node.name)

    def power_off(self, timeout: float) -> None:
        self.guest.stop(timeout)

    def clear(self) -> None:
        self.guest.clear()

    def hardware(self) -> VirtualHardware:
        """As the profile says; the NIC on the boot network is the first to boot."""
        profile = self.switch.profile
        taps = self.switch.plug_taps(self.node)
        simulation = profile.simulation
        return VirtualHardware(
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


def cluster(profile: Profile, accel: str | None = None) -> Composed:
    """The driver `qemu`. `accel` takes the place of the profile's `simulation.accel`."""

    def remember() -> None:
        if accel:
            accel_record(profile).write_text(accel)

    return Composed("qemu", profile, Switch(profile, prefix(profile)), machine, remember)


def accel_record(profile: Profile) -> Path:
    """Holds what `--accel` said, until the cluster is down."""
    return home(profile) / "accel"


def chosen(profile: Profile) -> Chosen:
    """KVM or translation, by hand: what `--accel` said, else the profile."""
    record = accel_record(profile)
    name = record.read_text() if record.exists() else ""
    if name in accel.CHOICES:
        return Chosen(name, f"--accel {name}")
    return Chosen(profile.simulation.accel, profile.where("simulation", "accel"))


def booted_image(profile: Profile) -> Path | None:
    """The files of the image that machines are given; None where they are not there."""
    current = images.read(profile.name).current
    image = images.directory(profile.name, current.id) if current else store.built(profile.image)
    return image if image and (image / "kernel").exists() else None
