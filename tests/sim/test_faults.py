"""End to end: faults, what is said of them, and that the cluster comes out of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.sim import NAME, NODES, Sim, cut, failed, wait_for

pytestmark = pytest.mark.sim


def test_an_unknown_machine_is_named(sim: Sim) -> None:
    done = sim.run("sim", "shell", "compute9", ok=False)
    assert done.returncode == 2
    assert "compute9" in done.stderr and "compute" in done.stderr


@pytest.mark.usefixtures("serving")
def test_verify_names_what_drifted_and_up_mends_it(sim: Sim) -> None:
    sim.shell("compute1", "sh", "-c", "echo 10.77.0.99 stranger >>/etc/hosts")
    report = sim.json("verify", ok=False)
    assert {(check["name"], check["node"]) for check in failed(report)} == {("drift", "compute1")}
    assert "/etc/hosts" in failed(report)[0]["seen"]
    assert "-10.77.0.99 stranger" in sim.run("plan", ok=False).stdout
    result = sim.json("up")
    assert result["changed"]["compute1"] == ["file:/etc/hosts"]
    assert "stranger" not in sim.shell("compute1", "cat", "/etc/hosts")


@pytest.mark.usefixtures("serving")
def test_a_port_in_use_is_told(sim: Sim) -> None:
    link, port = (
        sim.document["control"]["links"]["cluster"],
        sim.document["serving"]["endpoint_port"],
    )
    server = f"/opt/venvs/orchestrate/bin/python -m http.server --bind {link['address']} {port}"
    sim.shell("control", "systemctl", "stop", "nginx")
    sim.shell("control", "systemd-run", "--unit=intruder", "--service-type=exec", *server.split())
    wait = f"until ss -Hltn | grep -q {link['address']}:{port}; do sleep 0.1; done"
    sim.shell("control", "timeout", "20", "bash", "-c", wait)
    done = sim.run("up", ok=False)
    assert "nginx.service" in done.stderr and "Address already in use" in done.stderr
    assert f"{link['address']}:{port}" in done.stderr
    sim.shell("control", "systemctl", "stop", "intruder")
    assert sim.json("up")["changed"]["control"] == ["unit:nginx.service"]


def test_not_root_is_told(sim: Sim) -> None:
    """In a user namespace without a mapping: this process's files, but nobody's id."""
    argv = ["unshare", "--user", *sim.argv("up")]
    done = subprocess.run(
        argv, env=sim.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "need root" in done.stderr and "sudo" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("serving")
def test_a_full_disk_on_a_node_is_named_and_mended(sim: Sim) -> None:
    """A file system with no room, where a file has to be written."""
    full = (
        "mount -t tmpfs -o size=16k,mode=755 none /etc/orchestrate"
        " && cat /dev/zero >/etc/orchestrate/fill"
    )
    said = sim.enter("compute1", "sh", "-c", full, ok=False).stderr
    assert "No space left on device" in said
    try:
        done = sim.run("up", "--node", "compute1", "--only", "ray", ok=False)
        assert "compute1" in done.stderr and "No space left on device" in done.stderr
        assert "/etc/orchestrate/ray" in done.stderr
    finally:
        sim.shell("compute1", "umount", "/etc/orchestrate")
    assert sim.json("up")["ok"]


def test_a_full_disk_on_the_control_host_is_named(sim: Sim, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], check=True)
    try:
        (full / "images").mkdir()
        built = Path(sim.env["ORCHESTRATE_STATE"], "images", sim.document["image"])
        (full / "images" / built.name).symlink_to(built.readlink())
        with pytest.raises(OSError, match="No space left on device"):
            (full / "fill").write_bytes(bytes(1 << 20))
        done = subprocess.run(
            sim.argv("up"), env=sim.env | {"ORCHESTRATE_STATE": str(full)}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr and str(full) in done.stderr
        assert "Traceback" not in done.stderr and "bug" not in done.stderr
    finally:
        subprocess.run(["umount", full], check=True)


@pytest.mark.usefixtures("serving")
def test_a_profile_edited_since_the_plan_is_not_applied(sim: Sim) -> None:
    planned = sim.json("plan")["profile_sha256"]
    assert "nothing changed" in sim.run("up", "--if-profile", planned).stdout
    before = sim.profile.read_text()
    sim.profile.write_text(before + "sysctls: { net.ipv4.tcp_fin_timeout: 31 }\n")
    try:
        done = sim.run("up", "--if-profile", planned, ok=False)
        assert str(sim.profile) in done.stderr and "was changed since" in done.stderr
        assert sim.shell("compute0", "sysctl", "-n", "net.ipv4.tcp_fin_timeout") == "60\n"
    finally:
        sim.profile.write_text(before)


@pytest.mark.usefixtures("spendable")
def test_a_service_that_ends_again_and_again_ends_the_wait_for_it(sim: Sim) -> None:
    dropin = "/run/systemd/system/vllm.service.d"
    ends = (
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'echo no such flag; exit 2'\nRestartSec=0.1\n"
    )
    write = f"mkdir {dropin} && cat >{dropin}/ends.conf <<EOF\n{ends}EOF\n"
    sim.shell("compute0", "sh", "-c", write)
    sim.shell("compute0", "systemctl", "daemon-reload")
    try:
        # Either way: it may end before systemd calls the start done.
        sim.shell("compute0", "systemctl", "restart", "vllm", ok=None)
        done = sim.run("up", ok=False)
        assert "vllm.service ended on compute0" in done.stderr and "no such flag" in done.stderr
        assert "journalctl -u vllm.service" in done.stderr
        # No load on an endpoint that is down.
        refused = sim.run("bench", "run", "--workload", "brief", ok=False)
        assert "vllm.service" in refused.stderr and "Nothing was measured" in refused.stderr
    finally:
        sim.shell("compute0", "rm", "-r", dropin)
        sim.shell("compute0", "systemctl", "daemon-reload")


@pytest.mark.usefixtures("running")
def test_verify_names_a_stopped_worker_and_up_brings_it_back(sim: Sim) -> None:
    sim.shell("compute1", "systemctl", "stop", "ray-worker.service")
    report = sim.json("verify", ok=False)
    wrong = {(check["name"], check["node"]) for check in failed(report)}
    assert ("units", "compute1") in wrong
    nodes = next(check for check in failed(report) if check["name"] == "ray nodes")
    assert "missing: compute1" in nodes["seen"]
    result = sim.json("up")
    assert result["ok"], result
    assert "unit:ray-worker.service" in result["changed"]["compute1"]


@pytest.mark.usefixtures("running")
def test_down_leaves_nothing_and_says_so_twice(sim: Sim) -> None:
    assert "down" in sim.run("down").stdout
    assert sim.left() == []
    assert "nothing changed" in sim.run("down").stdout
    report = sim.json("verify", ok=False)
    assert not report["ok"] and failed(report)


@pytest.mark.usefixtures("ray")
def test_up_until_ray_ends_when_every_node_has_joined(sim: Sim) -> None:
    result = sim.json("up", "--until", "ray")
    assert result["ok"] and result["verify"] is None, result
    seen = sim.json("status")
    assert [node["ray"].split()[0] for node in seen["nodes"]] == ["head", "1", "1"]
    assert seen["models"] == []


@pytest.mark.usefixtures("without_compute1")
def test_a_host_killed_during_up_does_not_hold_the_others(sim: Sim) -> None:
    process = sim.start("up", "--json")
    holder = Path(sim.env["ORCHESTRATE_STATE"], "clusters", NAME, "changing")
    while str(process.pid) not in holder.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    told = sim.run("up", ok=False).stderr  # a second one, while the first holds the cluster
    assert f"process {process.pid}" in told
    while not sim.runs("compute1"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    sim.cut_power("compute1")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    result = json.loads(out)
    assert list(result["failures"]) == ["compute1"], result["failures"]
    assert "compute1" in result["failures"]["compute1"]
    for node in ("control", "compute0"):
        assert result["steps"][node]["ray"]["status"] == "done"


@pytest.mark.usefixtures("without_compute1")
@pytest.mark.parametrize("step", ["base", "ray", "serving"])
def test_a_node_that_dies_in_a_step_of_up_is_named(sim: Sim, step: str) -> None:
    process = sim.start("up")
    wait_for(process, "cluster" if step == "serving" else "compute1", step)
    sim.cut_power("compute1")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    (failure,) = failures(err)
    assert "compute1" in failure, err
    assert "lost power" in failure or "SSH" in failure, err


def failures(said: str) -> list[str]:
    """The lines in which a verb says what failed."""
    return [line for line in said.splitlines() if line.startswith("error:")]


@pytest.mark.usefixtures("without_compute1")
def test_a_cable_that_is_out_during_configuration(sim: Sim) -> None:
    process = sim.start("up", "--until", "ray")
    wait_for(process, "compute1", "base")
    with cut("compute1"):
        _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    assert len(failures(err)) == 1 and "compute1" in failures(err)[0], err
    assert sim.json("up", "--until", "ray")["ok"]


@pytest.mark.usefixtures("down")
def test_a_second_up_says_who_is_at_it_and_ctrl_c_leaves_nothing(sim: Sim) -> None:
    process = sim.start("up")
    wait_for(process, "compute0", "base")
    second = sim.run("up", ok=False)
    assert f"is being changed by 'orchestrate up' (process {process.pid})" in second.stderr
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert sim.left() == []


@pytest.mark.usefixtures("down")
def test_leftovers_of_a_killed_run_are_cleaned(sim: Sim) -> None:
    process = sim.start("up")
    wait_for(process, "compute0", "ssh")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    sim.cut_power("compute0")
    assert sim.left() != []
    assert "nothing changed" not in sim.run("up", "--until", "ssh").stdout
    assert "nothing changed" in sim.run("up", "--until", "ssh").stdout
    rows = sim.json("node", "status")["nodes"]
    assert [row["power"] for row in rows] == ["on"] * len(NODES)
    sim.run("down")
    assert sim.left() == []
