"""What has left the profile: shown by a look, and removed by the next apply of its step."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.account import NAME, UID, Machine, machine
from support.agent import ask, state, statuses

from orchestrator.node import agent, agent_leaving
from orchestrator.node.differences import found
from orchestrator.node.resources import Directory, File, NetworkLink, Step, Sysctl, User
from orchestrator.node.state import NodeState
from orchestrator.provision.identity import AUTHORIZED_KEYS

SECOND = "orchestrate-trudy"
WAITING = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "scratch").mkdir()
    with machine(tmp_path / "scratch") as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def people(*names: str, uid: int = UID, key: str = "a key") -> NodeState:
    return NodeState(
        "node0",
        users=tuple(User(Step.BASE, name, uid + number) for number, name in enumerate(names)),
        directories=(Directory(Step.BASE, AUTHORIZED_KEYS),),
        files=tuple(File(Step.BASE, f"{AUTHORIZED_KEYS}/{name}", f"{key}\n") for name in names),
    )


def test_an_account_loses_its_keys_its_processes_and_its_name_and_its_home_is_roots(
    node: Machine,
) -> None:
    node.ask("apply", people(SECOND, NAME, uid=UID - 1).document())
    assert f"{UID}" in node.sh("id -u orchestrate-mallory")
    node.sh('echo data >"$1"; chown "$2" "$1"', f"/home/{NAME}/own", str(UID))
    left = people(SECOND, uid=UID - 1)

    differences = found(left, list(node.ask("look", left.document()).values()))
    assert [item.line for item in differences] == [
        f"file:{AUTHORIZED_KEYS}/{NAME}: left the profile: remove it",
        f"user:{NAME}: left the profile: delete the account (uid {UID}), end its processes; its"
        " home stays, for root only",
    ]
    with node.by_account(WAITING) as process:
        report = node.ask("apply", left.document())
        assert process.wait(10) != 0  # killed
    assert {name: each["status"] for name, each in report.items() if each.get("left")} == {
        f"file:{AUTHORIZED_KEYS}/{NAME}": "changed",
        f"user:{NAME}": "changed",
    }
    assert "no such user" in node.run("id", NAME, ok=False).stderr
    assert NAME not in node.sh("cat /etc/passwd /etc/shadow /etc/group")
    assert node.sh(f"ls {AUTHORIZED_KEYS}") == f"{SECOND}\n"
    assert node.sh(f"stat -c '%u %a' /home/{NAME}; cat /home/{NAME}/own") == "0 700\ndata\n"
    assert node.sh(f"id -u {SECOND}") == f"{UID - 1}\n"
    assert set(statuses(node.ask("apply", left.document())).values()) == {"unchanged"}

    # Who comes back has what was there.
    node.ask("apply", people(SECOND, NAME, uid=UID - 1).document())
    assert node.sh(f"stat -c %u /home/{NAME}; cat /home/{NAME}/own") == f"{UID}\ndata\n"


def test_another_name_for_the_same_uid_is_another_account(node: Machine) -> None:
    node.ask("apply", people(NAME).document())
    assert "failed" not in statuses(node.ask("apply", people(SECOND).document())).values()
    assert node.sh(f"getent passwd {UID}").startswith(f"{SECOND}:")


def test_an_account_of_the_image_is_not_taken_over(node: Machine) -> None:
    for verb in ("look", "apply"):
        said = node.ask(verb, people("daemon").document())["user:daemon"]["error"]
        assert said == "is an account of the image (uid 1): choose another name"
    assert node.sh("id -u daemon") == "1\n"


def test_a_key_that_left_is_out_of_the_file(node: Machine) -> None:
    node.ask("apply", people(NAME, key="one\ntwo").document())
    node.ask("apply", people(NAME, key="two").document())
    assert node.sh(f"cat {AUTHORIZED_KEYS}/{NAME}") == "two\n"


def test_a_file_is_removed_by_its_own_step_and_what_is_not_asked_about_stays(root: Path) -> None:
    both = NodeState(
        "node0",
        directories=(Directory(Step.BASE, "/etc/own"),),
        files=(File(Step.BASE, "/etc/own/base", "x"), File(Step.RAY, "/etc/own/ray", "x")),
    )
    for step in Step:
        ask("apply", root, both.only(step).document())
    (root / "etc/own/foreign").write_text("nobody asked for it")
    none = replace(both, files=())
    ray = none.only(Step.RAY)
    (gone,) = found(ray, list(ask("look", root, ray.document()).values()))
    assert gone.line == "file:/etc/own/ray: left the profile: remove it"
    ask("apply", root, none.only(Step.SERVING).document())
    assert (root / "etc/own/ray").exists()
    assert statuses(ask("apply", root, none.only(Step.RAY).document())) == {
        "file:/etc/own/ray": "changed"
    }
    assert sorted(path.name for path in (root / "etc/own").iterdir()) == ["base", "foreign"]
    assert ask("look", root, none.only(Step.RAY).document()) == {}
    ask("apply", root, none.document())
    # The directory stays: what is in it may be somebody's.
    assert [path.name for path in (root / "etc/own").iterdir()] == ["foreign"]


def test_what_was_removed_by_hand_already_is_only_forgotten(root: Path) -> None:
    ask("apply", root, state(File(Step.BASE, "/file", "x")))
    (root / "file").unlink()
    assert ask("look", root, state()) == {}
    assert ask("apply", root, state()) == {}
    assert agent.ThisNode(root).memory.get(agent_leaving.PLACED) == {}


def test_what_cannot_be_removed_is_told_and_tried_again(root: Path) -> None:
    ask("apply", root, state(File(Step.BASE, "/etc/file", "x")))
    (root / "etc").chmod(0o777)
    said = ask("apply", root, state())["file:/etc/file"]
    assert said["status"] == "failed" and "root does not act below it" in said["error"]
    (root / "etc").chmod(0o755)
    assert statuses(ask("apply", root, state())) == {"file:/etc/file": "changed"}
    assert not (root / "etc/file").exists()


def test_a_network_loses_its_file_and_its_addresses(root: Path, network: list[str]) -> None:
    file = "/etc/systemd/network/10-x.network"
    link = NetworkLink(Step.BASE, "x0", ("10.9.0.2/24", "10.9.1.2/24"), file, "[Match]\nName=x0\n")
    ask("apply", root, NodeState("node0", links=(link,)).document(), network)
    subprocess.run([*network, "ip", "address", "add", "10.9.0.9/24", "dev", "x0"], check=True)
    moved = replace(link, addresses=("10.9.1.2/24",), file="/etc/systemd/network/10-y.network")
    after = NodeState("node0", links=(moved,))
    differences = found(after, list(ask("look", root, after.document(), network).values()))
    assert [item.line for item in differences][:2] == [
        f"file:{file}: left the profile: remove it",
        "link:x0 10.9.0.2/24: left the profile: take the address 10.9.0.2/24 away",
    ]
    ask("apply", root, after.document(), network)
    shown = subprocess.run(
        [*network, "ip", "-o", "-4", "address", "show", "x0"], capture_output=True, check=True
    ).stdout
    assert b"10.9.0.2/24" not in shown and b"10.9.1.2/24" in shown
    assert b"10.9.0.9/24" in shown  # which no profile had
    assert [path.name for path in (root / "etc/systemd/network").iterdir()] == ["10-y.network"]
    assert set(statuses(ask("apply", root, after.document(), network)).values()) == {"unchanged"}


def test_a_kernel_setting_is_what_it_was(root: Path, network: list[str]) -> None:
    """The network's own: this machine's stays as it is. `root` has only the agent's notes."""
    path, name = "/proc/sys/net/ipv4/tcp_rmem", "net.ipv4.tcp_rmem"
    (root / "proc").symlink_to("/proc")
    before = subprocess.run([*network, "cat", path], capture_output=True, check=True).stdout
    for value in ("4096 131072 8388608", "4096 131072 9388608"):
        wanted = NodeState("node0", sysctls=(Sysctl(Step.BASE, name, value),))
        ask("apply", root, wanted.document(), network)
    (gone,) = found(NodeState("node0"), list(ask("look", root, state(), network).values()))
    assert gone.line == (
        f"sysctl:{name}: left the profile: set 4096 131072 9388608 back to what it was"
    )
    ask("apply", root, state(), network)
    assert subprocess.run([*network, "cat", path], capture_output=True, check=True).stdout == before


def test_killed_after_the_note_the_next_run_removes_it(root: Path) -> None:
    """What is asked for is noted before it is made."""
    node = agent.ThisNode(root)
    node.leaving.expect(state(File(Step.BASE, "/file", "x")))
    (root / "file").write_text("x")  # then it is killed
    assert statuses(ask("apply", root, state())) == {"file:/file": "changed"}
    assert not (root / "file").exists()


def test_processes_that_are_zombies_already_hold_nothing_up(node: Machine) -> None:
    node.ask("apply", people(NAME).document())
    parent = (
        "import os, time, sys\nif os.fork() == 0: os._exit(0)\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    with node.by_account(parent):
        report = node.ask("apply", people().document())
    assert report[f"user:{NAME}"]["status"] == "changed", report
