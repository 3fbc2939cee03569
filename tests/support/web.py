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

from orchestrator.core.run import run
from orchestrator.node.paths import FILES_ROOT, LASTING
from orchestrator.node.state import NodeState
from orchestrator.profile import Profile
from orchestrator.provision.machines import netns
from orchestrator.provision.netboot.state import LAYERS, SOCKET

SBIN = "/usr/sbin:/usr/bin:/usr/local/sbin"
NGINX, NFT = shutil.which("nginx", path=SBIN), shutil.which("nft", path=SBIN)
SPACE = "nbtest-web"


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


def start(profile: Profile, config: str, home: Path) -> subprocess.Popen[bytes]:
    """nginx with a configuration as it is on a node, its paths moved below ``home``."""
    for node in profile.nodes:
        address = f"{profile.boot_link(node).address}/32"
        run(["ip", "-n", SPACE, "address", "add", address, "dev", "lo"])
    for path, place in ((FILES_ROOT, "files"), (LASTING, ""), (LAYERS, "layers")):
        config = config.replace(path, str(home / place))
    (home / "node.conf").write_text(config.replace(SOCKET, str(home / "socket")))
    main = home / "nginx.conf"
    main.write_text(
        f"user root; worker_processes 1; pid {home}/pid; error_log {home}/error.log;\n"
        f"events {{}} http {{ include {home}/node.conf; }}\n"
    )
    with netns.entered(SPACE):
        run([str(NGINX), "-t", "-c", main])
        return subprocess.Popen([str(NGINX), "-c", main, "-g", "daemon off;"])


def until_it_listens(web: Web) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            web.get("/")
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError((web.root / "error.log").read_text())
