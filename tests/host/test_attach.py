"""A cluster of strangers, end to end: a real sshd, an ordinary account, the wheel alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.account import until
from support.strangers import FLAGS, OWNER, VISITOR, Strangers, attach, left, names

from orchestrator.provision.machines.cgroup import MOUNT

SECRET = "sk-very-secret"
#: What a login prints before the program's answer: noise that tries to be an answer.
NOISE = """
printf 'Welcome!\\n\\033]0;owned\\007\\n{"hostname": "wrong"}\\n00 begin\\n{}\\n00 end\\n'
head -c 300000 /dev/zero | tr '\\0' x
"""


def test_help_needs_no_checkout_and_no_root(cluster: Strangers) -> None:
    done = cluster.ask("attach", "--help")
    assert done.returncode == 0, done.stderr
    assert "no root is needed" in done.stdout
    assert cluster.run("id", "-un").stdout.strip() == VISITOR


def test_attach_finds_what_runs_and_leaves_nothing(cluster: Strangers) -> None:
    env: dict[str, Any] = {"NCCL_SOCKET_IFNAME": "eth7", "VLLM_API_KEY": SECRET, "HF_TOKEN": SECRET}
    flags = (*FLAGS, "--api-key", SECRET)
    with cluster.serving(*flags, **env) as url:
        before = left(cluster)
        found, text = attach(cluster, url, "--node", "box", "--key-env", "K", K=SECRET)
        # sshd's process of the login ends a moment later than ssh here.
        assert any(left(cluster) == before for _ in until(30)), (before, left(cluster))
        profile = yaml.safe_load(text)
        assert profile["machines"] == "existing"
        assert profile["endpoint"] == {"url": url, "key_env": "K"}
        (node,) = profile["nodes"]
        assert {"name": "box", "host": "box", "ranks": 0}.items() <= node.items()
        assert profile["serving"] == {
            "model": "served/it",
            "tensor_parallel": 2,
            "pipeline_parallel": 1,
            "data_parallel": 1,
            "expert_parallel": False,
            "args": {"max-model-len": 4096, "enforce-eager": True},
            "env": {"NCCL_SOCKET_IFNAME": "eth7"},
        }
        (node,) = found["nodes"]
        assert node["facts"]["user"] == OWNER
        assert node["clock"]["uncertainty"] < 60
        assert SECRET not in f"{found}{text}"
        assert any("ranks: the flags make 2" in each for each in found["unknown"])


def test_noise_of_the_login_is_no_answer(cluster: Strangers, url: str) -> None:
    cluster.machine.sh('printf %s "$2" >"$1"', f"/home/{OWNER}/.bashrc", NOISE)
    try:
        found, _ = attach(cluster, url, "--node", "box")
    finally:
        cluster.machine.sh(f"rm /home/{OWNER}/.bashrc")
    (node,) = found["nodes"]
    assert node["facts"]["hostname"] not in ("", "wrong")


def test_this_computer_needs_no_ssh(cluster: Strangers) -> None:
    with cluster.serving(*FLAGS, who=VISITOR) as url:
        found, _ = attach(cluster, url, "--node", "localhost")
    (node,) = found["nodes"]
    assert node["facts"]["engines"][0]["argv"][2:4] == ["serve", "served/it"]


def test_one_machine_by_two_names_is_said(cluster: Strangers, url: str) -> None:
    found, _ = attach(cluster, url, "--node", "box", "--node", "localhost")
    (line,) = (each for each in found["unknown"] if each.startswith("ranks:"))
    assert line.startswith("ranks: box and localhost show the same processes")


def test_what_another_account_runs_is_seen_and_what_is_hidden_is_said(
    cluster: Strangers, url: str
) -> None:
    found, text = attach(cluster, url, "--node", "localhost")
    assert yaml.safe_load(text)["serving"]["tensor_parallel"] == 2
    assert f"{OWNER}'s processes cannot be read" in text
    (node,) = found["nodes"]
    assert node["facts"]["engines"][0]["env"] is None


def test_a_container_is_entered_by_its_command(cluster: Strangers, url: str) -> None:
    enter = cluster.owners("enter", '#!/bin/sh\nINSIDE=1 exec "$@"\n')
    _, text = attach(cluster, url, "--node", "box", "--enter", f"{enter} env NCCL_DEBUG=INFO")
    enters = [str(enter), "env", "NCCL_DEBUG=INFO"]
    assert yaml.safe_load(text)["nodes"][0]["enter"] == enters


@pytest.fixture
def scope() -> Iterator[Path]:
    """A control group as Docker's, by its name."""
    tree = MOUNT / "pids" if (MOUNT / "pids").exists() else MOUNT
    made = tree / f"docker-{os.getpid():064x}.scope"
    made.mkdir()
    try:
        yield made
    finally:
        assert any(_removed(made) for _ in until(30))


