"""Machines that are in a bad way, and an operator's computer that is no Linux."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support.strangers import FLAGS, OWNER, VISITOR, Strangers, attach, names

#: $1: the port. Programs of logins here can write nowhere.
FULL = """
mount -t tmpfs -o size=16k,mode=1777 tmpfs /tmp
mount -t tmpfs -o size=16k,mode=1777 tmpfs /dev/shm
for place in /tmp /dev/shm; do cat /dev/zero >"$place/full" 2>/dev/null || true; done
mount --bind "$2" "$2"
mount -o remount,bind,ro "$2"
sed "s/^ListenAddress.*/ListenAddress 127.0.0.1:$1/" /home/keys/sshd >/run/sshd-full
exec /usr/sbin/sshd -D -e -f /run/sshd-full
"""


def configured(cluster: Strangers, host: str, more: str) -> None:
    """A further host in the visitor's configuration, before the last block."""
    key = cluster.machine.sh("cut -d' ' -f1,2 /home/keys/host.pub").strip()
    lines = f"Host {host}\n  HostName 127.0.0.1\n  HostKeyAlias {host}\n{more}\n"
    script = 'printf %s "$2" >>"$1/config" && printf "%s %s\\n" "$3" "$4" >>"$1/known"'
    cluster.machine.sh(script, f"/home/{VISITOR}/.ssh", lines, host, key)


def port_of(cluster: Strangers) -> str:
    (line,) = re.findall(r"ListenAddress \S+:(\d+)", cluster.machine.sh("cat /home/keys/sshd"))
    return str(line)


