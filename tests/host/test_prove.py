"""Causes tried on real cables, and what puts them back: two namespaces, a veth pair, tc, sshd."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import PROJECT
from support.account import until
from support.sshd import sshd
from support.strangers import FLAGS, Strangers, loadable

from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.node.remote import Remote
from orchestrator.node.trust import open_trust
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove import guards as guards_module
from orchestrator.performance.prove.changes import Edit, bucket, queue_change
from orchestrator.performance.prove.claim import Claim
from orchestrator.performance.prove.guards import Guards, NotPutBack, Site, guarded
from orchestrator.performance.prove.trials import End, Ground
from orchestrator.performance.prove.turns import Loads, prove
from orchestrator.performance.results.bench import Measured, Workload
from orchestrator.performance.results.probe import Spread, spread
from orchestrator.performance.results.proof import Judgement, Proof
from orchestrator.provision.machines import netns

#: Bits per second of the cable before anything is tried.
RATE = 80_000_000
HERE = Site("this machine", list, (sys.executable, "-I", "-S"))
#: Answers a request, COMPUTES, BYTES, TURNS: it computes, sends so much, and then says a byte in so
#: many turns.
SERVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 9000))
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    computes, size, turns = connection.recv(99).decode().split()
    time.sleep(float(computes))
    connection.sendall(bytes(int(size)))
    for _ in range(int(turns)):
        connection.recv(1)
        connection.sendall(b"x")
    connection.close()
"""
#: Asks it, and says how long that took.
ASK = """
import socket, sys, time
begun = time.perf_counter()
connection = socket.create_connection((sys.argv[1], 9000))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
connection.sendall(" ".join(sys.argv[2:]).encode())
left = int(sys.argv[3])
while left:
    left -= len(connection.recv(min(left, 1 << 16)))
for _ in range(int(sys.argv[4])):
    connection.sendall(b"x")
    connection.recv(1)
print(time.perf_counter() - begun)
"""


