"""The agent in a temporary root, as the very process that a node runs (users and units need a
node: tests/sim/test_agent.py)."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agent import MODEL, ask, serving_model, state, statuses
from support.killing import KILLED

from orchestrator.node import agent, agent_base, agent_leaving, agent_system
from orchestrator.node.agent_program import program
from orchestrator.node.resources import Directory, File, NetworkLink, Step, Sysctl, User
from orchestrator.node.state import NodeState


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with serving_model(tmp_path / "served") as url:
        yield url


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def example(server: str, motto: str = "plain\n") -> dict[str, Any]:
    digest = hashlib.sha256(MODEL).hexdigest()
    return state(
        Directory(Step.BASE, "/etc/own", mode="0750"),
        File(Step.BASE, "/etc/own/motto", motto),
        File(Step.BASE, "/etc/own/key", "hidden\n", mode="0600", secret=True),
        File(Step.BASE, "/var/lib/m/x/model", url=f"{server}/model", sha256=digest),
    )


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """What is there, but for the agent's own notes."""
    own = root / "run"
    return {
        str(path.relative_to(root)): (
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
        if own not in (path, *path.parents)
    }


def test_cold_then_unchanged(root: Path, server: str) -> None:
    wanted = example(server)
    assert set(statuses(ask("apply", root, wanted)).values()) == {"changed"}
    assert (root / "var/lib/m/x/model").read_bytes() == MODEL
    assert (root / "etc/own/key").stat().st_mode & 0o777 == 0o600
    assert (root / "etc/own").stat().st_mode & 0o777 == 0o750
    before = tree(root)
    assert set(statuses(ask("apply", root, wanted)).values()) == {"unchanged"}
    assert tree(root) == before


def test_look_changes_nothing_and_says_what_differs(root: Path, server: str) -> None:
    report = ask("look", root, example(server))
    assert {tuple(entry["changes"]) for entry in report.values()} == {("create",)}
    assert list(root.iterdir()) == []

    ask("apply", root, example(server))
    (root / "etc/own/key").write_text("another\n")
    (root / "etc/own/motto").chmod(0o600)
    report = ask("look", root, example(server, motto="new\n"))
    assert report["file:/etc/own/motto"]["changes"] == ["content", "mode"]
    assert report["file:/etc/own/motto"]["current"] == "plain\n"
    assert report["file:/etc/own/key"]["changes"] == ["content"]
    assert "current" not in report["file:/etc/own/key"]
    assert report["file:/var/lib/m/x/model"]["changes"] == []


def test_only_what_differs_is_changed(root: Path, server: str) -> None:
    ask("apply", root, example(server))
    inode = (root / "etc/own/key").stat().st_ino
    report = statuses(ask("apply", root, example(server, motto="new\n")))
    assert [name for name, status in report.items() if status == "changed"] == [
        "file:/etc/own/motto"
    ]
    assert (root / "etc/own/motto").read_text() == "new\n"
    assert (root / "etc/own/key").stat().st_ino == inode


def test_a_download_that_was_touched_since_is_noticed(root: Path, server: str) -> None:
    ask("apply", root, example(server))
    model = root / "var/lib/m/x/model"
    model.write_bytes(MODEL[:-1] + b"!")
    assert ask("look", root, example(server))["file:/var/lib/m/x/model"]["changes"] == ["content"]
    ask("apply", root, example(server))
    assert model.read_bytes() == MODEL


def test_a_download_with_the_wrong_hash_is_not_kept(root: Path, server: str) -> None:
    wanted = state(
        File(Step.BASE, "/srv/model", url=f"{server}/model", sha256="0" * 64),
        File(Step.BASE, "/srv/missing", url=f"{server}/none", sha256="0" * 64),
        File(Step.BASE, "/srv/other", "kept going\n"),
    )
    report = ask("apply", root, wanted)
    assert statuses(report) == {
        "file:/srv/model": "failed",
        "file:/srv/missing": "failed",
        "file:/srv/other": "changed",
    }
    assert hashlib.sha256(MODEL).hexdigest() in report["file:/srv/model"]["error"]
    assert "404" in report["file:/srv/missing"]["error"]
    assert [path.name for path in (root / "srv").iterdir()] == ["other"]


def test_a_download_ends_with_the_first_byte_too_many(root: Path, server: str) -> None:
    digest = hashlib.sha256(MODEL).hexdigest()
    for size, status in ((len(MODEL) - 1, "failed"), (len(MODEL), "changed")):
        file = File(Step.BASE, "/srv/model", url=f"{server}/model", sha256=digest, size=size)
        report = ask("apply", root, state(file))
        assert statuses(report) == {"file:/srv/model": status}
        assert (root / "srv/model").exists() is (status == "changed")
        assert (status == "changed") or "larger than" in report["file:/srv/model"]["error"]


def test_what_depends_on_a_failure_is_skipped_and_the_rest_is_done(root: Path) -> None:
    (root / "blocked").write_text("a file where a directory should be\n")
    wanted = state(
        Directory(Step.BASE, "/blocked"),
        File(Step.BASE, "/blocked/below", "x"),
        File(Step.BASE, "/owned", "x", owner="nobody-has-this-name"),
        File(Step.BASE, "/free", "x"),
    )
    report = ask("apply", root, wanted)
    assert statuses(report) == {
        "directory:/blocked": "failed",
        "file:/blocked/below": "skipped",
        "file:/owned": "failed",
        "file:/free": "changed",
    }
    assert report["file:/blocked/below"]["error"] == "needs directory:/blocked"
    assert "nobody-has-this-name" in report["file:/owned"]["error"]


def test_a_link_is_replaced_not_followed(root: Path) -> None:
    target = root / "target"
    target.write_text("keep\n")
    (root / "link").symlink_to(target)
    ask("apply", root, state(File(Step.BASE, "/link", "new\n")))
    assert target.read_text() == "keep\n"
    assert not (root / "link").is_symlink()
    assert (root / "link").read_text() == "new\n"


def test_killed_at_any_step_and_run_again_it_converges(tmp_path: Path, server: str) -> None:
    wanted = example(server)
    reference = tmp_path / "reference"
    reference.mkdir()
    ask("apply", reference, wanted)
    for at in range(1, 200):
        root = tmp_path / f"killed-{at}"
        root.mkdir()
        request = json.dumps({"verb": "apply", "root": str(root), "state": wanted})
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", KILLED, str(at), program()],
            input=request.encode(),
            capture_output=True,
            check=False,
            timeout=60,
        )
        for path, (_, content) in tree(root).items():
            if Path(path).name in ("motto", "key", "model"):
                assert content == tree(reference)[path][1], f"half a file after a kill at {at}"
        ask("apply", root, wanted)
        assert tree(root) == tree(reference), f"killed at {at}"
        if done.returncode != -signal.SIGKILL:
            break
    assert done.returncode == 0, done.stderr
    assert at > 10


