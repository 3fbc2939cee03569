"""The control node's web server: a real nginx in a network namespace, and who asks it."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.front import FRONT_KEY, ROUTER_SOCKET
from orchestrator.core.run import run
from orchestrator.node.paths import FILES_ROOT
from orchestrator.node.state import NodeState
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns
from orchestrator.provision.netboot.state import JOURNAL, LAYERS, SOCKET

SBIN = "/usr/sbin:/usr/bin:/usr/local/sbin"
NGINX, NFT = shutil.which("nginx", path=SBIN), shutil.which("nft", path=SBIN)
SPACE = "nbtest-web"
#: A web server's configuration, or a part of one.
KEY_CONFIG = Path(FRONT_KEY).name
CONFIGS = ("nginx.conf", "files.conf", KEY_CONFIG)


def text(state: NodeState, name: str) -> str:
    """The content of a node's file, by its name."""
    return next(file.content or "" for file in state.files if Path(file.path).name == name)


@dataclass
class Web:
    """A web server at an address, with its files below ``root``."""

    address: str
    root: Path

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body; the path goes out as it stands, dots and all."""
        host, port = self.address.split(":")
        with (
            netns.entered(SPACE),
            closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection,
        ):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def log(self) -> list[dict[str, object]]:
        lines = (self.root / "boot-access.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def configured(state: NodeState, home: Path) -> list[Path]:
    """A node's web servers' configurations as they are there, their paths moved below ``home``."""
    places = [(file.path, home / Path(file.path).name) for file in state.files]
    places = [(path, place) for path, place in places if place.name in CONFIGS]
    moved = [*places, (FILES_ROOT, home / "files"), (LAYERS, home / "layers")]
    moved += [
        (ROUTER_SOCKET, home / "router"),
        (SOCKET, home / "socket"),
        (JOURNAL, home / "boot-access.jsonl"),
        ("/run/", home),
    ]
    for path, place in places:
        config = text(state, Path(path).name).replace("user www-data;", "user root;")
        config = config.replace("error_log stderr", f"error_log {place}.log")
        for before, after in moved:
            config = config.replace(before, f"{after}/" if before.endswith("/") else str(after))
        place.write_text(config)
    return [place for _, place in places if place.name != KEY_CONFIG]


def start(profile: Profile, state: NodeState, home: Path) -> list[subprocess.Popen[bytes]]:
    """A node's web servers."""
    for node in profile.nodes:
        address = f"{profile.boot_link(node).address}/32"
        run(["ip", "-n", SPACE, "address", "add", address, "dev", "lo"])
    return serve(SPACE, state, home)


def serve(space: str, state: NodeState, home: Path) -> list[subprocess.Popen[bytes]]:
    """A node's web servers in a namespace that has its addresses."""
    with netns.entered(space):
        configs = configured(state, home)
        for config in configs:
            run([str(NGINX), "-t", "-c", config])
        return [
            subprocess.Popen([str(NGINX), "-c", config, "-g", "daemon off;"]) for config in configs
        ]


def stop(servers: list[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        server.terminate()
        server.wait(10)


def until_it_listens(web: Web) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            web.get("/")
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError([log.read_text() for log in web.root.glob("*.conf.log")])
