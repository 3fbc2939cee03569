"""`orchestrate dashboard` of a cluster that others run: real SSH, a real browser, a node that dies.

The visitor is an ordinary account; the browser is on the same machine, as an operator's is.
"""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.account import until
from support.browser import browser
from support.strangers import FLAGS, VISITOR, Strangers, attach, left

#: A machine's way in, which can be shut: an sshd of its own.
PORT = 10022
WAY_IN = f"""
Host mortal
  Port {PORT}
  HostName 127.0.0.1
  User orchestrate-owner
"""


@contextmanager
def mortal(cluster: Strangers) -> Iterator[None]:
    """The machine answers as ``mortal`` for the body; then all that came in that way is gone."""
    words = ["-f", "/home/keys/sshd", "-p", str(PORT), "-o", f"ListenAddress=127.0.0.1:{PORT}"]
    argv = [*cluster.machine.inside, "/usr/sbin/sshd", "-D", "-e", *words]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert any(f"port {PORT}" in line for line in process.stderr)
        yield
    finally:
        for pid in came_in(cluster, f"-p {PORT}"):
            cluster.machine.sh('kill -KILL "$1"', pid, ok=False)  # it may end with its parent
        process.wait(60)
        process.stderr.close()


def came_in(cluster: Strangers, words: str) -> list[str]:
    """The program with these words and all that it started, which runs inside the machine."""
    shown = cluster.machine.sh("ps -e -o pid=,ppid=,args=")
    rows = [line.split(None, 2) for line in shown.splitlines()]
    found = [pid for pid, _, args in rows if words in args and args.startswith("sshd")]
    found += [pid for pid, _, args in rows if words in args and args.startswith("/usr/sbin/sshd")]
    for pid in found:  # grows meanwhile
        found += [child for child, parent, _ in rows if parent == pid and child not in found]
    return found


@pytest.fixture
def profile(cluster: Strangers) -> Iterator[str]:
    """A profile of a server and one node, ``mortal``."""
    home = f"/home/{VISITOR}/.ssh"
    config = cluster.run("cat", f"{home}/config").stdout
    known = cluster.run("cat", f"{home}/known").stdout
    _, _, key = known.splitlines()[0].partition(" ")
    put = 'printf %s "$2" >"$1"'
    cluster.machine.sh(put, f"{home}/config", WAY_IN + config)
    cluster.machine.sh(put, f"{home}/known", f"{known}[127.0.0.1]:{PORT} {key}\n")
    try:
        with cluster.serving(*FLAGS) as url:
            with mortal(cluster):
                made = str(attach(cluster, url, "--node", "mortal")[0]["profile"])
            yield made
    finally:
        cluster.machine.sh(put, f"{home}/config", config)
        cluster.machine.sh(put, f"{home}/known", known)


def running(cluster: Strangers, words: str) -> list[str]:
    """The visitor's processes with these words, by id, here in the machine."""
    shown = cluster.machine.sh(f"ps -u {VISITOR} -o pid=,args= || true")
    return [line.split()[0] for line in shown.splitlines() if words in line]


def samplers(cluster: Strangers) -> list[str]:
    return [line for line in left(cluster) if "PERIOD" in line and "python3" in line]


def shown(cluster: Strangers) -> str:
    """What anybody sees of processes there: their words, and even their environments."""
    places = "/proc/[0-9]*/cmdline /proc/[0-9]*/environ"
    return cluster.machine.sh(f"cat {places} 2>/dev/null | tr '\\0' '\\n'", ok=False)


def test_a_node_that_dies_while_one_looks(cluster: Strangers, profile: str, tmp_path: Path) -> None:
    argv = cluster.argv(VISITOR, cluster.orchestrate, "dashboard", "--profile", profile)
    with (
        ExitStack() as way_in,
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process,
    ):
        way_in.enter_context(mortal(cluster))
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        secret = url.split("/")[3]
        assert samplers(cluster) == running(cluster, "ssh -T") == []  # nobody looks yet
        with browser(tmp_path / "browser") as page:
            page.open(url)
            page.shows("● up", "#nodes")
            page.shows("served/it", "#what")
            page.shows("● serving", "#state")
            assert len(samplers(cluster)) == 1
            assert secret not in shown(cluster)
            with browser(tmp_path / "another") as other:
                other.open(url)
                other.shows("● up", "#nodes")
                assert len(samplers(cluster)) == 1  # two browsers, one look
            way_in.close()
            page.shows("✕ no answer", "#nodes")
            page.shows("✕ degraded", "#state")
            page.shows("mortal", "#events")
            assert "Last heard" in page.text("#nodes")
            page.shows("It serves served/it", "#top")  # the endpoint still answers
            with mortal(cluster):
                page.shows("● up", "#nodes")
                page.shows("● serving", "#state")
        assert any(not running(cluster, "ssh -T") for _ in until(60))  # nobody looks any more
        assert any(not samplers(cluster) for _ in until(60))
        with urllib.request.urlopen(f"{url}data", timeout=60) as answer:
            assert answer.status == 200
        for name in ("evil.example", "127.0.0.1.evil.example"):
            request = urllib.request.Request(f"{url}data", headers={"Host": name})
            with pytest.raises(urllib.error.HTTPError, match="421"):
                urllib.request.urlopen(request, timeout=60)
        (pid,) = [each for each in running(cluster, "dashboard") if each]
        cluster.machine.sh('kill -INT "$1"', pid)
        assert process.wait(60) == 0
    assert running(cluster, "") == []


def test_its_data_once(cluster: Strangers, profile: str) -> None:
    with mortal(cluster):
        found = cluster.json("dashboard", "--profile", profile)
    assert (found["state"], found["model"]) == ("serving", "served/it")
    (node,) = found["nodes"]
    assert (node["name"], node["state"]) == ("mortal", "up")
    assert found["load"]["running"] == 8
    assert found["load"]["waiting"] == 5
    names = {(each["node"], each["name"]) for each in found["checks"]["list"]}
    assert {("endpoint", "answers"), ("mortal", "reachable"), ("mortal", "clock")} <= names
    assert not any("answer again" in name for _, name in names)  # no question was asked
    assert running(cluster, "ssh -T") == samplers(cluster) == []
