"""The driver `qemu`: simulated machines with real firmware that PXE boot like real boards.

The control node is a container, as with the driver `nspawn`. Compute nodes get everything over the
network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image import store
from orchestrator.image.layers import Layers
from orchestrator.profile import Node, Profile
from orchestrator.provision import secure_boot
from orchestrator.provision.boot_parameters import OWN
from orchestrator.provision.identity import BootFile
from orchestrator.provision.machines import PowerState, accel, health, trial
from orchestrator.provision.machines.accel import AUTO, KVM, TCG, WAYS, Decision
from orchestrator.provision.machines.composed import Driver, Machine, SeparateMachine, home
from orchestrator.provision.machines.emulator import Emulator, NotStarted, VirtualHardware
from orchestrator.provision.machines.firmware import firmware
from orchestrator.provision.machines.network import prefix
from orchestrator.provision.machines.nspawn import Container
from orchestrator.provision.machines.switch import Switch
from orchestrator.provision.netboot import images

#: The initrd keeps layers for later boots on the file system with this label.
CACHE_LABEL = "orchestrate-cache"


@dataclass(frozen=True)
class Chosen:
    """The accelerator that a person chose, and where; AUTO if nobody did."""

    name: str = AUTO
    where: str = ""


@dataclass(frozen=True)
class Guest(Emulator):
    """A machine in QEMU, under KVM or translation (TCG).

    `chosen` says which; if it is AUTO, a trial of KVM with the kernel of `image` decides.
    """

    chosen: Chosen = Chosen()
    image: Path | None = None

    @property
    def record(self) -> Path:
        return self.home / "accel.json"

    @property
    def started_with(self) -> Decision | None:
        """The accelerator of its last start; None if it never started."""
        return accel.read(self.record)

    def start(self, hardware: VirtualHardware) -> None:
        """Power on. Raises UserError if QEMU or the firmware is missing, or QEMU does not start."""
        decision = self.decide(hardware)
        decision.write(self.record)
        try:
            self.launch(hardware, decision.way)
        except NotStarted as error:
            raise NotStarted(error.message, f"{advice(decision)}\n  {error.hint}") from None

    def decide(self, hardware: VirtualHardware) -> Decision:
        """The accelerator: as a person chose, else by a trial, now or earlier."""
        if self.chosen.name != AUTO:
            return Decision(WAYS[self.chosen.name], by=self.chosen.where)
        return accel.decide(
            lambda: accel.facts(hardware.firmware, self.image and self.image / "kernel"),
            lambda: trial.why_not(hardware, self.image),
        )

    def trouble(self, name: str) -> UserError | None:
        """Why the machine `name` cannot come up, and what to do; None if it can.

        If KVM passed its trial but then failed to run the guest, the trial's result is changed to
        failed.
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
    if decision.way.name != KVM.name:
        return "'orchestrate up' restarts it."
    by = f" KVM was chosen by {decision.by}." if decision.by else ""
    return f"To use translation (TCG): orchestrate up --accel tcg.{by}"


@dataclass(frozen=True)
class QemuMachine(SeparateMachine):
    """A compute node in QEMU."""

    switch: Switch

    @property
    def guest(self) -> Guest:
        profile = self.switch.profile
        return Guest(self.home, self.switch.space, chosen(profile), booted_image(profile))

    @property
    def boot_timeout(self) -> float:
        """Seconds for a boot, by its accelerator; the longest before the first start."""
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
        """The machine as in the profile; the card on the boot network is first in boot order."""
        profile = self.switch.profile
        simulation = profile.simulation
        own = profile.boot.secure == OWN
        enrolled = secure_boot.find(profile.name).signature_list if own else b""
        return VirtualHardware(
            name=self.node.name,
            firmware=firmware(
                simulation.firmware, secure=bool(profile.boot.secure), enrolled=enrolled
            ),
            memory=simulation.memory,
            cpus=simulation.cpus,
            nics=self.switch.plug_taps(self.node),
            disk=self.disk(simulation.cache_disk) if simulation.cache_disk else None,
        )

    def disk(self, size: int) -> Path:
        """The cache disk of `size` bytes, made at first use. It survives `down`, as a real one."""
        disk = paths.cluster(self.switch.profile.name) / "disks" / f"{self.node.name}.raw"
        if not disk.exists():
            make_disk(disk, size)
        return disk


def make_disk(path: Path, size: int) -> None:
    """Make a sparse file of `size` bytes with an empty file system labelled CACHE_LABEL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        file.truncate(size)
    run(["mkfs.ext4", "-q", "-L", CACHE_LABEL, beside], what="make a cache disk")
    beside.replace(path)


def machine(node: Node, home: Path, switch: Switch, layers: Layers) -> Machine:
    """A container for the control node, a QEMU machine for a compute node."""
    if switch.profile.is_control(node):
        return Container(node, home, switch, layers)
    return QemuMachine(node, home, switch)


def cluster(profile: Profile, accel: str | None = None) -> Driver:
    """The driver `qemu`. `accel` overrides the profile's `simulation.accel`."""

    def remember() -> None:
        if accel:
            accel_record(profile).write_text(accel)

    return Driver("qemu", profile, Switch(profile, prefix(profile)), machine, remember)


def accel_record(profile: Profile) -> Path:
    """The file with the value of `--accel`, kept until the cluster is down."""
    return home(profile) / "accel"


def chosen(profile: Profile) -> Chosen:
    """The accelerator that a person chose: by `--accel`, else in the profile."""
    record = accel_record(profile)
    name = record.read_text() if record.exists() else ""
    if name in accel.CHOICES:
        return Chosen(name, f"--accel {name}")
    return Chosen(profile.simulation.accel, profile.where("simulation", "accel"))


def booted_image(profile: Profile) -> Path | None:
    """The directory of the image that machines boot; None if it is not there."""
    current = images.read(profile.name).current
    image = images.directory(profile.name, current.id) if current else store.built(profile.image)
    return image if image and (image / "kernel").exists() else None
