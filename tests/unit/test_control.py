"""From a laptop to a control host: two network namespaces with homes of their own, and a real sshd.

The checkout that is sent is a copy of this one. Its set-up is replaced: the real one installs
packages and makes an environment for minutes; here it points at the environment of the tests.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator import control as module
from orchestrator.cli.control import without_profile
from orchestrator.control import archive, digest_of, tree
from orchestrator.machines import netns

PROJECT = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
ADDRESS = {"laptop": "10.91.0.1", "control": "10.91.0.2"}
SPACES = {name: f"orchestrate-test-{name}" for name in ADDRESS}
#: A command line that no other process has.
LOOP = ("watch", "--interval", "0.517")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")


@dataclass
class Pair:
    """A laptop with the checkout, and a control host that its ssh reaches as `nuc`."""

    root: Path
    #: For sockets, whose paths have to be short.
    runtime: Path

    @property
    def checkout(self) -> Path:
        return self.root / "laptop/checkout"

    @property
    def there(self) -> Path:
        """Where the sync puts it, as seen from outside the control host's mounts."""
        return self.root / "control/orchestrate"

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


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    assert SSHD, "tools/setup.sh --tests installs it"
    pair = Pair(tmp_path, Path(tempfile.mkdtemp(prefix="ssh-")))
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
    (tmp_path / "laptop/.ssh/config").write_text(f"Host nuc\n HostName {ADDRESS['control']}\n")
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
    mount = f"{home_of('control', tmp_path)} && exec {SSHD} -D -e -f {tmp_path}/sshd_config"
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


