"""A QEMU node's way from power to SSH, and to a Ray that runs, through firmware and network.

python benchmarks/netboot.py [--profile NAME] [--node NAME] [--repeats N] [--json FILE]

The floor: QEMU is given kernel and initrd directly, and the layers as disks (see floor.py). The
peer: Debian's live-boot, with the same content as one squashfs (see live_boot.py). All under the
same firmware and accelerator. Then the node boots twice with a cache disk. The image has to be
built, the cluster down, and it is down again after it. Needs root, and a Debian mirror for apt.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import live_boot
import measure
from floor import floor
from measure import ORCHESTRATE, Goal, Report, refuse_running

from orchestrator.cli.where import profile_name_option
from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image.layers import layers_of
from orchestrator.models.profiles import active
from orchestrator.node.paths import VENV
from orchestrator.provision.machines.accel import QEMU
from orchestrator.provision.machines.emulator import VirtualHardware
from orchestrator.provision.machines.qemu import QemuMachine, make_disk
from orchestrator.provision.machines.switch import Switch

#: Of the floor's seconds.
RATIO_GOAL = 1.5
#: Of live-boot's seconds.
LIVE_GOAL = 0.7
#: Bytes beyond the compressed layers.
MEMORY_GOAL = 300e6
#: Seconds between two tries to connect, and for an orderly end that writes the cache back.
POLL = 0.1
END_TIMEOUT = 120.0
#: A disk for the cache: layers and as much again.
DISK_FACTOR = 2
SSH_PORT = 22
#: Wait for the layer that Ray is in, and let Ray start: it imports what it needs.
RAY_RUNS = f"until [ -x {VENV}/bin/ray ]; do sleep 0.1; done; {VENV}/bin/ray --version"
MB = 1e6


@dataclass(frozen=True)
class Boot:
    """One boot: seconds to SSH and to a Ray that runs; bytes received and memory in use by then."""

    seconds: float
    ray: float
    received: int
    memory: int


class Bench:
    """One node, and the ways to boot it. The control node serves."""

    def __init__(self, cluster: Cluster, name: str | None) -> None:
        driver = cluster.driver
        assert isinstance(driver.cables, Switch)
        nodes = {node.name: node for node in cluster.profile.compute_nodes}
        if name is not None and name not in nodes:
            raise UserError(f"there is no compute node {name!r}", f"Known: {', '.join(nodes)}")
        self.cluster, self.driver, self.switch = cluster, driver, driver.cables
        self.node = nodes[name] if name else cluster.profile.server
        machine = driver.machines[self.node.name]
        assert isinstance(machine, QemuMachine)
        self.machine = machine

    def boot(self, hardware: VirtualHardware) -> Boot:
        """Power to SSH; the machine is off again after it, in order."""
        remote = self.cluster.remote(self.node)
        before = self.sent(next(iter(hardware.nics)))
        begun = time.monotonic()
        self.machine.guest.start(hardware)
        try:
            with self.driver.network():
                self.wait_for_port(begun + self.machine.boot_timeout)
                remote.wait_for_ssh(self.machine.boot_timeout)
                seconds = time.monotonic() - begun
                remote.run(["sh", "-c", RAY_RUNS], timeout=self.machine.boot_timeout)
                ray = time.monotonic() - begun
                received = self.sent(next(iter(hardware.nics))) - before
                memory = in_use(remote.run(["cat", "/proc/meminfo"]).out)
                remote.close()
            self.machine.power_off(END_TIMEOUT)
        finally:
            self.machine.power_off(0)
        return Boot(seconds, ray, received, memory)

    def wait_for_port(self, deadline: float) -> None:
        """Return when the node takes connections. Raises UserError where it will not come up."""
        address = str(self.cluster.profile.boot_link(self.node).address)
        while True:
            try:
                socket.create_connection((address, SSH_PORT), timeout=1).close()
                return
            except OSError:
                if trouble := self.machine.trouble():
                    raise trouble from None
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.node.name} does not come up", f"Its console: {self.machine.console}"
                    ) from None
            time.sleep(POLL)

    def sent(self, tap: str) -> int:
        """Bytes that the switch has sent to a node."""
        argv = ["ip", "-n", self.switch.space, "-j", "-s", "link", "show", tap]
        return int(json.loads(run(argv).out)[0]["stats64"]["tx"]["bytes"])


@click.command(help=__doc__)
@profile_name_option
@click.option("--node", help="Which compute node; the first one if not given.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Of each.")
@measure.json_option
def netboot(profile: str | None, node: str | None, repeats: int, json_file: Path | None) -> None:
    measure.require_root("machines and networks of its own")
    measure.require_tools(QEMU, "mkfs.ext4", *live_boot.TOOLS)
    loaded = active(profile)
    cluster = open_cluster(loaded, "qemu")
    refuse_running(cluster)
    measure.read_once(path for path in cluster.image.iterdir() if path.is_file())
    report = Report("netboot", measure.versions({"QEMU": [QEMU, "--version"]}))
    words = ["up", "--machines", "qemu", "--until", "control", "--profile", str(loaded.path)]
    try:
        run([ORCHESTRATE, *words], what="orchestrate up")
        with tempfile.TemporaryDirectory() as directory:
            bench = Bench(cluster, node)
            found = boots(bench, repeats, Path(directory))
            started_with = bench.machine.guest.started_with
    finally:
        run([ORCHESTRATE, "down", "--profile", loaded.path], what="orchestrate down")
    accelerator = started_with.way.name if started_with else ""
    layers = sum(int(layer["size"]) for layer in layers_of(cluster.image))
    netbooted, direct = median(found["netboot"]), median(found["floor"])
    live = netbooted.seconds / median(found["live-boot"]).seconds
    ratio, ray_ratio = netbooted.seconds / direct.seconds, netbooted.ray / direct.ray
    beyond = netbooted.memory - layers
    report.figures = {
        "profile": loaded.name,
        "firmware": loaded.simulation.firmware,
        "accelerator": accelerator,
        "repeats": repeats,
        "ratio": ratio,
        "ray_ratio": ray_ratio,
        "live_boot_ratio": live,
        "layers": layers,
        "initrd": (cluster.image / "initrd").stat().st_size,
        "boots": found,
    }
    report.goals = [
        Goal("seconds from power to SSH, netboot over floor", ratio, RATIO_GOAL),
        Goal("seconds from power to a Ray that runs, netboot over floor", ray_ratio, RATIO_GOAL),
        Goal("seconds from power to SSH, netboot over live-boot", live, LIVE_GOAL),
        Goal("MB of memory in use beyond the layers", beyond / MB, MEMORY_GOAL / MB),
    ]
    title = f"from power: {loaded.simulation.firmware}, {accelerator}"
    columns = ("", "s to SSH", "s to Ray", "MB received", "MB of memory in use")
    sizes = [("layers", layers), ("initrd", report.figures["initrd"])]
    report.finish(
        [
            measure.table(title, columns, rows(found)),
            measure.table("sizes", ("", "MB"), [(name, f"{n / MB:.1f}") for name, n in sizes]),
        ],
        json_file,
    )


def boots(bench: Bench, repeats: int, directory: Path) -> dict[str, list[Boot]]:
    """All ways, in turn. Each second boot with the cache follows one with an empty disk."""
    hardware = dataclasses.replace(bench.machine.hardware(), disk=None)
    size = DISK_FACTOR * sum(int(layer["size"]) for layer in layers_of(bench.cluster.image))
    disk = directory / "cache.raw"
    cached = dataclasses.replace(hardware, disk=disk)
    cluster, node = bench.cluster, bench.node
    direct = floor(cluster, node, hardware, directory)

    def live() -> Boot:
        with live_boot.chosen(cluster, node):
            return bench.boot(hardware)

    ways: dict[str, Callable[[], Boot]] = {
        "floor": lambda: bench.boot(direct),
        "netboot": lambda: bench.boot(hardware),
        "live-boot": live,
        "netboot, empty cache": lambda: bench.boot(cached),
        "netboot, from the cache": lambda: bench.boot(cached),
    }
    found: dict[str, list[Boot]] = {name: [] for name in ways}
    with live_boot.prepared(cluster, cluster.profile.image, node, directory):
        for number in range(1, repeats + 1):
            disk.unlink(missing_ok=True)
            make_disk(disk, size)
            for name, way in ways.items():
                err.print(f"run {number} of {repeats}: {name}")
                found[name].append(way())
    return found


def in_use(meminfo: str) -> int:
    """Bytes that cannot be had for something else, from the text of /proc/meminfo."""
    lines = (line.split() for line in meminfo.splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return (kib["MemTotal"] - kib["MemAvailable"]) << 10


def median(runs: Sequence[Boot]) -> Boot:
    return Boot(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.ray for run in runs),
        int(statistics.median(run.received for run in runs)),
        int(statistics.median(run.memory for run in runs)),
    )


def rows(found: dict[str, list[Boot]]) -> Iterator[tuple[str, ...]]:
    for name, runs in found.items():
        boot = median(runs)
        times = (f"{boot.seconds:.1f}", f"{boot.ray:.1f}")
        yield name, *times, f"{boot.received / MB:.1f}", f"{boot.memory / MB:.0f}"


if __name__ == "__main__":
    measure.start(netboot)
