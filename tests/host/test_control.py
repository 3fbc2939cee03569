"""From a laptop to a control host, over a real sshd: control_case has the two."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from support.control import ADDRESS, SPACES, Pair

from orchestrator.cli import control_host as module
from orchestrator.cli.control_host import archive, digest_of
from orchestrator.cli.where import without_profile
from orchestrator.provision.machines import netns

#: A command line that no other process has.
LOOP = ("watch", "--interval", "0.517")


def test_a_sync_brings_the_tree_and_the_second_one_nothing(pair: Pair) -> None:
    first = json.loads(pair.run("control", "sync", "--json").stdout)
    assert first["changed"] and first["host"] == "nuc"
    assert (pair.there / "flake.nix").read_bytes() == (pair.checkout / "flake.nix").read_bytes()
    assert os.access(pair.there / "tools/demo.sh", os.X_OK)
    assert not (pair.there / "laptop-state").exists()
    assert "nothing changed" in pair.run("control", "sync").stdout
    assert (pair.root / "control/set-ups").read_text() == "set up\n"
    # Nix takes from a checkout what git knows.
    seen = subprocess.run(["git", "-C", pair.there, "status", "--short"], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert seen.stdout == ""


def test_what_is_removed_or_changed_here_is_so_there(pair: Pair) -> None:
    odd = pair.checkout / "profiles/a b; $(touch owned) 'x'.txt"
    odd.write_text("odd")
    pair.run("control", "sync")
    assert (pair.there / "profiles" / odd.name).read_text() == "odd"
    (pair.there / ".venv/kept").write_text("the environment stays")
    odd.unlink()
    (pair.checkout / "README.md").write_text("changed")
    pair.run("control", "sync")
    assert not (pair.there / "profiles" / odd.name).exists()
    assert (pair.there / "README.md").read_text() == "changed"
    assert (pair.there / ".venv/kept").exists()
    assert not list(pair.root.rglob("owned"))


def test_a_command_runs_there_with_its_output_and_exit_code(pair: Pair) -> None:
    listed = json.loads(pair.run("profile", "list", "--json", "--on-control").stdout)
    assert any("orchestrate/profiles/demo.yml" in row["path"] for row in listed)
    assert str(pair.checkout) not in json.dumps(listed)
    wrong = pair.run("--on-control", "profile", "check", "nosuch", ok=False)
    assert wrong.returncode == 2 and "nosuch" in wrong.stderr
    pair.run("profile", "use", "demo", "--on-control")
    assert (pair.root / "control-state/active-profile").exists()
    assert not (pair.root / "laptop-state/active-profile").exists()


def test_a_profile_that_names_its_host_sends_commands_there_by_itself(pair: Pair) -> None:
    done = pair.run("status", ok=False)
    assert done.returncode == 1
    assert "not built on this machine" in done.stderr  # said by the control host
    assert (pair.there / "flake.nix").exists()
    # What concerns no cluster is done here.
    assert str(pair.checkout) in pair.run("profile", "list", "--json").stdout


def test_a_profile_by_path_comes_along(pair: Pair) -> None:
    mine = pair.root / "mine.yml"
    text = (pair.checkout / "profiles/demo.yml").read_text()
    mine.write_text(text.replace("name: demo", "name: mine"))
    done = pair.run("profile", "show", "--json", "--profile", str(mine), "--on-control")
    assert json.loads(done.stdout)["profile"]["name"] == "mine"


def test_ctrl_c_ends_what_runs_there(pair: Pair) -> None:
    argv = pair.on_laptop([sys.executable, "-m", "orchestrator", *LOOP])
    process = subprocess.Popen(
        argv, env=pair.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "not built" in process.stdout.readline()  # it runs
        assert running_loops() != []
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert running_loops() == []


def running_loops() -> list[str]:
    """Process ids of the control host's side of LOOP, by its interpreter's words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[1:3] == ["-m", "orchestrator"] and tuple(words[3:6]) == LOOP:
            environment = (file.parent / "environ").read_bytes()
            if b"ORCHESTRATE_ON_CONTROL" in environment:
                found.append(file.parent.name)
    return found


