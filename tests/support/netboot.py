"""A control node that really serves, and QEMU machines that are started against it one by one.

Everything is waited for by an event with a deadline: a line on a console, a line of the boot
service's log, the text of `orchestrate status`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.core import paths
from orchestrator.image import store
from orchestrator.models.profiles import load
from orchestrator.node.remote import Remote
from orchestrator.profile import Node
from orchestrator.provision import boot_parameters
from orchestrator.provision.machines import PowerState, netns
from orchestrator.provision.machines.composed import Driver
from orchestrator.provision.machines.emulator import VirtualHardware
from orchestrator.provision.machines.firmware import BIOS, Firmware
from orchestrator.provision.machines.processes import start_time
from orchestrator.provision.machines.qemu import QemuMachine
from orchestrator.provision.machines.switch import Switch
from orchestrator.provision.netboot.state import EVENTS, FILES_UNIT
from support.booting import Booting, until
from support.images import PROJECT, build, copies, register, turn_bit

SHIPPED = PROJECT / "profiles/sim.yml"
#: A cluster for each of pytest's workers, so that machines boot side by side.
NAME = f"netboot{os.environ.get('PYTEST_XDIST_WORKER', '')}"
#: The image that machines boot: without Python's layer, which only the control node needs here.
MINIMAL = "minimal"
#: A network that the control node is on and does not serve.
OUTSIDE = {"subnet": "10.78.0.0/24", "control": "10.78.0.1", "stranger": "10.78.0.9"}
STRANGE_MAC = "02:00:0a:4d:00:99"
#: Seconds for a verb.
TIMEOUT = 900
#: Firmware that asks for its loader over HTTP first: PXE is taken away from it.
HTTP_FIRST = (
    "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n",
    "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
)  # fmt: skip


@dataclass
class Net:
    """The tests' cluster. `base` is its profile as it stays; `changed` alters it for a while."""

    root: Path
    base: dict[str, Any]
    profile: Path = field(init=False)
    #: The machine of tests that only look at one, while it is on.
    shared: Booting | None = None

    def __post_init__(self) -> None:
        self.profile = self.root / f"{NAME}.yml"
        self.write(self.base)

    def write(self, document: dict[str, Any]) -> None:
        self.profile.write_text(json.dumps(document, indent=1))  # YAML 1.2 takes JSON

    # The command line.

    def run(self, *words: str, ok: bool | None = True) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        shown = f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, shown
        assert ok is None or (done.returncode == 0) == ok, shown
        return done

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A verb that runs for the body; ended after it where it has not."""
        argv = [sys.executable, "-m", "orchestrator", *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def status_says(self, pattern: str, seconds: float = 60) -> str:
        """Wait until `orchestrate status`, for people or as JSON, has a text."""
        last = ""

        def look() -> str | None:
            nonlocal last
            last = self.run("status").stdout + self.run("status", "--json").stdout
            return last if re.search(pattern, last) else None

        return until(f"status: {pattern}", seconds, look, lambda: last)

    def serve(self) -> None:
        """Bring the control node up, as far as others boot from it; again where it is up.

        Its own image is the profile's; the machines' is the minimal one.
        """
        self.run("image", "use", self.base["image"])
        self.run("up", "--machines", "qemu", "--until", "control")
        self.run("image", "use", MINIMAL)

    @contextlib.contextmanager
    def changed(self, **sections: Any) -> Iterator[None]:
        """Other keys in sections of the profile, or other lists, on the control node too, for the
        body."""
        self.write(
            self.base
            | {
                name: self.base[name] | new if isinstance(new, dict) else new
                for name, new in sections.items()
            }
        )
        try:
            self.serve()
            yield
        finally:
            self.write(self.base)
            self.serve()

    @contextlib.contextmanager
    def configured(self, node: str, **sections: dict[str, Any]) -> Iterator[None]:
        """A node that `up` has booted and configured, as far as Ray, for the body.

        The control node, too, runs the minimal image.
        """
        image = self.base["image"]
        whole = store.out_link(image).readlink()
        self.run("down")
        register(image, store.out_link(MINIMAL).readlink())
        self.write(self.base | {name: self.base[name] | keys for name, keys in sections.items()})
        try:
            self.run("image", "use", image)
            chosen = f"{self.base['control']['name']},{node}"
            self.run("up", "--machines", "qemu", "--until", "base", "--node", chosen)
            yield
        finally:
            self.run("down")
            register(image, whole)
            self.write(self.base)
            self.serve()

    # The cluster as the code sees it.

    @property
    def cluster(self) -> Cluster:
        return open_cluster(load(self.profile))

    @property
    def driver(self) -> Driver:
        driver = self.cluster.driver
        assert driver.kind == "qemu"
        return driver

    @property
    def switch(self) -> Switch:
        cables = self.driver.cables
        assert isinstance(cables, Switch)
        return cables

    @property
    def image_id(self) -> str:
        """The image that nodes are given now."""
        document = json.loads((self.served / "netboot/boot.json").read_text())
        return str(document["image"]["id"])

    def layer_size(self, name: str) -> int:
        """Bytes of a layer of the current image."""
        text = (self.served / "images" / self.image_id / "manifest.json").read_text()
        return int(next(e["size"] for e in json.loads(text)["layers"] if e["name"] == name))

    @property
    def served(self) -> Path:
        return paths.served(NAME)

    @property
    def server(self) -> str:
        """What boot files are had from, as nodes know it."""
        return str(json.loads((self.served / "netboot/boot.json").read_text())["server"])

    def node(self, name: str) -> Node:
        return next(node for node in self.cluster.profile.nodes if node.name == name)

    def remote(self, name: str) -> Remote:
        return self.cluster.remote(self.node(name))

    def on(self, name: str, *argv: str) -> str:
        """What a command prints on a node, without the end of its last line."""
        with self.driver.network():
            return self.remote(name).run(argv).out.strip()

    def control(self, *argv: str, ok: bool | None = True) -> str:
        """What a command prints in the control container."""
        return self.run("sim", "shell", "control", "--", *argv, ok=ok).stdout

    # What the control node has recorded.

    def events(self) -> list[dict[str, Any]]:
        """The boot service's logs, a dictionary each; a line that is being written is left out."""
        texts = [file.read_text() for file in (paths.lasting(NAME) / EVENTS).glob("*.jsonl")]
        lines = [line for text in texts for line in text.splitlines(keepends=True)]
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return sorted(found, key=lambda event: float(event["time"]))

    def requests(self) -> str:
        """The web server's log of boot files."""
        return self.control("journalctl", "--unit", FILES_UNIT, "--output=cat", "--no-pager")

    # Machines.

    def machine(self, name: str) -> QemuMachine:
        machine = self.driver.machines[name]
        assert isinstance(machine, QemuMachine)
        return machine

    def sees(
        self,
        verb: subprocess.Popen[str],
        machine: QemuMachine,
        pattern: str,
        other_than: int | None = None,
    ) -> None:
        """Wait until a machine that a running verb starts, as another process, says something."""

        def look() -> bool:
            assert verb.poll() is None, verb.communicate()
            pid = machine.guest.process.pid()
            return pid not in (None, other_than) and re.search(pattern, text()) is not None

        def text() -> str:
            return machine.console.read_text(errors="replace")

        until(f"console: {pattern}", machine.boot_timeout, look, text)

    def boot(
        self,
        name: str = "compute0",
        *,
        firmware: Firmware | None = None,
        extra: Sequence[str] = (),
        change: Callable[[VirtualHardware], VirtualHardware] = lambda hardware: hardware,
    ) -> Booting:
        """Give a machine power, with other firmware or hardware than the profile's if asked."""
        machine = self.machine(name)
        hardware = change(dataclasses.replace(machine.hardware(), extra=tuple(extra)))
        if firmware:
            hardware = dataclasses.replace(hardware, firmware=firmware)
        machine.power_off(0)
        # Another firmware does not know the variables that the last one left.
        shutil.rmtree(machine.home, ignore_errors=True)
        booting = Booting(self, machine, next(iter(hardware.nics.values())), time.time())
        machine.guest.start(hardware)
        return booting

    def start_kernel(
        self, name: str = "compute0", *, disk: Path | None = None, extra: Sequence[str] = ()
    ) -> Booting:
        """Give a machine power and the kernel at once, as a loader without HTTP leaves it.

        For tests of what comes after: firmware and loader take a quarter of a boot's time.
        """
        image = self.served / "images" / self.image_id
        node = self.node(name)
        words = ["-kernel", str(image / "kernel"), "-initrd", str(image / "initrd")]
        words += [
            "-append",
            boot_parameters.command_line(self.cluster.profile, node, self.image_id),
        ]

        def direct(hardware: VirtualHardware) -> VirtualHardware:
            nowhere = dataclasses.replace(BIOS, nic_rom=False)
            return dataclasses.replace(
                hardware, firmware=nowhere, disk=disk, extra=[*words, *extra]
            )

        return self.boot(name, change=direct)

    def booted(self) -> Booting:
        """A machine that booted from its firmware to SSH; the same one as long as it is on."""
        if self.shared is None or self.shared.machine.state() == PowerState.OFF:
            self.shared = self.boot()
            self.shared.reaches_ssh()
        return self.shared

    def all_off(self) -> None:
        for node in self.cluster.profile.compute_nodes:
            self.remote(node.name).close()
            self.driver.power_off(node, timeout=0)

    # Others on the boot_parameters.

    @contextlib.contextmanager
    def stranger(self, network: str, address: str, mac: str = "") -> Iterator[str]:
        """A namespace with a cable to a network of the cluster; its name, for `netns.entered`."""
        space, switch = self.switch.named("stranger"), self.switch
        netns.create(space)
        try:
            peer = ["peer", "name", "stranger", "netns", switch.space]
            own = ["address", mac] if mac else []
            netns.ip(space, "link", "add", "eth0", *own, "type", "veth", *peer)
            netns.ip(switch.space, "link", "set", "stranger", "master", switch.bridge(network))
            netns.ip(switch.space, "link", "set", "stranger", "up")
            netns.ip(space, "addr", "add", address, "dev", "eth0")
            netns.ip(space, "link", "set", "eth0", "up")
            yield space
        finally:
            netns.delete(space)

    @contextlib.contextmanager
    def slow(self, name: str, rate: str) -> Iterator[None]:
        """A node's cable carries no more than `rate` (as tc writes it) for the body."""
        (tap, *_) = self.switch.plug_taps(self.node(name))
        tc = ["tc", "-n", self.switch.space, "qdisc"]
        bucket = ["tbf", "rate", rate, "burst", "64kbit", "latency", "400ms"]
        subprocess.run([*tc, "replace", "dev", tap, "root", *bucket], check=True)
        try:
            yield
        finally:
            subprocess.run([*tc, "del", "dev", tap, "root"], check=True)

    def carries(self, name: str, size: int) -> None:
        """Wait until a node's cable has carried so many bytes to it, from now."""
        (tap, *_) = self.switch.plug_taps(self.node(name))

        def sent() -> int:
            argv = ["ip", "-n", self.switch.space, "-json", "-statistics", "link", "show", tap]
            shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
            return int(json.loads(shown)[0]["stats64"]["tx"]["bytes"])

        begun = sent()
        until(f"{size} bytes", 60, lambda: True if sent() - begun >= size else None, str)

    # Damage, and what is left.

    @contextlib.contextmanager
    def damaged(self, file: str) -> Iterator[None]:
        """A file of the current image with one bit turned, in all places it is served from."""
        path = self.served / "images" / self.image_id / file
        originals = copies(self.served, path)
        kept = self.root / "kept"
        kept.mkdir()
        try:
            for number, original in enumerate(originals):
                original.rename(kept / str(number))
                turn_bit(kept / str(number), original)
            yield
        finally:
            for number, original in enumerate(originals):
                (kept / str(number)).replace(original)
            kept.rmdir()

    @contextlib.contextmanager
    def missing(self, file: str) -> Iterator[None]:
        """A file of the current image is not served for the body."""
        path = self.served / "images" / self.image_id / file
        aside = self.root / "aside"
        path.rename(aside)
        try:
            yield
        finally:
            aside.rename(path)

    def left(self) -> list[str]:
        """What is there of the cluster on this machine: namespaces, mounts, processes."""
        found = [str(path) for path in Path("/run/netns").glob(f"orchestrate-{NAME}-*")]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [line.split()[1] for line in mounts if line.split()[1].startswith(str(self.root))]
        for process in Path("/proc").glob("[0-9]*"):
            if start_time(int(process.name)) is None:
                continue
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                where = str((process / "cwd").readlink())
                if b"qemu-system" in words[0] and where.startswith(str(self.root)):
                    found.append(f"QEMU in {where}")
        return found


def make(root: Path) -> Net:
    """A profile of two QEMU machines with little memory, and its image, whole and minimal."""
    document = yaml.safe_load(SHIPPED.read_text())
    document["name"] = NAME
    document["machines"] = "qemu"
    document["simulation"] = {"memory": "1GiB", "cpus": 2}
    document["networks"]["outside"] = {"subnet": OUTSIDE["subnet"]}
    document["control"]["links"]["outside"] = {
        "interface": "outside0",
        "mac": "02:00:0a:4e:00:01",
        "address": OUTSIDE["control"],
    }
    register(document["image"], build(document["image"]))
    register(MINIMAL, build(f"{document['image']}.minimal"))
    return Net(root, document)