def _removed(group: Path) -> bool:
    with suppress(OSError):  # its last process ends
        group.rmdir()
    return not group.exists()


#: As far as attach needs it.
DOCKER = """#!/bin/sh
case $1 in
inspect) echo /vllm ;;
exec) [ ! -e denied ] || { echo permission denied >&2; exit 1; }; shift 3; exec "$@" ;;
esac
"""


def test_a_container_that_the_user_may_enter_is_found(cluster: Strangers, scope: Path) -> None:
    home = f"/home/{OWNER}"
    cluster.machine.sh('mkdir -p "$1/bin" && echo "PATH=$1/bin:$PATH" >"$1/.bashrc"', home)
    cluster.owners("bin/docker", DOCKER)
    try:
        with cluster.serving(*FLAGS, group=scope) as url:
            found, text = attach(cluster, url, "--node", "box")
            cluster.machine.sh('touch "$1/denied"', home)
            denied, other = attach(cluster, url, "--node", "box")
    finally:
        cluster.machine.sh('rm -r "$1/bin" "$1/.bashrc" "$1/denied"', home)
    entered = yaml.safe_load(text)["nodes"][0]["enter"]
    assert entered == ["docker", "exec", "-i", "vllm"], found["unknown"]
    assert found["nodes"][0]["facts"]["engines"][0]["container"].startswith("docker 0000")
    assert "enter" not in yaml.safe_load(other)["nodes"][0]
    assert any("its container:" in each and "denied" in each for each in denied["unknown"])


def test_status_and_verify_of_it(cluster: Strangers, url: str) -> None:
    found, _ = attach(cluster, url, "--node", "box")
    profile = str(found["profile"])
    seen = cluster.json("status", "--profile", profile)
    assert seen["said"]["models"] == ["served/it"]
    assert [(node["name"], node["ranks"]) for node in seen["nodes"]] == [("box", 0)]
    assert "box" in cluster.ask("status", "--profile", profile).stdout
    assert cluster.ask("ask", "--profile", profile, "what?").stdout == "Paris, or so.\n"
    report = cluster.json("verify", "--profile", profile)
    passed = {check["name"]: check["ok"] for check in report["checks"]}
    assert report["ok"], report
    assert passed == {
        "answers": True,
        "model listed": True,
        "key needed": False,  # a warning
        "answer: What is the capital of France?": True,
        "same answer again": True,
        "reachable": True,
        "clock": True,
        "ranks": True,
        "versions alike": True,
        "layout": True,
    }


def test_a_base_model_is_asked_by_completion(cluster: Strangers) -> None:
    with cluster.serving(*FLAGS, "--fault", "base") as url:
        found, _ = attach(cluster, url)
        report = cluster.json("verify", "--profile", str(found["profile"]))
    assert report["ok"], report
    assert "answer: What is the capital of France?" in str(report["checks"])


def test_verify_notices(cluster: Strangers) -> None:
    with cluster.serving(*FLAGS) as url:
        found, text = attach(cluster, url, "--node", "box")
    changed = text.replace("tensor_parallel: 2", "tensor_parallel: 4").replace(
        "ranks: 0", "ranks: 3"
    )
    port = url.rpartition(":")[2]
    for fault, wrong in (
        ("wrong", "answer: What is the capital of France?"),
        ("unsteady", "same answer again"),
        ("nonsense", "same answer again"),
    ):
        with cluster.serving(*FLAGS, "--fault", fault, "--port", port):
            path = f"/home/{VISITOR}/changed.yml"
            cluster.machine.sh('printf %s "$2" >"$1"', path, changed)
            report = cluster.json("verify", "--profile", path)
        failed = {check["name"] for check in report["checks"] if not check["ok"]}
        assert {"layout", "ranks", wrong} <= failed, fault
    report = cluster.json("verify", "--profile", str(found["profile"]))  # nothing runs
    seen = {check["name"]: check["seen"] for check in report["checks"] if not check["ok"]}
    assert "Connection refused" in seen["answers"]


NODES = {
    "box-other": "SSH failed: Host key verification failed",
    "box-new": "SSH failed: Host key verification failed",
    "stranger": r"SSH failed: .*Permission denied",
    "shut": r"did not run .*This account is currently not available",
    "nowhere.invalid": "SSH failed: .*Could not resolve hostname",
}