@dataclass(frozen=True)
class Cable:
    """A namespace at each end, with the link ``x0``."""

    here: str
    there: str

    def queue(self, space: str) -> dict[str, str]:
        argv = ["tc", "-n", space, "-json", "qdisc", "show", "dev", "x0"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        (found,) = json.loads(shown)
        return {"kind": found["kind"], "rate": str(found.get("options", {}).get("rate", ""))}

    @property
    def queues(self) -> list[dict[str, str]]:
        return [self.queue(space) for space in (self.here, self.there)]

    @property
    def ends(self) -> list[End]:
        return [End(HERE, "x0", ("tc", "-n", space)) for space in (self.here, self.there)]

    def throttle(self, bits_per_s: float) -> None:
        for space in (self.here, self.there):
            argv = ["tc", "-n", space, "qdisc", "replace", "dev", "x0", "root"]
            subprocess.run([*argv, *bucket(bits_per_s)], check=True)


THERE = "10.93.0.2"


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable(*(f"orchestrate-prove-{os.getpid()}-{end}" for end in ("here", "there")))
    try:
        for space in (made.here, made.there):
            netns.create(space)
        peer = ["peer", "name", "x0", "netns", made.there]
        netns.ip(made.here, "link", "add", "x0", "type", "veth", *peer)
        for space, address in ((made.here, "10.93.0.1"), (made.there, THERE)):
            netns.ip(space, "address", "add", f"{address}/24", "dev", "x0")
            netns.ip(space, "link", "set", "x0", "up")
        yield made
    finally:
        for space in (made.here, made.there):
            netns.delete(space)


Load = Callable[[Workload], Measured]


@contextmanager
def service(cable: Cable, computes_s: float, size: int, turns: int = 0) -> Iterator[Load]:
    """A service over the cable: a load of it takes what it computes, and what the cable takes."""
    inside = ["ip", "netns", "exec", cable.there, sys.executable, "-c", SERVE, THERE]
    ask = ["ip", "netns", "exec", cable.here, sys.executable, "-c", ASK, THERE]
    with subprocess.Popen(inside, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"

        def once() -> float:
            words = [*ask, str(computes_s), str(size), str(turns)]
            return float(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)

        def load(workload: Workload) -> Measured:
            took, one = spread([once()]), Spread(1, 1, 1, 1)
            return Measured(workload, took, took, took, took, one, one, None, 1, 0, ())

        try:
            yield load
        finally:
            server.kill()


def tried(cable: Cable, load: Load, cause: Cause, seconds: float, unchanged: float) -> Proof:
    found = load(Workload("it", 1, 1, 1, 1))
    claim = Claim(found, "prefill", cause, seconds, {}, "")
    ground = Ground((), (), lambda _: cable.ends, unchanged, unchanged, False, 1, None)
    with guarded() as guards:
        return prove("1", claim, ground, "", Loads(Board(quiet=True), guards, load, 3))


def test_bytes_over_a_throttled_cable_are_found(cable: Cable) -> None:
    """Four megabytes at 10 MB/s: of 0.5 s the cable takes 0.4."""
    cable.throttle(RATE)
    before, size = cable.queues, 4_000_000
    with service(cable, 0.1, size) as load:
        proof = tried(cable, load, Cause.LINK_BANDWIDTH, 0.4, RATE / 8)
    assert proof.verdict is Judgement.CONFIRMED, proof.why
    assert proof.slope is not None and 0.7 * size < proof.slope.value < 1.5 * size
    assert proof.predicted == pytest.approx(size)
    assert cable.queues == before == [{"kind": "tbf", "rate": str(RATE // 8)}] * 2


def test_a_cable_that_is_no_cause_is_refuted(cable: Cable) -> None:
    """It computes for most of the time, and little is sent."""
    before = cable.queues
    with service(cable, 0.8, 20_000) as load:
        proof = tried(cable, load, Cause.LINK_BANDWIDTH, 0.7, RATE / 8)
    assert proof.verdict is Judgement.REFUTED, proof.why
    assert proof.predicted == pytest.approx(7_000_000)
    assert proof.slope is not None and proof.slope.value < 1_000_000
    assert cable.queues == before == [{"kind": "noqueue", "rate": ""}] * 2


def test_messages_are_counted_where_the_kernel_can_delay_them(cable: Cable) -> None:
    """A hundred turns of two messages; without netem, that is said and nothing is loaded."""
    argv = ["tc", "-n", cable.here, "qdisc", "replace", "dev", "x0", "root", "netem"]
    able = subprocess.run(argv, capture_output=True, check=False).returncode == 0
    subprocess.run([*argv[:4], "delete", *argv[5:-1]], capture_output=True, check=False)
    before = cable.queues
    with service(cable, 0.0, 1, 100) as load:
        # Each turn is a message each way; a delay is added at both ends.
        proof = tried(cable, load, Cause.LINK_LATENCY, 0.2, 1e-3)
    if able:
        assert proof.verdict is Judgement.CONFIRMED, proof.why
        assert proof.slope is not None and 150 < proof.slope.value < 300
    else:
        assert proof.verdict is Judgement.NOT_TRIED
        assert "netem" in proof.why and proof.points == ()
    assert cable.queues == before


def test_a_queue_of_somebodys_own_is_left_as_it_is(cable: Cable) -> None:
    argv = ["tc", "-n", cable.there, "qdisc", "replace", "dev", "x0", "root", "pfifo", "limit", "9"]
    subprocess.run(argv, check=True)
    before = cable.queues
    with service(cable, 0.01, 1) as load:
        proof = tried(cable, load, Cause.LINK_BANDWIDTH, 0.01, RATE / 8)
    assert proof.verdict is Judgement.NOT_TRIED
    assert "x0 has a queue of its own (pfifo)" in proof.why
    assert cable.queues == before


#: Holds a change as `bench prove` does, until it is ended.
HOLDER = """
import sys, time
from orchestrator.performance.prove.changes import Edit, bucket, queue_change
from orchestrator.performance.prove.guards import Site, guarded
tc, place = ("tc", "-n", sys.argv[1]), Site("x", list, (sys.executable, "-I", "-S"))
with guarded() as guards:
    change = queue_change(tc, "x0", "[]", bucket(1e6))
    guards.apply({"x": change}, {"x": place}, 600)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_is_ended_leaves_nothing_changed(cable: Cable, number: signal.Signals) -> None:
    before = cable.queues
    argv = [sys.executable, "-c", HOLDER, cable.here]
    holder = subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert cable.queue(cable.here)["kind"] == "tbf"
        holder.send_signal(number)
        holder.wait(60)
    assert any(cable.queues == before for _ in until(60)), cable.queues


def throttled(cable: Cable) -> dict[str, object]:
    """What `Guards.apply` gets for the cable's first end."""
    change = queue_change(("tc", "-n", cable.here), "x0", "[]", bucket(1e6))
    return {"changes": {"this machine": change}, "places": {"this machine": HERE}}


def apply(guards: Guards, cable: Cable, seconds: float) -> None:
    guards.apply(**throttled(cable), seconds=seconds)  # type: ignore[arg-type]


def test_a_change_that_lasts_too_long_is_undone_and_its_load_does_not_count(cable: Cable) -> None:
    before = cable.queues
    with guarded() as guards:
        apply(guards, cable, 1)
        assert any(cable.queues == before for _ in until(60)), cable.queues
        with pytest.raises(UserError, match="it lasted too long for its guard"):
            guards.undo()
        apply(guards, cable, 600)
        assert cable.queues != before
    assert cable.queues == before


def test_what_cannot_be_undone_is_said_with_its_command(cable: Cable, tmp_path: Path) -> None:
    """Its program is gone; by hand it works."""
    tool = tmp_path / "tool"
    tool.symlink_to("/bin/true")
    change = Edit(((str(tool),),), ((str(tool), "it's"),))
    with pytest.raises(NotPutBack) as caught, guarded() as guards:
        guards.apply({"x": change}, {"x": HERE}, 600)
        tool.unlink()
    assert caught.value.left == (f"{tool} 'it'\"'\"'s'",)
    assert "could not be undone" in str(caught.value) and "by hand" in str(caught.value)


def test_a_change_that_fails_is_undone_as_far_as_it_went(cable: Cable) -> None:
    before = cable.queues
    change = queue_change(("tc", "-n", cable.here), "x0", "[]", bucket(1e6))
    half = Edit((*change.apply, ("false",)), change.undo)
    with guarded() as guards, pytest.raises(UserError, match=r"could not be made: .*false"):
        guards.apply({"x": half}, {"x": HERE}, 600)
    assert cable.queues == before


@pytest.fixture
def node(cable: Cable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """A node at the other end, which is reached by SSH over the very cable that is changed."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    trust = open_trust("one")
    identity = trust.host_identity(["node0"])
    with netns.entered(cable.there):
        running = sshd(tmp_path / "sshd", identity, trust.user_ca_public, address=THERE)
        port = running.__enter__()
    remote = Remote("node0", THERE, trust, port=port)
    try:
        with netns.entered(cable.here):
            remote.wait_for_ssh(30)
            yield remote
            remote.close()
    finally:
        running.__exit__(None, None, None)


def guards_there(cable: Cable) -> list[str]:
    """The guards that run at the other end."""
    argv = ["ip", "netns", "pids", cable.there]
    pids = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    lines = []
    for pid in pids:
        with suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_text())
    return [each for each in lines if guards_module.GUARD in each]


def test_a_node_whose_network_is_cut_undoes_the_change_by_itself(
    cable: Cable, node: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards_module, "ANSWER", 4.0)
    before = cable.queues
    place = Site("node0", node.ssh_argv, ("python3", "-I", "-S"))
    with pytest.raises(NotPutBack) as caught, guarded() as guards:
        shown = guards.run(place, ("tc", "-json", "qdisc", "show", "dev", "x0")).out
        change = queue_change(("tc",), "x0", shown, bucket(1e6))
        guards.apply({"node0": change}, {"node0": place}, 3)
        assert cable.queue(cable.there)["kind"] == "tbf"
        netns.ip(cable.here, "link", "set", "x0", "down")
    assert caught.value.left[0].startswith("ssh ") and "qdisc delete" in caught.value.left[0]
    assert any(cable.queues == before for _ in until(60)), cable.queues
    assert guards_there(cable)
    netns.ip(cable.here, "link", "set", "x0", "up")
    assert any(not guards_there(cable) for _ in until(60)), "a guard outlives its connection"


def test_a_connection_that_is_lost_undoes_the_change(cable: Cable, node: Remote) -> None:
    """The ssh program here is killed, as with a client that crashes."""
    before = cable.queues
    place = Site("node0", node.ssh_argv, ("python3", "-I", "-S"))
    with guarded() as guards:
        change = queue_change(("tc",), "x0", "[]", bucket(1e6))
        guards.apply({"node0": change}, {"node0": place}, 600)
        assert cable.queue(cable.there)["kind"] == "tbf"
        (talk,) = guards._talks.values()
        os.kill(talk._process.pid, signal.SIGKILL)
        assert any(cable.queues == before for _ in until(60)), cable.queues
        # By another connection; there is nothing left to undo, and the load does not count.
        with pytest.raises(UserError, match="connection to its guard was lost"):
            guards.undo()
    assert cable.queues == before


def test_on_a_cluster_of_strangers(cluster: Strangers) -> None:
    """Requests at once need nobody's leave; clocks and links need root, which the owner is not."""
    with cluster.serving(*FLAGS, "--max-num-seqs", "1", "--fault", "slow") as url:
        path = loadable(cluster, url, "--node", "box")
        words = ("--profile", path)
        run = cluster.json("bench", "run", *words, "--workload", "brief")
        busy = cluster.ask("bench", "prove", *words, "--cause", "batch limit")
        assert "the model is answering 13 requests" in busy.stderr
        wrong = cluster.ask("bench", "prove", *words, "--workload", "no", "--force")
        forced = (*words, "--force", "--rounds", "2")
        done = cluster.json("bench", "prove", *forced, "--cause", "batch limit")
        host = cluster.json("bench", "prove", *forced, "--cause", "host", "--phase", "decode")
        link = cluster.json("bench", "prove", *forced, "--cause", "link bandwidth")
        shown = cluster.ask("bench", "show", *words).stdout
    assert "there is no workload 'no'" in wrong.stderr
    (queue,) = done["proofs"]
    # The stand-in answers all at once, whatever its limit is said to be.
    assert (queue["verdict"], queue["phase"], done["run"]) == ("refuted", "prefill", run["id"])
    assert len(queue["points"]) == 4 and queue["slope"]["high"] < queue["predicted"] / 2
    (clock,) = host["proofs"]
    assert clock["verdict"] == "cannot be tried here" and "Needs root there" in clock["why"]
    assert {each["verdict"] for each in link["proofs"]} == {"cannot be tried here"}
    assert re.search("brief, prefill: batch limit is refuted: changing the requests", shown)
    assert "brief, decode: host cannot be tried here" in shown