def test_a_second_agent_does_not_run_beside_the_first(root: Path) -> None:
    source = program()
    impatient = source.replace(f"LOCK_WAIT_S = {agent.LOCK_WAIT_S}", "LOCK_WAIT_S = 0.0")
    assert impatient != source
    request = {"verb": "apply", "root": str(root), "state": state(File(Step.BASE, "/a", "x"))}
    argv = [sys.executable, "-I", "-S", "-c", impatient]
    with agent.alone(root):
        done = subprocess.run(
            argv, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert "still active" in done.stderr
    assert not (root / "a").exists()
    subprocess.run(argv, input=json.dumps(request), capture_output=True, text=True, check=True)
    assert (root / "a").read_text() == "x"


def test_an_account_that_the_node_lacks_is_a_difference(root: Path) -> None:
    missing = User(Step.BASE, "nobody-has-this-name", 59999)
    document = NodeState("node0", users=(missing,)).document()
    assert ask("look", root, document)["user:nobody-has-this-name"]["changes"] == ["create"]


def test_a_failure_that_nobody_foresaw_is_reported(root: Path) -> None:
    wanted = state(File(Step.BASE, "/bad", "x"), File(Step.BASE, "/good", "x"))
    wanted["files"][0]["mode"] = "rwx"
    report = ask("apply", root, wanted)
    assert statuses(report) == {"file:/bad": "failed", "file:/good": "changed"}
    assert "ValueError" in report["file:/bad"]["error"]


@pytest.fixture
def endless() -> Iterator[str]:
    """A server that never gives the second half."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        accepted = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    accepted.append(connection)
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("how", ["time", "signal"])
def test_a_report_comes_also_from_a_run_that_is_stopped(root: Path, endless: str, how: str) -> None:
    wanted = state(
        File(Step.BASE, "/first", "x"),
        File(Step.BASE, "/held", url=f"{endless}/held", sha256="0" * 64),
        File(Step.BASE, "/later", "x"),
    )
    request = {"verb": "apply", "root": str(root), "state": wanted}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request | ({"limit_s": 2} if how == "time" else {})))
    process.stdin.close()
    process.stdin = None
    if how == "signal":
        while not (root / ".held.new").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    report = {entry["id"]: entry for entry in json.loads(out)["resources"]}
    said = "timed out" if how == "time" else "stopped by a signal"
    assert statuses(report) == {
        "file:/first": "changed",
        "file:/held": "failed",
        "file:/later": "skipped",
    }
    assert report["file:/held"]["error"] == said
    assert report["file:/later"]["error"] == f"not reached: {said}"
    assert sorted(path.name for path in root.iterdir()) == ["first", "run"]


def test_what_is_there_is_told(root: Path) -> None:
    (root / "binary").write_bytes(b"\xff\x00")
    (root / "open").write_text("x")
    (root / "open").chmod(0o666)
    (root / "link").symlink_to("open")
    wanted = state(*(File(Step.BASE, path, "x") for path in ("/binary", "/open", "/link")))
    report = ask("look", root, wanted)
    assert report["file:/binary"]["found"]["content"] == "not text, or too long to show"
    assert report["file:/open"]["found"] == {"mode": "0666"}
    assert report["file:/link"]["found"]["content"] == "not a regular file"


def test_a_link_gets_its_address_and_file_and_keeps_others(root: Path, network: list[str]) -> None:
    file = "/etc/systemd/network/10-x.network"
    link = NetworkLink(Step.BASE, "x0", ("10.9.0.2/24",), file, "[Match]\nName=x0\n")
    wanted = NodeState("node0", links=(link,)).document()
    cold = ask("look", root, wanted, network)["link:x0"]
    assert cold["changes"] == ["file", "address", "up"]
    subprocess.run([*network, "ip", "address", "add", "10.9.0.9/24", "dev", "x0"], check=True)
    assert statuses(ask("apply", root, wanted, network)) == {"link:x0": "changed"}
    assert statuses(ask("apply", root, wanted, network)) == {"link:x0": "unchanged"}
    assert (root / file[1:]).read_text() == link.content
    shown = subprocess.run(
        [*network, "ip", "address", "show", "x0"], capture_output=True, check=True
    )
    assert b"10.9.0.2/24" in shown.stdout and b"10.9.0.9/24" in shown.stdout
    subprocess.run([*network, "ip", "link", "delete", "x0"], check=True)
    assert statuses(ask("apply", root, wanted, network)) == {"link:x0": "pending"}


def test_a_kernel_setting_of_the_network(root: Path, network: list[str]) -> None:
    """Its own namespace's: this machine's stays as it is."""
    setting = Sysctl(Step.BASE, "net.ipv4.tcp_rmem", "4096 131072 8388608")
    wanted = NodeState("node0", sysctls=(setting,)).document()
    found = ask("look", Path("/"), wanted, network)["sysctl:net.ipv4.tcp_rmem"]
    assert found["changes"] == ["value"]
    assert len(found["found"]["value"].split()) == 3
    assert "run" not in [path.name for path in root.iterdir()]


def test_a_secret_is_its_owners_alone_already_while_it_is_written(root: Path) -> None:
    leftover = root / ".key.new"  # of a run that was killed, with a mode that is too open
    leftover.touch()
    leftover.chmod(0o666)
    seen = []

    def content() -> Iterator[bytes]:
        seen.append(stat.S_IMODE(leftover.stat().st_mode))
        yield b"secret"

    with agent_base.FileTree(root).parent("/key") as (above, name):
        agent_base.replace(above, name, content(), 0, 0, 0o640)
    assert seen == [0o600]
    assert stat.S_IMODE((root / "key").stat().st_mode) == 0o640


def test_a_link_in_the_place_of_a_new_copy_is_not_written_through(root: Path) -> None:
    target = root / "target"
    target.write_text("keep\n")
    (root / ".file.new").symlink_to(target)
    wanted = state(File(Step.BASE, "/file", "new\n"))
    assert statuses(ask("apply", root, wanted)) == {"file:/file": "changed"}
    assert target.read_text() == "keep\n"
    assert not (root / "file").is_symlink()


def test_a_link_on_the_way_to_a_file_is_not_followed(root: Path) -> None:
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    wanted = state(File(Step.BASE, "/link/file", "new\n"))
    said = ask("apply", root, wanted)["file:/link/file"]["error"]
    assert said == "/link exists and is not a directory"
    assert list((root / "real").iterdir()) == []


@pytest.mark.timeout(60)  # opened without O_NONBLOCK, it would wait for a writer
def test_a_pipe_in_the_place_of_a_file_is_replaced(root: Path) -> None:
    wanted = state(File(Step.BASE, "/file", "new\n"))
    os.mkfifo(root / "file")
    assert ask("look", root, wanted)["file:/file"]["found"] == {"content": "not a regular file"}
    assert statuses(ask("apply", root, wanted)) == {"file:/file": "changed"}
    # Also where it is put there after root has looked.
    os.mkfifo(root / "pipe")
    with (
        agent_base.FileTree(root).parent("/pipe") as (above, name),
        pytest.raises(agent_base.Failed, match="not a regular file"),
        agent_base.regular(above, name),
    ):
        pass


def test_killed_between_a_links_file_and_its_reload_the_next_run_reloads(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"name": "nosuch0", "addresses": [], "content": "x", "file": "/etc/10-x.network"}
    state = root / "run/systemd/netif/state"
    state.parent.mkdir(parents=True)
    state.touch()
    (root / agent_leaving.MEMORY).parent.mkdir()
    asked: list[list[str]] = []

    def killed(argv: list[str]) -> str:
        asked.append(argv)
        raise KeyboardInterrupt

    node = agent.ThisNode(root)
    changes = node.differs("links", wanted)
    assert set(changes) == {"file", agent.ABSENT}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(agent_system, "command", killed)
        node.apply("links", wanted, changes)
    assert asked == [["networkctl", "reload"]]
    node = agent.ThisNode(root)
    changes = node.differs("links", wanted)
    assert set(changes) == {"reload", agent.ABSENT}

    def command(argv: list[str]) -> str:
        asked.append(argv)
        return ""

    with monkeypatch.context() as patched:
        patched.setattr(agent_system, "command", command)
        node.apply("links", wanted, changes)
    assert len(asked) == 2
    assert set(agent.ThisNode(root).differs("links", wanted)) == {agent.ABSENT}
