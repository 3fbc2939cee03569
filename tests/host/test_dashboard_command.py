"""The whole command in a real browser: a server like vLLM's, two nodes that are this machine, one
of which dies while one looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import PROJECT
from support.browser import browser

#: The node's Python, until the node dies.
MORTAL = """#!/bin/sh
[ ! -e "$0.dead" ] || { echo "no route to host" >&2; exit 255; }
exec python3 "$@"
"""
PROFILE = """
name: here
machines: existing
endpoint: {{ url: "{url}" }}
serving: {{ model: served/it }}
nodes:
  - {{ name: alive, host: localhost, python: "{alive}" }}
  - {{ name: mortal, host: localhost, python: "{mortal}" }}
"""


@dataclass
class Here:
    """The cluster's profile and state, and its mortal node."""

    profile: Path
    env: dict[str, str]
    mortal: Path

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", "orchestrator", "dashboard", "--profile", str(self.profile)]

    def samplers(self) -> list[int]:
        """The programs that run on the nodes, by what they were started from."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                mine = f"ORCHESTRATE_STATE={self.env['ORCHESTRATE_STATE']}\0".encode()
                words = (file.parent / "cmdline").read_bytes()
                if mine in file.read_bytes() and b"PERIOD, GAUGES =" in words:
                    found.append(int(file.parent.name))
            except OSError:
                continue
        return found

    def die(self) -> None:
        """The node's programs end, and no more start there."""
        Path(f"{self.mortal}.dead").touch()
        for pid in self.samplers():
            # Which of the two it is shows by what it was executed as, once.
            if str(self.mortal) in Path(f"/proc/{pid}/environ").read_text():
                os.kill(pid, signal.SIGKILL)

    def come_back(self) -> None:
        Path(f"{self.mortal}.dead").unlink()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    server = [sys.executable, str(PROJECT / "tests/support/openai_like.py"), "serve", "served/it"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        scripts = {}
        for name in ("alive", "mortal"):
            scripts[name] = tmp_path / name
            # env: what it runs can be told by it.
            text = MORTAL.replace("exec python3", f"WHICH={scripts[name]} exec python3")
            scripts[name].write_text(text)
            scripts[name].chmod(0o755)
        profile = tmp_path / "here.yml"
        profile.write_text(PROFILE.format(url=f"http://127.0.0.1:{port}", **scripts))
        env = os.environ | {"ORCHESTRATE_STATE": str(tmp_path / "state")}
        try:
            yield Here(profile, env, scripts["mortal"])
        finally:
            process.kill()


def of_session(number: int) -> list[str]:
    """The processes that were started in a session, and still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
            found += [file.parent.name] if session == str(number) and state != "Z" else []
    return found


def until(seen: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < end, "never"
        time.sleep(0.2)


def test_a_node_that_dies_while_one_looks(here: Here, tmp_path: Path) -> None:
    with subprocess.Popen(
        here.argv, env=here.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().split()[-1]
        secret = url.split("/")[3].encode()
        try:
            assert here.samplers() == []  # nobody looks yet
            with browser(tmp_path / "browser") as page:
                page.open(url)
                for number, name in enumerate(("alive", "mortal"), 1):
                    page.shows(name, f".node:nth-child({number})")
                    page.shows("● up", f".node:nth-child({number})")
                page.shows("● serving", "#state")
                page.shows("served/it", "#what")
                page.shows("% busy", "#nodes")
                page.shows("8", "#load")
                assert len(here.samplers()) == 2
                # The browser got it from its pipe; nobody else has it.
                for file in Path("/proc").glob(f"{process.pid}/**/cmdline"):
                    assert secret not in file.read_bytes()
                here.die()
                page.shows("✕ no answer", ".node:nth-child(2)")
                page.shows("✕ degraded", "#state")
                page.shows("Last heard", ".node:nth-child(2)")
                page.shows("mortal", "#events")
                assert "● up" in page.text(".node:nth-child(1)")
                assert page.value("last.nodes[0].heard_s") < 7
                os.kill(process.pid, signal.SIGSTOP)
                page.shows("does not answer", "#gone")
                os.kill(process.pid, signal.SIGCONT)
                until(lambda: page.value("document.getElementById('gone').hidden"))
                here.come_back()
                page.shows("● up", ".node:nth-child(2)")
                page.shows("● serving", "#state")
                assert page.complaints == []
            until(lambda: here.samplers() == [])  # the browser was closed
            with browser(tmp_path / "again") as page:
                page.open(url)
                page.shows("● serving", "#state")
                until(lambda: len(here.samplers()) == 2)
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
                page.shows("does not answer", "#gone")
        finally:
            if process.poll() is None:
                process.kill()
        assert here.samplers() == []
        until(lambda: not of_session(process.pid))  # what a look was in ends by itself, at once
        said = process.stderr.read()
        assert said.startswith("Open this address")
        assert secret.decode() not in said


def test_its_data_once_and_again(here: Here) -> None:
    done = subprocess.run([*here.argv, "--json"], env=here.env, capture_output=True, text=True,
                          timeout=300, check=True)  # fmt: skip
    assert '"state": "serving"' in done.stdout
    assert '"waiting": 5' in done.stdout
    assert here.samplers() == []
    with subprocess.Popen(
        [*here.argv, "--json", "--follow"], env=here.env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert all(line.startswith('{"time": ') for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert here.samplers() == []
