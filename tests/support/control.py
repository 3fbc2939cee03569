"""A laptop and a control host: two network namespaces with homes of their own, and a real sshd.

The checkout that is sent is a copy of this one. Its set-up is replaced: the real one installs
packages and makes an environment for minutes; here it points at the environment of the tests.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.provision.machines import netns
from support import PROJECT

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
ADDRESS = {"laptop": "10.91.0.1", "control": "10.91.0.2"}
#: Files of tests run beside each other.
SPACES = {name: f"orchestrate-test-{os.getpid()}-{name}" for name in ADDRESS}
#: An account of the control host that is not root's, and may use sudo.
OTHER, OTHER_ID, OTHER_HOME = "builder", 4711, "/mnt"


@dataclass
class Pair:
    """A laptop with the checkout, and a control host that its ssh reaches as `nuc`."""

    root: Path
    #: For sockets, whose paths have to be short.
    runtime: Path
    #: Whose account the laptop's ssh uses.
    user: str = "root"

    @property
    def checkout(self) -> Path:
        return self.root / "laptop/checkout"

    @property
    def there(self) -> Path:
        """Where the sync puts it, as seen from outside the control host's mounts."""
        return self.home / "orchestrate"

    @property
    def home(self) -> Path:
        """The account's home there, likewise."""
        return self.root / ("control" if self.user == "root" else "other")

    def on_laptop(self, argv: list[str]) -> list[str]:
        """On the laptop's network, with its home in place of root's."""
        mount = f'{home_of("laptop", self.root)} && cd {self.checkout} && exec "$@"'
        enter = ["ip", "netns", "exec", SPACES["laptop"], "unshare", "--mount"]
        return [*enter, "sh", "-c", mount, "sh", *argv]

    @property
    def env(self) -> dict[str, str]:
        own = {
            "HOME": "/root",
            "ORCHESTRATE_CHECKOUT": str(self.checkout),
            "ORCHESTRATE_STATE": str(self.root / "laptop-state"),
            "ORCHESTRATE_PROFILE": "demo",
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_RUNTIME_DIR": str(self.runtime),
        }
        return {key: value for key, value in os.environ.items() if key[:4] != "SSH_"} | own

    def run(
        self, *words: str, ok: bool | None = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = self.on_laptop([sys.executable, "-m", "orchestrator", *words])
        done = subprocess.run(
            argv, env=self.env, capture_output=True, text=True, timeout=120, check=False,
            input=stdin,
        )  # fmt: skip
        assert ok is None or (done.returncode == 0) == ok, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done


def home_of(name: str, root: Path) -> str:
    """Mounts a home over root's, which may have the tests' Python in it."""
    layers = f"lowerdir=/root,upperdir={root}/{name},workdir={root}/{name}-work"
    return f"mkdir -p {root}/{name}-work && mount -t overlay -o {layers} home /root"


def checkout_at(home: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, text=True,
        capture_output=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (PROJECT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, home / name)
    (home / "tools/setup.sh").write_text(
        "#!/bin/sh\nmkdir -p .venv/bin\n"
        f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"\\n' >.venv/bin/python\n"
        "chmod +x .venv/bin/python\necho set up >>../set-ups\n"
    )
    shipped = (PROJECT / "profiles/sim.yml").read_text()
    demo = shipped.replace("name: sim\n", "name: demo\ncontrol_host: { ssh: nuc }\n", 1)
    (home / "profiles/demo.yml").write_text(demo)
    subprocess.run(["git", "init", "-q"], cwd=home, check=True)


def account_beside_root(root: Path) -> str:
    """Makes OTHER's files; returns the mounts that give the account to a namespace."""
    entries = {
        "passwd": f"{OTHER}:x:{OTHER_ID}:{OTHER_ID}::{OTHER_HOME}:/bin/sh\n",
        "group": f"{OTHER}:x:{OTHER_ID}:\n",
        "shadow": f"{OTHER}:*:20000:0:99999:7:::\n",
        "sudoers": f"{OTHER} ALL=(ALL) NOPASSWD: ALL\n",
    }
    mounts = []
    for name, entry in entries.items():
        file = root / name
        shutil.copy(f"/etc/{name}", file)
        file.write_text(file.read_text() + entry)
        mounts.append(f"mount --bind {file} /etc/{name}")
    shutil.copytree(root / "control/.ssh", root / "other/.ssh")
    for path in (root / "other", *(root / "other").rglob("*")):
        os.chown(path, OTHER_ID, OTHER_ID)
    return " && ".join([*mounts, f"mount --bind {root}/other {OTHER_HOME}"])


@contextmanager
def pair_at(tmp_path: Path, user: str = "root") -> Iterator[Pair]:
    """The two, with the laptop's ssh knowing the control host as `nuc`."""
    assert SSHD, "tools/setup.sh --tests installs it"
    pair = Pair(tmp_path, Path(tempfile.mkdtemp(prefix="ssh-")), user)
    for directory in ("laptop/.ssh", "control/.ssh", "laptop/checkout"):
        (tmp_path / directory).mkdir(parents=True, mode=0o700)
    checkout_at(pair.checkout)
    for key in (tmp_path / "host", tmp_path / "laptop/.ssh/id_ed25519"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(argv, check=True)
    public = (tmp_path / "laptop/.ssh/id_ed25519.pub").read_text()
    (tmp_path / "control/.ssh/authorized_keys").write_text(public)
    known = f"{ADDRESS['control']} {(tmp_path / 'host.pub').read_text()}"
    (tmp_path / "laptop/.ssh/known_hosts").write_text(known)
    (tmp_path / "laptop/.ssh/config").write_text(
        f"Host nuc\n HostName {ADDRESS['control']}\n User {user}\n"
    )
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/host\nListenAddress {ADDRESS['control']}\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"SetEnv ORCHESTRATE_STATE={tmp_path}/control-state\n"
    )
    for space in SPACES.values():
        netns.delete(space)
        netns.create(space)
    peer = ["peer", "name", "eth0", "netns", SPACES["control"]]
    netns.ip(SPACES["laptop"], "link", "add", "eth0", "type", "veth", *peer)
    for name, space in SPACES.items():
        netns.ip(space, "address", "add", f"{ADDRESS[name]}/24", "dev", "eth0")
        netns.ip(space, "link", "set", "eth0", "up")
    Path("/run/sshd").mkdir(exist_ok=True)
    mount = home_of("control", tmp_path)
    if user != "root":
        mount += f" && {account_beside_root(tmp_path)}"
    mount += f" && exec {SSHD} -D -e -f {tmp_path}/sshd_config"
    argv = ["ip", "netns", "exec", SPACES["control"], "unshare", "--mount", "sh", "-c", mount]
    clean = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": "/root"}
    with (tmp_path / "sshd.log").open("w") as log:
        sshd = subprocess.Popen(argv, env=clean, stdout=log, stderr=log)
    try:
        wait_until_it_answers()
        yield pair
    finally:
        for path in pair.runtime.glob("*/*"):
            subprocess.run(["ssh", "-O", "exit", "-S", path, "x"], capture_output=True, check=False)
        shutil.rmtree(pair.runtime)
        sshd.terminate()
        sshd.wait(30)
        for space in SPACES.values():
            netns.delete(space)


def wait_until_it_answers() -> None:
    end = time.monotonic() + 30
    while True:
        with netns.entered(SPACES["laptop"]):
            try:
                socket.create_connection((ADDRESS["control"], 22), timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
