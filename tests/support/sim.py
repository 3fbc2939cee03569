"""The command line on a simulated cluster of the tests' own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.core.errors import UserError
from orchestrator.models.profiles import load
from orchestrator.provision.machines import netns
from orchestrator.provision.machines.processes import Process
from orchestrator.verify import gather
from support import PROJECT

#: The end-to-end tests run the shipped profile under another name, each worker under its own.
SHIPPED = PROJECT / "profiles/sim.yml"
NAME = "e2e" + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
NODES = ["control", "compute0", "compute1"]
#: Seconds for one verb; `up` waits for a model that takes a minute or two on two cores.
TIMEOUT = 900
#: What a cluster can be brought to: each from those before it without powering off.
STATES = ("down", "control", "machines", "base", "ray", "serving")
#: How it is after a test that promises no more than that its machines may run.
ANYHOW = "anyhow"


@dataclass
class Sim:
    """The command line on the tests' cluster."""

    profile: Path
    env: dict[str, str]
    document: dict[str, Any]
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    #: One of STATES, or ANYHOW: what the last verb or test brought the cluster to.
    state: str = "down"
    #: A test failed: nobody knows how it left the cluster.
    spoiled: bool = False
    #: What the first whole probe found; see the fixture.
    probed: Any = None

    def bring(self, state: str) -> None:
        """Bring the cluster to one of STATES; nothing to do where it is there."""
        if self.spoiled:
            self.state, self.spoiled = ANYHOW, False
        if self.state == state:
            return
        if self.state == ANYHOW or STATES.index(self.state) > STATES.index(state):
            self.state = ANYHOW
            self.run("down")
            self.state = "down"
        verbs = {
            "control": ("up", "--until", "control"),
            "machines": ("up", "--until", "ssh"),
            "base": ("up", "--until", "base"),
            "ray": ("up", "--until", "ray"),
            "serving": ("up",),
        }
        if state in verbs:
            self.state = ANYHOW
            self.run(*verbs[state])
        self.state = state

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator", *words]

    def run(self, *words: str, ok: bool | None = True) -> subprocess.CompletedProcess[str]:
        """Run a verb on the tests' profile; `ok` says how it has to end (None: either way)."""
        done = subprocess.run(
            self.argv(*words),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        shown = f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, shown
        assert ok is None or (done.returncode == 0) == ok, shown
        return done

    def json(self, *words: str, ok: bool | None = True) -> Any:
        return json.loads(self.run(*words, "--json", ok=ok).stdout)

    def shell(self, node: str, *words: str, ok: bool | None = True) -> str:
        """What a command in a machine prints. Entered from here: a verb takes as long to start."""
        return self.enter(node, *words, ok=ok).stdout

    def enter(
        self, node: str, *words: str, stdin: str | None = None, ok: bool | None = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a machine, as `sim shell` does."""
        done = subprocess.run(
            ["nsenter", f"--target={self.leader(node)}", "--all", "--", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        shown = f"{node}: {words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert ok is None or (done.returncode == 0) == ok, shown
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a verb, in a process group of its own, as a terminal would."""
        process = subprocess.Popen(
            self.argv(*words),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end_started(self) -> None:
        """End what `start` started and a failing test left."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def machine(self, node: str) -> int:
        """The process id of a machine's container."""
        return int(json.loads(self.record(node).read_text())["pid"])

    def runs(self, node: str) -> bool:
        """Whether a machine's container is there."""
        return Process(self.record(node)).pid() is not None

    def record(self, node: str) -> Path:
        """What is written down of a machine's container."""
        state = Path(self.env["ORCHESTRATE_STATE"])
        return state / "clusters" / self.profile.stem / "machines" / node / "process.json"

    def leader(self, node: str) -> int:
        """The process that is the machine's PID 1."""
        pid = self.machine(node)
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def cut_power(self, node: str) -> None:
        """Kill a machine without a word: first its PID 1, which takes all of it along."""
        pid = self.machine(node)
        for inside in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(inside), signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)

    def left(self) -> list[str]:
        """What is there of the cluster on this machine: namespaces, mounts, groups, processes."""
        found = []
        for directory in (Path("/run/netns"), Path("/sys/fs/cgroup")):
            found += [str(path) for path in directory.glob(f"**/orchestrate-{NAME}-*")]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        state = self.env["ORCHESTRATE_STATE"]
        found += [line.split()[1] for line in mounts if line.split()[1].startswith(state)]
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == b"systemd-nspawn" and f"orchestrate-{NAME}-".encode() in b" ".join(
                words
            ):
                found.append(str(process))
        return found


def wait_for(process: subprocess.Popen[str], *parts: str) -> list[str]:
    """Read a verb's progress until a line holds all `parts`; returns the lines so far."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if all(part in line for part in parts):
            return lines
    raise AssertionError(f"ended without {parts}:\n{''.join(lines)}")


def failed(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks of a verification that failed."""
    return [check for check in report["checks"] if not check["ok"]]


@contextmanager
def asking(sim: Sim, question: str) -> Iterator[list[str]]:
    """For the body, vLLM is asked again and again, on its own node; what it said so far."""
    profile = load(sim.profile)
    key = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME, "api.key").read_text().strip()
    said: list[str] = []
    over = Event()

    def ask() -> None:
        server = profile.server
        with (
            netns.entered(f"orchestrate-{NAME}-{server.name}"),
            httpx.Client(
                base_url=f"http://{profile.ray_address(server)}:{profile.serving.port}",
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
                trust_env=False,
            ) as client,
        ):
            while not over.wait(0.5):  # what starts meanwhile needs the processor, too
                try:
                    said.append(gather.ask(client, profile, question).text)
                except (httpx.HTTPError, UserError) as error:
                    said.append(f"no answer: {error}")

    thread = Thread(target=ask)
    thread.start()
    try:
        yield said
    finally:
        over.set()
        thread.join()


@contextmanager
def cut(node: str) -> Iterator[None]:
    """The node's cable is out for the body."""
    ports = json.loads(
        subprocess.run(
            ["ip", "-n", f"orchestrate-{NAME}-switch", "-json", "link"],
            capture_output=True, check=True, text=True,
        ).stdout
    )  # fmt: skip
    number = NODES.index(node)
    (port,) = (each["ifname"] for each in ports if each["ifname"].endswith(f"-{number}"))
    netns.ip(f"orchestrate-{NAME}-switch", "link", "set", port, "down")
    try:
        yield
    finally:
        netns.ip(f"orchestrate-{NAME}-switch", "link", "set", port, "up")


@contextmanager
def opened(sim: Sim) -> Iterator[Cluster]:
    """The tests' cluster, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_STATE", sim.env["ORCHESTRATE_STATE"])
        yield open_cluster(load(sim.profile))


def close_connections(sim: Sim) -> None:
    """A kept connection was opened before; the next one has to look at the key again."""
    with opened(sim) as cluster:
        for node in cluster.profile.nodes:
            cluster.remote(node).close()
