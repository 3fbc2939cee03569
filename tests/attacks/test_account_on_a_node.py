"""The door: an account on a node, whose owner wants to be root there.

The agent runs as root, while the account swaps what root will meet in its home directory for a
link, or for another name of a file that is root's. The agent has to leave root's files as they are,
and has to end.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from support.account import NAME, UID, Machine, machine, until
from support.agent import statuses
from support.golden import GOLDEN, context
from support.sshd import sshd_program

from orchestrator.cluster.desired import desired
from orchestrator.models.profiles import load
from orchestrator.node.resources import Directory, File, Step, User
from orchestrator.node.state import NodeState
from orchestrator.node.trust import HostIdentity, Secret
from orchestrator.provision.identity import boot_files

HOME = f"/home/{NAME}"
KEYS = f"{HOME}/.ssh/authorized_keys"
#: Root's: in /etc, and on the file system of the homes, where a second name could be made.
SHADOW, SECRET = "/etc/shadow", "/home/secret"
#: Seconds that an attack goes on.
PATIENCE = 4.0

#: Waits until root has looked at what is right (inotify), then swaps it for a link or for another
#: name of a file; later back, with a mode that root will mend. What root replaced, it puts there
#: anew. Its words: what is right, what is swapped in, where a link leads, and spare names.
SWAPPING = """
import contextlib, ctypes, os, stat, sys, time
right, wrong, target, *spare = sys.argv[1:]
libc = ctypes.CDLL(None)
names = right.encode(), wrong.encode()
swap = lambda: libc.renameat2(-100, names[0], -100, names[1], 2)
def evil(path):
    found = os.lstat(path)
    return stat.S_ISLNK(found.st_mode) or stat.S_ISREG(found.st_mode) and found.st_nlink > 1
events = libc.inotify_init1(0)
libc.inotify_add_watch(events, os.path.dirname(right).encode(), 0x10)  # read, and closed
print("ready", flush=True)
while os.read(events, 4096):
    swap()
    time.sleep(0.02)
    with contextlib.suppress(OSError):
        if evil(right):
            swap()
        elif not evil(wrong) and spare:
            os.rename(spare.pop(), wrong)
        elif not evil(wrong):
            os.unlink(wrong)
            os.symlink(target, wrong)
        os.chmod(right, os.lstat(right).st_mode | 0o044)
"""


def of_profile() -> NodeState:
    """What a profile's state says of the account."""
    profile = load(GOLDEN / "sim/profile.yml")
    account = profile.users.accounts[0].model_copy(update={"name": NAME, "uid": UID})
    users = profile.users.model_copy(update={"service": NAME, "accounts": (account,)})
    profile = profile.model_copy(update={"users": users})
    whole = desired(profile, profile.compute_nodes[0], context(profile))
    files = tuple(file for file in whole.files if NAME in file.path)
    assert files
    parents = {str(parent) for file in files for parent in Path(file.path).parents}
    return replace(
        whole,
        sysctls=(),
        links=(),
        directories=tuple(each for each in whole.directories if each.path in parents),
        files=files,
        units=(),
    )


def of_home() -> NodeState:
    """A document that has root act in the home directory, as no profile's does any more."""
    return NodeState(
        "node0",
        users=(User(Step.BASE, NAME, UID),),
        directories=(Directory(Step.BASE, f"{HOME}/.ssh", owner=NAME, group=NAME, mode="0700"),),
        files=(File(Step.BASE, KEYS, "a key\n", owner=NAME, group=NAME, mode="0600"),),
    )


@dataclass(frozen=True)
class LetIn:
    """A key, and whether it opens the account over SSH now."""

    key: str
    opens: Callable[[], bool]


STATES = {"of_profile": of_profile, "of_home": of_home}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Machine]:
    """A machine with the account, whose ~/.ssh is there, and with secrets of root."""
    with machine(tmp_path) as made:
        made.ask("apply", NodeState("node0", users=(User(Step.BASE, NAME, UID),)).document())
        made.sh(
            'umask 077; echo of root >"$1"; mkdir "$2/.ssh"; chown -R "$3:$3" "$2"',
            *(SECRET, HOME, str(UID)),
        )
        yield made