def test_a_sync_brings_the_tree_and_the_second_one_nothing(pair: Pair) -> None:
    first = json.loads(pair.run("control", "sync", "--json").stdout)
    assert first["changed"] and first["host"] == "nuc"
    assert (pair.there / "flake.nix").read_bytes() == (pair.checkout / "flake.nix").read_bytes()
    assert os.access(pair.there / "tools/demo.sh", os.X_OK)
    assert not (pair.there / "laptop-state").exists()
    assert "nothing changed" in pair.run("control", "sync").stdout
    assert (pair.root / "control/set-ups").read_text() == "set up\n"
    # Nix takes from a checkout what git knows.
    seen = subprocess.run(["git", "-C", pair.there, "status", "--short"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert seen.stdout == ""


def test_what_is_removed_or_changed_here_is_so_there(pair: Pair) -> None:
    odd = pair.checkout / "profiles/a b; $(touch owned) 'x'.txt"
    odd.write_text("odd")
    pair.run("control", "sync")
    assert (pair.there / "profiles" / odd.name).read_text() == "odd"
    (pair.there / ".venv/kept").write_text("the environment stays")
    odd.unlink()
    (pair.checkout / "README.md").write_text("changed")
    pair.run("control", "sync")
    assert not (pair.there / "profiles" / odd.name).exists()
    assert (pair.there / "README.md").read_text() == "changed"
    assert (pair.there / ".venv/kept").exists()
    assert not list(pair.root.rglob("owned"))


def test_a_command_runs_there_with_its_output_and_exit_code(pair: Pair) -> None:
    listed = json.loads(pair.run("profile", "list", "--json", "--on-control").stdout)
    assert any("orchestrate/profiles/demo.yml" in row["path"] for row in listed)
    assert str(pair.checkout) not in json.dumps(listed)
    wrong = pair.run("--on-control", "profile", "check", "nosuch", ok=False)
    assert wrong.returncode == 2 and "nosuch" in wrong.stderr
    pair.run("profile", "use", "demo", "--on-control")
    assert (pair.root / "control-state/active-profile").exists()
    assert not (pair.root / "laptop-state/active-profile").exists()


def test_a_profile_that_names_its_host_sends_commands_there_by_itself(pair: Pair) -> None:
    done = pair.run("status", ok=False)
    assert done.returncode == 1
    assert "not built on this machine" in done.stderr  # said by the control host
    assert (pair.there / "flake.nix").exists()
    # What concerns no cluster is done here.
    assert str(pair.checkout) in pair.run("profile", "list", "--json").stdout


def test_a_profile_by_path_comes_along(pair: Pair) -> None:
    mine = pair.root / "mine.yml"
    text = (pair.checkout / "profiles/demo.yml").read_text()
    mine.write_text(text.replace("name: demo", "name: mine"))
    done = pair.run("profile", "show", "--json", "--profile", str(mine), "--on-control")
    assert json.loads(done.stdout)["profile"]["name"] == "mine"


def test_ctrl_c_ends_what_runs_there(pair: Pair) -> None:
    argv = pair.on_laptop([sys.executable, "-m", "orchestrator", *LOOP])
    process = subprocess.Popen(
        argv, env=pair.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "not built" in process.stdout.readline()  # it runs
        assert running_loops() != []
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert running_loops() == []


def running_loops() -> list[str]:
    """Process ids of the control host's side of LOOP, by its interpreter's words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[1:3] == ["-m", "orchestrator"] and tuple(words[3:6]) == LOOP:
            environment = (file.parent / "environ").read_bytes()
            if b"ORCHESTRATE_ON_CONTROL" in environment:
                found.append(file.parent.name)
    return found


def test_cmd_quotes_its_words_and_passes_streams(pair: Pair) -> None:
    pair.run("control", "sync")
    hostile = ["X; rm -rf ~", "$(id)", "a b", "'", "*", "--json"]
    done = pair.run("control", "cmd", "--", "printf", "%s\\n", *hostile)
    assert done.stdout.splitlines() == hostile
    assert pair.run("control", "cmd", "--", "cat", stdin="through").stdout == "through"
    assert pair.run("control", "cmd", "--", "sh", "-c", "exit 7", ok=False).returncode == 7
    assert pair.run("control", "cmd", "pwd").stdout == "/root/orchestrate\n"


def test_a_directory_that_no_sync_made_is_left_alone(pair: Pair) -> None:
    pair.there.mkdir()
    (pair.there / "thesis.txt").write_text("years of work")
    done = pair.run("control", "sync", ok=False)
    assert "was not made by a sync" in done.stderr and "control_host.path" in done.stderr
    assert (pair.there / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_sync_leaves_the_old_tree_or_the_new_one(pair: Pair) -> None:
    pair.run("control", "sync")
    # Cut off while it came: a half tree beside.
    (pair.root / "control/orchestrate.sync/new/half").mkdir(parents=True)
    (pair.checkout / "README.md").write_text("second")
    pair.run("control", "sync")
    assert (pair.there / "README.md").read_text() == "second" and not (pair.there / "half").exists()
    # Cut off between the two renames: the old tree is there under its other name.
    pair.there.rename(pair.root / "control/orchestrate.sync/before")
    (pair.checkout / "README.md").write_text("third")
    pair.run("control", "sync")
    assert (pair.there / "README.md").read_text() == "third"
    assert (pair.there / ".venv/bin/python").exists()


def test_an_unknown_host_key_is_refused(pair: Pair) -> None:
    other = pair.root / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    known = pair.root / "laptop/.ssh/known_hosts"
    known.write_text(f"{ADDRESS['control']} {other.with_suffix('.pub').read_text()}")
    done = pair.run("control", "sync", ok=False)
    assert "ssh nuc" in done.stderr and "ost key verification failed" in done.stderr
    assert not pair.there.exists()


def test_a_host_that_does_not_answer_is_named(pair: Pair) -> None:
    netns.ip(SPACES["control"], "link", "set", "eth0", "down")
    config = pair.root / "laptop/.ssh/config"
    config.write_text(config.read_text() + " ConnectTimeout 2\n")
    done = pair.run("status", ok=False)
    assert "nuc: ssh does not get there" in done.stderr


def test_a_failed_set_up_is_said_and_tried_again(pair: Pair) -> None:
    script = pair.checkout / "tools/setup.sh"
    right = script.read_text()
    script.write_text("#!/bin/sh\necho no room >&2; exit 9\n")
    done = pair.run("control", "sync", ok=False)
    assert "no room" in done.stderr and "exit code 9" in done.stderr
    script.write_text(right)
    pair.run("control", "sync")
    assert (pair.there / ".venv/bin/python").exists()


# Pure.


def test_the_digest_is_of_names_contents_and_what_may_run(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    before = digest_of({"a": file})
    assert digest_of({"b": file}) != before
    file.chmod(0o755)
    assert digest_of({"a": file}) != before
    file.chmod(0o644)
    os.utime(file, (1, 1))
    assert digest_of({"a": file}) == before
    assert archive({"a": file}) == archive({"a": file})


def test_without_git_what_never_belongs_there_is_left_out(tmp_path: Path) -> None:
    for name in ("flake.nix", ".venv/bin/python", "a/__pycache__/x.pyc", "profiles/x.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = dict(tree(tmp_path, tmp_path / "profiles/x.yml"))
    assert set(found) == {"flake.nix", "profiles/x.yml"}


def test_the_profile_is_named_by_a_variable_there() -> None:
    words = ["up", "--profile", "x", "--node", "1", "--profile=y", "--", "--profile", "z"]
    assert without_profile(words) == ["up", "--node", "1", "--", "--profile", "z"]
    assert shlex.split(module._sh("echo", "a b")) == ["sh", "-c", "echo", "sh", "a b"]
