"""vLLM's own processes of several nodes: started together, ended together. Real sockets and
processes; a command that waits stands for vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.cluster import meet, on_nodes
from orchestrator.core.waiting import as_long_as
from orchestrator.verify import probe_ranks

#: Writes its words, and waits.
WAITS = "import sys, time; open(sys.argv[1], 'w').write(' '.join(sys.argv[2:])); time.sleep(600)"
NAMES = ("one", "two", "three")


class Nodes:
    """A copy's nodes, all on this machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.running: dict[str, subprocess.Popen[str]] = {}
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = int(free.getsockname()[1])

    def start(self, name: str) -> None:
        command = [sys.executable, "-c", WAITS, str(self.home / name), name]
        words = ["127.0.0.1", str(self.port), str(NAMES.index(name)), ",".join(NAMES)]
        self.running[name] = subprocess.Popen(
            [sys.executable, meet.__file__, *words, *command],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def said(self, name: str) -> str:
        """What a node's program printed until its end, which is a failure for systemd."""
        out, _ = self.running.pop(name).communicate(timeout=60)
        return out

    def started(self) -> set[str]:
        return {each.name for each in self.home.iterdir() if each.read_text()}

    def vllm_of(self, name: str) -> int:
        pid = self.running[name].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    try:
        yield made
    finally:
        for process in made.running.values():
            signal_group(process.pid)
            process.communicate()


def signal_group(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


def until_all_run(nodes: Nodes) -> None:
    assert not as_long_as(lambda: nodes.started() != set(NAMES), 60, 0.1)


def test_nothing_starts_before_all_are_there_and_then_all_know_one_port(nodes: Nodes) -> None:
    nodes.start("three")
    nodes.start("one")
    out = nodes.running["one"].stdout
    waited = [out.readline() if out else "" for _ in range(1)]
    # "three" may have come already when the first line was written, or not yet.
    assert waited[0] in ("waiting for two, three\n", "waiting for two\n")
    assert nodes.started() == set()
    nodes.start("two")
    until_all_run(nodes)
    words = {(nodes.home / name).read_text().partition(" ")[2] for name in NAMES}
    assert len(words) == 1
    flag, port = words.pop().split()
    assert flag == "--master-port" and int(port) > 0 and int(port) != nodes.port


@pytest.mark.parametrize("dies", NAMES)
def test_when_one_ends_all_end_and_say_who_it_was(dies: str, nodes: Nodes) -> None:
    for name in NAMES:
        nodes.start(name)
    until_all_run(nodes)
    os.kill(nodes.vllm_of(dies), signal.SIGKILL)
    assert "vLLM ended here: exit code -9" in nodes.said(dies)
    for name in NAMES:
        if name == dies:
            continue
        # Rank 0 is in touch with all; the others hear of it.
        lost = dies if name == "one" else "one"
        assert f"the vLLM of {lost} ended, or the node is gone" in nodes.said(name)
    # systemd starts them again.
    for name in NAMES:
        (nodes.home / name).unlink()
        nodes.start(name)
    until_all_run(nodes)


def test_strangers_at_the_port_and_a_node_that_comes_twice_do_no_harm(nodes: Nodes) -> None:
    nodes.start("one")
    nodes.start("two")
    out = nodes.running["one"].stdout
    assert out and "three" in out.readline()
    for said in (b"nobody\n", b"7\n", b"0\n", b"-1\n", b"1" * 100, b""):
        with closing(socket.create_connection(("127.0.0.1", nodes.port), 10)) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(10) == b""
    signal_group(nodes.running["two"].pid)
    nodes.said("two")
    nodes.start("two")
    nodes.start("three")
    until_all_run(nodes)


def test_ranks_are_asked_for_on_their_own_nodes() -> None:
    asked = on_nodes.pinned([{"GPU": 1.0}, {"GPU": 1.0}], ["10.0.0.1", "10.0.0.2"])
    assert asked == [
        {"GPU": 1.0, "node:10.0.0.1": on_nodes.PART},
        {"GPU": 1.0, "node:10.0.0.2": on_nodes.PART},
    ]
    with pytest.raises(ValueError, match="longer"):
        on_nodes.pinned([{"GPU": 1.0}], ["10.0.0.1", "10.0.0.2"])


def test_titles_of_ranks(tmp_path: Path) -> None:
    for number, title in enumerate(
        ("VLLM::Worker_TP0", "vllm serve", "VLLM::EngineCore", "ray::RayWorkerProc", "X::Worker")
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes(title.encode() + b"\0")
    (tmp_path / "99").mkdir()
    assert probe_ranks.titles(tmp_path) == ["VLLM::Worker_TP0", "X::Worker"]