def keys_are_right(node: Machine, state: NodeState) -> None:
    """The account's file is there already: only its mode is wrong."""
    content = next(file.content for file in state.files if file.content) or ""
    script = 'printf %s "$1" >"$2"; chown "$3:$3" "$2"; chmod 644 "$2"'
    node.sh(script, content, KEYS, str(UID))


def run_beside(node: Machine, state: NodeState, *words: str) -> list[dict[str, Any]]:
    """Run the agent again and again beside the attack, for as long as nothing of root's changed."""
    before = node.facts(SHADOW, SECRET, "/etc")
    reports = []
    with node.by_account(SWAPPING, *words):
        for _ in until(PATIENCE):
            reports.append(node.ask("apply", state.document()))
            assert node.facts(SHADOW, SECRET, "/etc") == before
    return reports


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", [SHADOW, SECRET])
def test_a_link_swapped_in_between_gives_nothing_away(
    node: Machine, state: str, target: str
) -> None:
    wanted = STATES[state]()
    keys_are_right(node, wanted)
    node.sh('ln -s "$1" "$2/other"; chown -h "$3:$3" "$2/other"', target, HOME, str(UID))
    assert run_beside(node, wanted, KEYS, f"{HOME}/other", target)


@pytest.mark.parametrize("state", STATES)
def test_a_second_name_of_a_file_swapped_in_gives_nothing_away(node: Machine, state: str) -> None:
    """Where the kernel lets an account make one; here it is made for it."""
    wanted = STATES[state]()
    keys_are_right(node, wanted)
    spare = [f"{HOME}/spare-{number}" for number in range(50)]
    node.sh('for name; do ln /home/secret "$name"; done', f"{HOME}/other", *spare)
    assert run_beside(node, wanted, KEYS, f"{HOME}/other", "/none", *spare)


@pytest.mark.parametrize("state", STATES)
def test_a_directory_swapped_for_a_link_gives_nothing_away(node: Machine, state: str) -> None:
    wanted = STATES[state]()
    node.sh('ln -s /etc "$1/other"; chown -h "$2:$2" "$1/other"', HOME, str(UID))
    assert run_beside(node, wanted, f"{HOME}/.ssh", f"{HOME}/other", "/etc")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", [".authorized_keys.new", "authorized_keys"])
def test_a_pipe_does_not_hold_the_agent(node: Machine, state: str, name: str) -> None:
    wanted = STATES[state]()
    node.sh('mkfifo "$1"; chown "$2:$2" "$1"', f"{HOME}/.ssh/{name}", str(UID))
    report = node.ask("apply", wanted.document())  # it ends, or this raises TimeoutExpired
    assert set(report) == {
        f"{kind}:{each}"
        for kind, names in (
            ("user", [NAME]),
            ("directory", [each.path for each in wanted.directories]),
            ("file", [each.path for each in wanted.files]),
        )
        for each in names
    }


def test_root_refuses_to_act_below_what_an_account_can_change(node: Machine) -> None:
    looked = node.ask("look", of_home().document())
    report = node.ask("apply", of_home().document())
    for name in (f"directory:{HOME}/.ssh", f"file:{KEYS}"):
        assert looked[name]["changes"] == ["unsafe"]
        assert report[name]["status"] in ("failed", "skipped")
    said = report[f"directory:{HOME}/.ssh"]["error"]
    assert said == f"{HOME} belongs to {NAME}: root does not act below it"


def test_what_everybody_can_write_to_is_refused_too(node: Machine) -> None:
    node.sh("mkdir -m 1777 /home/shared")
    wanted = NodeState("node0", files=(File(Step.BASE, "/home/shared/file", "x"),)).document()
    said = node.ask("apply", wanted)["file:/home/shared/file"]["error"]
    assert said == "/home/shared can be written by others (mode 1777): root does not act below it"