def test_cmd_quotes_its_words_and_passes_streams(pair: Pair) -> None:
    pair.run("control", "sync")
    hostile = ["X; echo Y", "$(id)", "a b", "'", "*", "--json"]
    done = pair.run("control", "cmd", "--", "printf", "%s\\n", *hostile)
    assert done.stdout.splitlines() == hostile
    assert pair.run("control", "cmd", "--", "cat", stdin="through").stdout == "through"
    assert pair.run("control", "cmd", "--", "sh", "-c", "exit 7", ok=False).returncode == 7
    assert pair.run("control", "cmd", "pwd").stdout == "/root/orchestrate\n"


def test_a_directory_that_no_sync_made_is_left_alone(pair: Pair) -> None:
    pair.there.mkdir()
    (pair.there / "thesis.txt").write_text("years of work")
    done = pair.run("control", "sync", ok=False)
    assert "was not created by a sync" in done.stderr and "control_host.path" in done.stderr
    assert (pair.there / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_sync_leaves_the_old_tree_or_the_new_one(pair: Pair) -> None:
    pair.run("control", "sync")
    # Cut off while it came: a half tree beside.
    (pair.root / "control/orchestrate.sync/new/half").mkdir(parents=True)
    (pair.checkout / "README.md").write_text("second")
    pair.run("control", "sync")
    assert (pair.there / "README.md").read_text() == "second" and not (pair.there / "half").exists()
    # Cut off between the two renames: the old tree is there under its other name.
    pair.there.rename(pair.root / "control/orchestrate.sync/before")
    (pair.checkout / "README.md").write_text("third")
    pair.run("control", "sync")
    assert (pair.there / "README.md").read_text() == "third"
    assert (pair.there / ".venv/bin/python").exists()


def test_an_unknown_host_key_is_refused(pair: Pair) -> None:
    other = pair.root / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    known = pair.root / "laptop/.ssh/known_hosts"
    known.write_text(f"{ADDRESS['control']} {other.with_suffix('.pub').read_text()}")
    done = pair.run("control", "sync", ok=False)
    assert "ssh nuc" in done.stderr and "ost key verification failed" in done.stderr
    assert not pair.there.exists()


def test_a_host_that_does_not_answer_is_named(pair: Pair) -> None:
    netns.ip(SPACES["control"], "link", "set", "eth0", "down")
    config = pair.root / "laptop/.ssh/config"
    config.write_text(config.read_text() + " ConnectTimeout 2\n")
    done = pair.run("status", ok=False)
    assert "nuc: ssh failed" in done.stderr


def test_a_failed_set_up_is_said_and_tried_again(pair: Pair) -> None:
    script = pair.checkout / "tools/setup.sh"
    right = script.read_text()
    script.write_text("#!/bin/sh\necho no room >&2; exit 9\n")
    done = pair.run("control", "sync", ok=False)
    assert "no room" in done.stderr and "exit code 9" in done.stderr
    script.write_text(right)
    pair.run("control", "sync")
    assert (pair.there / ".venv/bin/python").exists()


# Pure.


def test_the_digest_is_of_names_contents_and_what_may_run(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    before = digest_of({"a": file})
    assert digest_of({"b": file}) != before
    file.chmod(0o755)
    assert digest_of({"a": file}) != before
    file.chmod(0o644)
    os.utime(file, (1, 1))
    assert digest_of({"a": file}) == before
    assert archive({"a": file}) == archive({"a": file})


def test_the_profile_is_named_by_a_variable_there() -> None:
    words = ["up", "--profile", "x", "--node", "1", "--profile=y", "--", "--profile", "z"]
    assert without_profile(words) == ["up", "--node", "1", "--", "--profile", "z"]
    assert shlex.split(module._sh("echo", "a b")) == ["sh", "-c", "echo", "sh", "a b"]
