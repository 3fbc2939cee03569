"""A namespace that stands for a control host with two network cards, and a machine on its wire.

`enx0` is the cluster's card: its cable leads to a bridge, where a machine waits for a magic packet
as a network card with Wake-on-LAN does, and then has power: QEMU with real firmware. `lan0` is the
host's own card, with its default route. The command line runs in the host's namespace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from orchestrator.provision.machines import netns
from orchestrator.provision.machines.emulator import VirtualHardware
from orchestrator.provision.machines.firmware import UEFI
from orchestrator.provision.machines.qemu import Guest
from support.images import PROJECT, build, register

NAME = "metal"
HOST, WIRE, LAN = (f"orchestrate-{NAME}-{name}" for name in ("host", "wire", "lan"))
CARD, CARD_MAC, CARD_ADDRESS = "enx0", "02:00:0a:4d:00:01", "10.99.0.1/24"
LAN_ADDRESS, LAN_PEER = "10.98.0.2", "10.98.0.1"
ETH_P_ALL = 3
TIMEOUT = 1500


@dataclasses.dataclass
class Metal:
    """The host, its profile, and the machine at the end of the cable."""

    root: Path
    profile: Path
    env: dict[str, str]
    guest: Guest
    hardware: VirtualHardware
    #: Frames with a magic packet, as they came over the wire.
    packets: list[bytes] = dataclasses.field(default_factory=list)
    #: "down", "control" (the control node alone), "up" (both configured), or something else.
    state: str = "down"

    def write(self, power: dict[str, Any]) -> None:
        """Write the profile, with this way of switching the machine on."""
        self.profile.write_text(json.dumps(document(power), indent=1))  # YAML 1.2 takes JSON

    def bring(self, state: str) -> Metal:
        """Bring control node and machine to a state, where they are not in it; returns itself."""
        if self.state != state:
            if state == "up":
                self.run("up", "--until", "base")
            elif self.state == "down":
                self.run("up", "--until", "control")
            else:
                self.run(*(("down",) if state == "down" else ("node", "down", "--all")))
                self.waits_off()
            self.state = state
        return self

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a verb in the host's namespace."""
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{HOST}", sys.executable, "-m", "orchestrator", *words],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, ok: bool | None = True) -> subprocess.CompletedProcess[str]:
        """Run a verb; `ok` says how it has to end (None: either way)."""
        with self.start(*words) as process:
            try:
                stdout, stderr = process.communicate(timeout=TIMEOUT)
            except BaseException:
                process.kill()
                raise
        shown = f"{words}: exit code {process.returncode}\n{stdout}\n{stderr}"
        assert "Traceback" not in stderr, shown
        assert ok is None or (process.returncode == 0) == ok, f"{shown}\n{self.console()[-3000:]}"
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def json(self, *words: str, ok: bool | None = True) -> Any:
        return json.loads(self.run(*words, "--json", ok=ok).stdout)

    def console(self) -> str:
        file = self.guest.console
        return file.read_text(errors="replace") if file.exists() else ""

    def cards(self) -> dict[str, Any]:
        """The host's cards by name."""
        argv = ["ip", "-n", HOST, "-json", "address", "show"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        return {card["ifname"]: card for card in json.loads(shown)}

    def host_is_reached(self) -> bool:
        """Whether the host answers at its own card, from outside."""
        return answers(LAN, LAN_ADDRESS)

    def watch_the_wire(self, stop: threading.Event) -> None:
        """Until `stop`: keep each magic packet, and give the machine power at the first one."""
        mac = next(iter(self.hardware.nics.values()))
        pattern = re.compile(b"\xff" * 6 + re.escape(bytes.fromhex(mac.replace(":", "")) * 16))
        with netns.entered(WIRE):
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        with listener:
            listener.bind(("port", ETH_P_ALL))
            listener.settimeout(0.2)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    frame = listener.recv(2048)
                    if pattern.search(frame):
                        self.packets.append(frame)
                        if self.guest.process.pid() is None:
                            self.guest.clear()
                            self.guest.start(self.hardware)

    def waits_off(self, seconds: float = 60) -> None:
        """Wait until the machine has no power."""
        deadline = time.monotonic() + seconds
        while self.guest.process.pid() is not None:
            assert time.monotonic() < deadline, self.console()[-3000:]
            time.sleep(0.2)


def answers(space: str, address: str) -> bool:
    """Whether an address takes or refuses a connection from a namespace."""
    try:
        with netns.entered(space), socket.create_connection((address, 9), 2):
            return True
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)


def document(power: dict[str, Any]) -> dict[str, Any]:
    """The shipped profile with one real machine, whose control node has the card."""
    made: dict[str, Any] = yaml.safe_load((PROJECT / "profiles/sim.yml").read_text())
    made |= {"name": NAME, "machines": "real", "power": power}
    made["control"]["links"]["cluster"] |= {"interface": CARD, "mac": CARD_MAC}
    (node, *_) = made["compute_nodes"]
    node["links"]["cluster"]["mac"] = "02:00:0a:4d:00:aa"
    made["compute_nodes"] = [node]
    return made


@contextlib.contextmanager
def cabled() -> Iterator[None]:
    """The namespaces and cables, for the body."""
    try:
        for space in (HOST, WIRE, LAN):
            netns.create(space)
        peer = ["type", "veth", "peer", "name"]
        netns.ip(
            HOST, "link", "add", CARD, "address", CARD_MAC, *peer, "port", "netns", WIRE
        )  # fmt: skip
        netns.ip(HOST, "address", "add", CARD_ADDRESS, "dev", CARD)
        netns.ip(WIRE, "link", "add", "br0", "type", "bridge")
        netns.ip(WIRE, "tuntap", "add", "dev", "tap0", "mode", "tap")
        for port in ("port", "tap0"):
            netns.ip(WIRE, "link", "set", port, "master", "br0", "up")
        netns.ip(WIRE, "link", "set", "br0", "up")
        netns.ip(HOST, "link", "add", "lan0", *peer, "eth0", "netns", LAN)
        netns.ip(HOST, "address", "add", f"{LAN_ADDRESS}/24", "dev", "lan0")
        netns.ip(LAN, "address", "add", f"{LAN_PEER}/24", "dev", "eth0")
        for space, link in ((HOST, CARD), (HOST, "lan0"), (LAN, "eth0")):
            netns.ip(space, "link", "set", link, "up")
        netns.ip(HOST, "route", "add", "default", "via", LAN_PEER)
        yield
    finally:
        for space in (HOST, WIRE, LAN):
            netns.delete(space)


@contextlib.contextmanager
def metal(root: Path) -> Iterator[Metal]:
    """The host with its cables, and the machine that waits for its packet."""
    profile = root / f"{NAME}.yml"
    state = root / "state"
    env = os.environ | {"ORCHESTRATE_STATE": str(state), "ORCHESTRATE_PROFILE": str(profile)}
    with cabled():
        hardware = VirtualHardware("metal", UEFI, 1 << 30, 2, {"tap0": "02:00:0a:4d:00:aa"})
        made = Metal(root, profile, env, Guest(root / "machine", WIRE), hardware)
        made.write({"driver": "wol"})
        register("pxe-sim", build("pxe-sim.minimal"))
        stop = threading.Event()
        thread = threading.Thread(target=made.watch_the_wire, args=(stop,))
        thread.start()
        try:
            yield made
        finally:
            stop.set()
            thread.join()
            made.guest.stop(0)
            made.run("down", ok=None)