def test_the_same_in_a_directory_of_root_is_done(node: Machine) -> None:
    """What is refused above is refused for whose the directory is."""
    node.ask("apply", of_profile().document())
    assert set(statuses(node.ask("apply", of_profile().document())).values()) == {"unchanged"}
    (keys,) = (file.path for file in of_profile().files)
    node.sh('mkfifo "$(dirname "$1")/.$(basename "$1").new"', keys)  # as if a run had left it
    node.sh('chmod 600 "$1"; echo another >>"$1"', keys)
    assert statuses(node.ask("apply", of_profile().document()))[f"file:{keys}"] == "changed"
    assert node.sh('stat -c "%U %a" "$1"', keys) == "root 644\n"


def test_files_with_a_second_name_are_replaced_not_changed(node: Machine) -> None:
    wanted = NodeState("node0", files=(File(Step.BASE, "/home/file", "x", mode="0644"),))
    node.sh('printf x >"$1"; chmod 600 "$1"; ln "$1" /home/file', "/home/other-name")
    found = node.ask("look", wanted.document())["file:/home/file"]["found"]
    assert found["content"] == "2 hard links"
    node.ask("apply", wanted.document())
    assert node.sh("stat -c '%a %h' /home/file /home/other-name") == "644 1\n600 1\n"


@pytest.fixture
def let_in(node: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LetIn]:
    """The machine's sshd, with what a node gets at boot, and a key that nobody knows yet."""
    program = sshd_program()
    home = tmp_path_factory.mktemp("ssh")
    authority = home / "host_ca"
    profile = load(GOLDEN / "sim/profile.yml")
    for key in (home / "host", home / "user", authority):
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True)
    sign = [
        "ssh-keygen",
        "-qs",
        str(authority),
        "-I",
        "node",
        "-h",
        "-n",
        "node",
        f"{home}/host.pub",
    ]
    subprocess.run(sign, check=True)
    identity = HostIdentity(
        Secret((home / "host").read_text()),
        (home / "host.pub").read_text(),
        (home / "host-cert.pub").read_text(),
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = boot_files(profile, profile.compute_nodes[0], identity, "")
    for path, file in given.items():
        if path.startswith("/etc/ssh/"):
            write = 'mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"; chmod "$3" "$1"'
            node.sh(write, path, file.content, f"{file.mode:o}")
    (config,) = (path for path in given if path.startswith("/etc/ssh/sshd_config.d/"))
    node.sh('sed -i "s/^ListenAddress.*/ListenAddress 127.0.0.1/" "$1"; mkdir /run/sshd', config)
    argv = [*node.inside, program, "-D", "-f", config, "-p", str(port), "-o", "PidFile=none"]
    server = subprocess.Popen([*argv, "-o", "UsePAM=yes"], stderr=subprocess.DEVNULL)
    (home / "known").write_text(f"@cert-authority * {(home / 'host_ca.pub').read_text()}")
    options = {
        "UserKnownHostsFile": home / "known",
        "HostKeyAlias": "node",
        "IdentityFile": home / "user",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    words = [f"-o{name}={value}" for name, value in options.items()]
    log_in = ["ssh", "-F", "none", *words, "-p", str(port), f"{NAME}@127.0.0.1", "id", "-un"]

    def opens() -> bool:
        done = subprocess.run(log_in, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout.strip() in ("", NAME)
        return done.returncode == 0

    until_it_listens(port)
    try:
        yield LetIn((home / "user.pub").read_text(), opens)
    finally:
        server.terminate()
        server.wait(10)


def until_it_listens(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_only_the_profiles_keys_open_an_account_and_none_once_it_has_left(
    node: Machine, let_in: LetIn
) -> None:
    node.ask("apply", of_profile().document())
    # The account cannot let others in, nor keep itself a way back.
    node.sh('printf %s "$1" >"$2"; chown "$3:$3" "$2"; chmod 600 "$2"', let_in.key, KEYS, str(UID))
    assert not let_in.opens()
    wanted = of_profile()
    keys = tuple(replace(file, content=let_in.key) for file in wanted.files)
    node.ask("apply", replace(wanted, files=keys).document())
    assert let_in.opens()
    node.ask("apply", replace(wanted, files=(), users=()).document())
    assert not let_in.opens()