@pytest.mark.parametrize("host", NODES)
def test_a_node_that_cannot_be_asked_says_why(cluster: Strangers, url: str, host: str) -> None:
    name = next(names)
    done = cluster.ask("attach", url, "--name", name, "--node", host, "--node", "box")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr  # what is wrong, and what to do
    assert re.search(NODES[host], lines[0]), lines[0]
    profile = yaml.safe_load(cluster.run("cat", f"{name}.yml").stdout)
    assert len(profile["nodes"]) == 2  # it is there, for the owner of the file to complete


#: Programs that answer in place of Python. $3 is the mark.
HOSTILE = {
    "nothing": ("exit 7", "did not run .exit code 7.: nothing was said"),
    "no json": ('printf "%s begin\\n{{{\\n%s end\\n" "$3" "$3"', "is not what was asked for"),
    "other json": ('printf "%s begin\\n[1]\\n%s end\\n" "$3" "$3"', "is not what was asked for"),
    "deep": (
        'printf "%s begin\\n" "$3"; head -c 100000 /dev/zero | tr "\\0" "["; '
        'printf "\\n%s end\\n" "$3"',
        "is not what was asked for",
    ),
    "cut": ('printf "%s begin\\n{\\"time\\": 1" "$3"', "the answer was cut off after 10 char"),
    "megabytes": ("yes", "more than 4194304 bytes came"),
    "escapes": ('printf "\\033]0;owned\\007\\033[2J no\\n" >&2; exit 3', r"\\x1b\]0;owned"),
    "no python": ("exec /nonexistent/python", "did not run"),
    "old python": (
        'echo "  File x, line 1" >&2; echo "SyntaxError: invalid syntax" >&2; exit 1',
        "is too old",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_node_is_one_message(cluster: Strangers, url: str, kind: str) -> None:
    script, wanted = HOSTILE[kind]
    python = cluster.owners("python", f"#!/bin/sh\n{script}\n")
    done = cluster.ask("attach", url, "--name", next(names), "--node", "box", "--python", python)
    assert done.returncode == 1, done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr
    assert re.search(wanted, done.stderr), done.stderr


#: What runs on a node: of attach, and around a program of probe; each made to last.
LASTING = """
import sys, time
from orchestrator.attach.reach import AROUND, WITH_MODULES, own_text
last = "import time; print('waits', flush=True); time.sleep(600)"
start = "facts() -> Facts:"
facts = own_text("node_facts").replace(start, start + "\\n    exec(" + repr(last) + ")")
package = "orchestrator.attach."
texts = [(package + name, own_text(name)) for name in ("node_hardware", "node_log")]
facts = WITH_MODULES.format(texts=[*texts, ("", facts)])
print(AROUND.format(text=last if sys.argv[1] == "probe" else facts))
"""


@pytest.mark.parametrize("kind", ["attach", "probe"])
def test_what_runs_on_a_node_ends_with_its_time_and_with_the_connection(
    cluster: Strangers, kind: str
) -> None:
    python = cluster.orchestrate.parent / "python"
    made = cluster.run(python, "-c", LASTING, kind)
    assert made.returncode == 0, made.stderr
    script = cluster.owners("lasting.py", made.stdout)
    late = cluster.run("sh", "-c", f"python3 -I - mark 1 {{}} <{script}", who=OWNER)
    assert late.returncode in (-signal.SIGALRM, 128 + signal.SIGALRM), late.stderr
    before = left(cluster)
    over = "exec ssh -T -o RemoteCommand=none -o RequestTTY=no box python3 -I - mark 600 {}"
    argv = cluster.argv(VISITOR, "sh", "-c", f"{over} <{script}")
    ssh = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert ssh.stdout is not None
    assert any("waits" in line for line in ssh.stdout)
    assert any("mark 600" in line for line in left(cluster))
    ssh.kill()
    ssh.wait()
    ssh.stdout.close()
    assert any(left(cluster) == before for _ in until(30)), (before, left(cluster))


FAULTS = {
    "html": "this is not an OpenAI-like API",
    "json": "this is not an OpenAI-like API",
    "huge": "more than 8 MiB came",
    "drop": "disconnected|reset|closed",
    "empty": "serves no model",
    "escapes": "control characters",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_endpoint_that_is_not_vllms_is_one_message(cluster: Strangers, fault: str) -> None:
    with cluster.serving(*FLAGS, "--fault", fault) as url:
        done = cluster.ask("attach", url, "--name", next(names))
    assert done.returncode in (1, 2)
    assert re.search(FAULTS[fault], done.stderr), done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_keys(cluster: Strangers) -> None:
    with cluster.serving(*FLAGS, "--api-key", SECRET) as url:
        missing = cluster.ask("attach", url)
        wrong = cluster.ask("attach", url, "--key-env", "K", K="other")
        unset = cluster.ask("attach", url, "--key-env", "K")
        both = cluster.ask("attach", url, "--key-env", "K", "--key-file", "k")
        cluster.run("sh", "-c", f"echo {SECRET} >key")
        by_file = cluster.ask("attach", url, "--key-file", "key", "--name", next(names))
    assert (missing.returncode, wrong.returncode, unset.returncode) == (1, 1, 2)
    assert "HTTP 401: it wants an API key" in missing.stderr
    assert "HTTP 401: the API key is wrong" in wrong.stderr
    assert "the variable K with the endpoint's API key is not set" in unset.stderr
    assert both.returncode == 2
    assert by_file.returncode == 0 and "needs a key" in by_file.stdout
    assert SECRET not in by_file.stdout + by_file.stderr


def test_two_models_and_a_router(cluster: Strangers) -> None:
    with cluster.serving("one", "--served-model-name", "a,b", "--fault", "router") as url:
        unclear = cluster.ask("attach", url)
        unknown = cluster.ask("attach", url, "--model", "c")
        found, text = attach(cluster, url, "--model", "b", "--node", "box")
    assert "serves 2 models: a, b" in unclear.stderr and "--model NAME" in unclear.stderr
    assert "does not serve 'c'" in unknown.stderr
    assert yaml.safe_load(text)["serving"]["model"] == "b"
    assert sum("a router in front?" in str(each) for each in found["unknown"]) >= 2


def test_https_with_an_authority_of_ones_own(cluster: Strangers) -> None:
    cluster.machine.sh(
        f"cd /home/{OWNER} && openssl req -x509 -newkey rsa:2048 -nodes -keyout tls.key "
        "-out tls.crt -subj /CN=x -addext subjectAltName=IP:127.0.0.1 2>/dev/null && "
        "cat tls.key tls.crt >tls.pem && chmod 644 tls.* && cp tls.crt /home/ca.pem"
    )
    with cluster.serving(*FLAGS, "--tls", f"/home/{OWNER}/tls.pem") as url:
        refused = cluster.ask("attach", url)
        _, text = attach(cluster, url, "--ca", "/home/ca.pem")
        not_pem = cluster.ask("attach", url, "--ca", "/etc/passwd")
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr and "--ca FILE" in refused.stderr
    assert yaml.safe_load(text)["endpoint"]["ca"] == "/home/ca.pem"
    assert not_pem.returncode == 2 and "/etc/passwd" in not_pem.stderr


def test_wrong_words_are_refused_before_anything_is_asked(cluster: Strangers) -> None:
    for words in (
        ("ftp://x",),
        ("http://user:secret@x",),
        ("http://127.0.0.1:1", "--node", "-oProxyCommand=touch x"),
        ("http://127.0.0.1:1", "--node", "a b"),
        ("http://127.0.0.1:1", "--node", "box", "--enter", '"'),
        ("http://127.0.0.1:1", "--name", "../x"),
    ):
        done = cluster.ask("attach", *words)
        assert done.returncode == 2, words
        assert "traceback" not in done.stderr.lower()


def test_a_file_is_not_replaced_and_a_read_only_place_is_said(cluster: Strangers, url: str) -> None:
    assert cluster.ask("attach", url, "--out", "here.yml").returncode == 0
    again = cluster.ask("attach", url, "--out", "here.yml")
    assert again.returncode == 2 and "--force" in again.stderr
    assert cluster.ask("attach", url, "--out", "here.yml", "--force").returncode == 0
    closed = cluster.ask("attach", url, "--out", "/proc/here.yml")
    assert closed.returncode == 1 and "/proc/here.yml" in closed.stderr


def test_what_needs_power_or_an_image_says_that_it_is_not_ours(
    cluster: Strangers, url: str
) -> None:
    found, _ = attach(cluster, url)
    named = ("--profile", str(found["profile"]))
    for words in (
        ("up",),
        ("down",),
        ("plan",),
        ("watch",),
        ("netboot", "options"),
        ("image", "use", "x"),
        ("node", "up", "--all"),
        ("trust", "status"),
        ("support-bundle",),
        ("sim", "link"),
    ):
        done = cluster.ask(*words, *named)
        assert done.returncode in (1, 2), words
        assert "this cluster is not ours (machines: existing)" in done.stderr, (words, done.stderr)