@contextmanager
def another_sshd(cluster: Strangers, script: str, *words: str) -> Iterator[None]:
    inside = [*cluster.machine.inside, "unshare", "--mount", "sh", "-euc", script, "sh", *words]
    process = subprocess.Popen(inside, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        # It says so when it listens.
        assert any("listening on" in line for line in process.stderr), "sshd did not start"
        yield
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_full_tmp_and_a_read_only_home_are_no_hindrance(cluster: Strangers, url: str) -> None:
    port = str(int(port_of(cluster)) + 1)
    configured(cluster, "full", f"  Port {port}\n  User {OWNER}")
    with another_sshd(cluster, FULL, port, f"/home/{OWNER}"):
        tries = "for place in /tmp /dev/shm ~; do echo x >$place/x || echo no; done"
        tried = cluster.run("ssh", "-o", "RemoteCommand=none", "-T", "full", tries)
        assert tried.stdout.split() == ["no"] * 3, tried.stdout + tried.stderr
        found, text = attach(cluster, url, "--node", "full")
        report = cluster.json("verify", "--profile", str(found["profile"]))
    assert yaml.safe_load(text)["serving"]["tensor_parallel"] == 2
    assert report["ok"], report


#: A proxy that lets few bytes a second through, each way.
SLOW = """
import os, select, socket, sys, time
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
ways = {0: there.fileno(), there.fileno(): 1}
while ways:
    for source in select.select(list(ways), [], [])[0]:
        data = os.read(source, 2048)
        if not data:
            sys.exit()
        os.write(ways[source], data)
    time.sleep(0.05)
"""


def test_a_slow_link(cluster: Strangers, url: str) -> None:
    proxy = f"/home/{VISITOR}/slow.py"
    cluster.machine.sh('printf %s "$2" >"$1"', proxy, SLOW)
    more = f"  Port {port_of(cluster)}\n  User {OWNER}\n  ProxyCommand python3 {proxy} %h %p"
    configured(cluster, "slow", more)
    found, _ = attach(cluster, url, "--node", "slow")
    (node,) = found["nodes"]
    assert node["facts"]["engines"], node
    assert node["clock"]["uncertainty"] > 0


def test_a_restricted_shell_runs_a_program_of_its_path_only(cluster: Strangers, url: str) -> None:
    cluster.machine.sh(
        "useradd --create-home --shell /bin/rbash orchestrate-tied; "
        "usermod --password '*' orchestrate-tied"
    )
    configured(cluster, "tied", f"  Port {port_of(cluster)}\n  User orchestrate-tied")
    found, _ = attach(cluster, url, "--node", "tied")
    assert found["nodes"][0]["facts"]["user"] == "orchestrate-tied"
    words = ("--name", next(names), "--node", "tied", "--python", "/usr/bin/python3")
    refused = cluster.ask("attach", url, *words)
    assert refused.returncode == 1
    assert re.search(r"tied .tied.: /usr/bin/python3 did not run .*restricted", refused.stderr)


#: Another system than Linux, as far as a Python there sees it: no /proc and /sys, few programs.
#: macOS itself is not here to run.
ELSEWHERE = """
mount -t tmpfs -o size=1m tmpfs /proc
mount -t tmpfs -o size=1m tmpfs /sys
exec "$@"
"""
DARWIN = """
import os, platform, sys, types
import asyncio, ctypes, multiprocessing, selectors, subprocess, uuid  # as Linux has them
sys.platform = "darwin"
sys.modules["_scproxy"] = types.ModuleType("_scproxy")  # the settings of macOS
sys.modules["_scproxy"]._get_proxy_settings = sys.modules["_scproxy"]._get_proxies = dict
os.uname = lambda: os.uname_result(("Darwin", "mac", "24.0", "Darwin Kernel", "arm64"))
platform.system = lambda: "Darwin"
for name in ("sched_getaffinity", "pidfd_open", "memfd_create", "setns", "unshare", "eventfd",
             "O_TMPFILE", "O_PATH", "posix_fadvise", "posix_fallocate"):
    if hasattr(os, name):
        delattr(os, name)
"""


@pytest.fixture
def elsewhere(cluster: Strangers) -> Iterator[list[str]]:
    """Words that run something as the visitor on such a system."""
    place = f"/home/{VISITOR}/elsewhere"
    script = (
        'mkdir -p "$1/bin"; printf %s "$2" >"$1/sitecustomize.py"; '
        'for name in ssh sh env; do ln -sf "$(command -v "$name")" "$1/bin/$name"; done'
    )
    cluster.machine.sh(script, place, DARWIN)
    argv = cluster.argv(VISITOR, PYTHONPATH=place)
    path = next(word for word in argv if word.startswith("PATH="))
    argv[argv.index(path)] = f"PATH={place}/bin"
    inside = len(cluster.machine.inside)
    # The accounts' programs are looked for before PATH is another one.
    who = argv.index("sh", inside)
    assert argv[who:] == ["sh", "-c", 'cd && exec "$@"', "sh"]
    yield [*argv[:inside], "unshare", "--mount", "sh", "-euc", ELSEWHERE, "sh", *argv[inside:]]


def test_an_operator_without_linux(cluster: Strangers, elsewhere: list[str], url: str) -> None:
    """All that runs on the operator's side, without what only Linux has."""

    def ask(*words: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [*elsewhere, *map(str, (cluster.orchestrate, *words))]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)

    for verb in ("attach", "doctor", "probe", "bench"):
        helped = ask(verb, "--help")
        assert helped.returncode == 0 and f"orchestrate {verb}" in helped.stdout, helped.stderr
    name = next(names)
    attached = ask("attach", url, "--node", "box", "--name", name)
    assert attached.returncode == 0, attached.stderr
    profile = f"/home/{VISITOR}/{name}.yml"
    text = cluster.run("cat", profile).stdout
    assert yaml.safe_load(text)["serving"]["tensor_parallel"] == 2
    brief = "bench: {repeats: 1, workloads: {brief: {prompt_tokens: 16, output_tokens: 4, "
    cluster.machine.sh(
        'printf "%s\\n" "$2" >>"$1"', profile, brief + "requests: 2, concurrency: 1}}}"
    )
    for words in (
        ("status",),
        ("verify",),
        ("ask", "what?"),
        ("bench", "run", "--workload", "brief"),
        ("bench", "report"),
    ):
        done = ask(*words, "--profile", profile)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    diagnosed = ask("doctor", url, "--node", "box", "--name", name)
    assert diagnosed.returncode == 0, diagnosed.stderr
    assert "What limits" in diagnosed.stdout


def test_flags_that_make_no_ranks_here(cluster: Strangers) -> None:
    """Another vLLM beside it: its flags are not taken for this one's."""
    with (
        cluster.serving("other/it", "--tensor-parallel-size", "8") as _,
        cluster.serving(*FLAGS) as url,
    ):
        _, text = attach(cluster, url, "--node", "box")
    assert yaml.safe_load(text)["serving"]["tensor_parallel"] == 2
