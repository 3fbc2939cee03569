"""The agent in a real machine, for each kind of resource: cold, again, drifted, and killed between
any two of its steps. The machine is not configured otherwise."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.killing import KILLED
from support.sim import Sim

from orchestrator.node.agent_program import program
from orchestrator.node.paths import VENV
from orchestrator.node.resources import Directory, File, NetworkLink, Step, Sysctl, Unit, User
from orchestrator.node.state import NodeState

pytestmark = pytest.mark.sim

NODE = "compute0"
UNIT = "agent-test.service"
PATH = f"/etc/systemd/system/{UNIT}"
UNIT_TEXT = "[Service]\nEnvironmentFile=/etc/agent-test/env\nExecStart=/usr/bin/sleep infinity\n"

#: A link with a carrier (its other end is in the machine too), down and without address.
PLUG = "ip link add agent-test0 type veth peer name agent-test1; ip link set agent-test1 up"
#: Puts the machine back to before the first run, but for what systemd remembers of the unit.
UNDO = f"""
systemctl stop {UNIT}; rm -rf {PATH} /etc/agent-test /run/orchestrate/agent.json
rm -f /etc/systemd/network/10-agent-test.network /etc/ssh/authorized_keys.d/agent-test
systemctl daemon-reload
pkill -u agent-test; userdel --remove agent-test; rm -rf /home/agent-test
ip link del agent-test0; networkctl reload; {PLUG}; sysctl -qw net.core.somaxconn=4096
true
"""


def wanted(somaxconn: str = "4321", motto: str = "one") -> dict[str, Any]:
    """A document with every kind of resource."""
    step = Step.BASE
    revision = f"started with {motto}"
    address = "10.99.0.5/24"
    # No router and no link-local address: networkd would wait for them.
    network = (
        "[Match]\nName=agent-test0\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        f"Address={address}\n"
    )
    return NodeState(
        NODE,
        sysctls=(Sysctl(step, "net.core.somaxconn", somaxconn),),
        links=(
            NetworkLink(
                step,
                "agent-test0",
                (address,),
                "/etc/systemd/network/10-agent-test.network",
                network,
            ),
        ),
        users=(User(step, "agent-test", 54321, groups=("video",)),),
        directories=(Directory(step, "/etc/agent-test", group="agent-test", mode="0750"),),
        files=(
            File(step, "/etc/agent-test/env", f"MOTTO={motto}\n", owner="agent-test", mode="0600"),
            File(step, "/etc/ssh/authorized_keys.d/agent-test", "ssh-ed25519 KEY\n"),
            File(step, PATH, UNIT_TEXT),
        ),
        units=(Unit(step, UNIT, (PATH, "/etc/agent-test/env"), revision=revision),),
    ).document()


#: Ends when networkd has done what its file of the link asks for: it does that some time after the
#: agent told it to read the file, and would undo what a test does to the link meanwhile.
SETTLED = """
number=$(cat /sys/class/net/agent-test0/ifindex)
until grep -qx ADMIN_STATE=configured /run/systemd/netif/links/$number
do sleep 0.1; done
"""

KINDS = (
    "sysctl:net.core.somaxconn",
    "link:agent-test0",
    "user:agent-test",
    "directory:/etc/agent-test",
    "file:/etc/agent-test/env",
    "file:/etc/ssh/authorized_keys.d/agent-test",
    f"file:{PATH}",
    f"unit:{UNIT}",
)


class Machine:
    """The machine, entered from outside."""

    def __init__(self, sim: Sim) -> None:
        pid = sim.machine(NODE)
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        self.enter = ["nsenter", "--target", child, "--all", "--"]

    def run(self, *argv: str, stdin: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.enter, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0 or not ok, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def ask(self, verb: str, document: dict[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
        """Run the agent; resource -> its entry in the report."""
        request = json.dumps({"verb": verb, "root": "/", "state": document} | more)
        source = program()
        done = self.run(f"{VENV}/bin/python", "-I", "-S", "-c", source, stdin=request)
        return {entry["id"]: entry for entry in json.loads(done.stdout)["resources"]}

    def kill_at(self, step: int, document: dict[str, Any]) -> bool:
        """Run the agent until it is killed before a step; whether it came to that step."""
        request = json.dumps({"verb": "apply", "root": "/", "state": document})
        source = program()
        argv = [f"{VENV}/bin/python", "-I", "-S", "-c", KILLED, str(step), source]
        done = self.run(*argv, stdin=request, ok=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode != 0

    def undo(self) -> None:
        """As before the first run, networkd included: it forgets the file that it has read."""
        self.run("sh", "-c", UNDO)

    def settle(self) -> None:
        """Give networkd the time to be done; now and then it was seen to stay at it for ever."""
        self.run("timeout", "20", "sh", "-c", SETTLED, ok=False)


@pytest.fixture
def machine(machines: Sim) -> Iterator[Machine]:
    """A machine that has booted, as before the first run of the agent, and left so."""
    machine = Machine(machines)
    machine.run("sh", "-c", "timeout 120 sh -c 'until systemctl is-active -q network.target;"
                " do sleep 0.2; done'")  # fmt: skip
    machine.undo()
    yield machine
    machine.undo()


def statuses(report: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: entry["status"] for name, entry in report.items()}


def differing(machine: Machine, document: dict[str, Any]) -> dict[str, list[str]]:
    report = machine.ask("look", document)
    assert [entry for entry in report.values() if "error" in entry] == []
    return {name: entry["changes"] for name, entry in report.items() if entry["changes"]}


def seen_to_differ(machine: Machine, document: dict[str, Any], drift: str) -> dict[str, list[str]]:
    """What differs after a drift, which is made again where networkd was quicker to undo it."""
    end = time.monotonic() + 20
    while True:
        machine.run("sh", "-c", drift)
        found = differing(machine, document)
        if found or time.monotonic() > end:
            return found


def in_the_end(machine: Machine, document: dict[str, Any]) -> dict[str, list[str]]:
    """What differs once networkd, which was told to read its file again, has had its time."""
    end = time.monotonic() + 20
    while (found := differing(machine, document)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def test_cold_then_nothing(machine: Machine) -> None:
    cold = differing(machine, wanted())
    assert tuple(cold) == KINDS
    assert statuses(machine.ask("apply", wanted())) == dict.fromkeys(KINDS, "changed")
    assert differing(machine, wanted()) == {}
    assert set(statuses(machine.ask("apply", wanted())).values()) == {"unchanged"}
    assert machine.run("cat", "/proc/sys/net/core/somaxconn").stdout == "4321\n"
    assert "10.99.0.5/24" in machine.run("ip", "address", "show", "agent-test0").stdout
    assert "video" in machine.run("id", "-nG", "agent-test").stdout.split()
    assert machine.run("systemctl", "is-active", UNIT).stdout == "active\n"


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        ("sysctl -qw net.core.somaxconn=99", {"sysctl:net.core.somaxconn": ["value"]}),
        ("ip address flush dev agent-test0", {"link:agent-test0": ["address"]}),
        ("ip link set agent-test0 down", {"link:agent-test0": ["up"]}),
        ("echo >>/etc/systemd/network/10-agent-test.network", {"link:agent-test0": ["file"]}),
        ("usermod --shell /bin/sh agent-test", {"user:agent-test": ["shell"]}),
        ("gpasswd -d agent-test video", {"user:agent-test": ["groups"]}),
        ("chmod 755 /etc/agent-test", {"directory:/etc/agent-test": ["mode"]}),
        ("echo X=1 >>/etc/agent-test/env", {"file:/etc/agent-test/env": ["content"]}),
        ("chown root /etc/agent-test/env", {"file:/etc/agent-test/env": ["owner"]}),
        (f"rm {PATH}", {f"file:{PATH}": ["create"]}),
        (f"systemctl stop {UNIT}", {f"unit:{UNIT}": ["start"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_drift_is_named_and_only_that_is_mended(
    machine: Machine, drift: str, expected: dict[str, list[str]]
) -> None:
    machine.ask("apply", wanted())
    machine.settle()
    found = seen_to_differ(machine, wanted(), drift)
    assert list(found) == list(expected)
    for name, changes in expected.items():
        # systemd-networkd may take the address of a link that is down: another change of the link.
        assert set(changes) <= set(found[name])
    report = statuses(machine.ask("apply", wanted()))
    assert [name for name, status in report.items() if status == "changed"] == list(expected)
    assert in_the_end(machine, wanted()) == {}


def test_an_edit_changes_what_it_is_about(machine: Machine) -> None:
    machine.ask("apply", wanted())
    edited = wanted(somaxconn="1234", motto="two")
    report = statuses(machine.ask("apply", edited))
    changed = [name for name, status in report.items() if status == "changed"]
    assert changed == ["sysctl:net.core.somaxconn", "file:/etc/agent-test/env", f"unit:{UNIT}"]
    pid = machine.run("systemctl", "show", UNIT, "--property=MainPID", "--value").stdout.strip()
    assert "MOTTO=two" in machine.run("cat", f"/proc/{pid}/environ").stdout.split("\0")


def test_what_left_the_profile_is_taken_away(machine: Machine) -> None:
    machine.ask("apply", wanted())
    nothing = NodeState(NODE).document()
    left = set(KINDS) - {"link:agent-test0", "directory:/etc/agent-test"}
    left |= {"link:agent-test0 10.99.0.5/24", "file:/etc/systemd/network/10-agent-test.network"}
    assert set(differing(machine, nothing)) == left
    assert set(statuses(machine.ask("apply", nothing)).values()) == {"changed"}
    assert machine.run("systemctl", "is-active", UNIT, ok=False).stdout == "inactive\n"
    assert machine.run("systemctl", "cat", UNIT, ok=False).returncode != 0
    assert machine.run("id", "agent-test", ok=False).returncode != 0
    assert machine.run("cat", "/proc/sys/net/core/somaxconn").stdout == "4096\n"
    assert "10.99.0.5" not in machine.run("ip", "address", "show", "agent-test0").stdout
    assert differing(machine, nothing) == {}


def test_an_interface_that_is_not_there_is_pending(machine: Machine) -> None:
    machine.run("ip", "link", "del", "agent-test0")
    report = machine.ask("apply", wanted())
    assert report["link:agent-test0"]["status"] == "pending"
    assert report[f"unit:{UNIT}"]["status"] == "changed"
    assert differing(machine, wanted()) == {"link:agent-test0": ["absent"]}
    # When it appears, networkd does it from the file that was left for it.
    machine.run("sh", "-c", PLUG)
    until = "until ip address show agent-test0 | grep -qF 10.99.0.5; do sleep 0.1; done"
    machine.run("timeout", "60", "sh", "-c", until)
    assert differing(machine, wanted()) == {}


def test_a_setting_that_the_kernel_does_not_take_is_told(machine: Machine) -> None:
    document = wanted(somaxconn="no number")
    report = machine.ask("apply", document)
    assert report["sysctl:net.core.somaxconn"]["status"] == "failed"
    assert "rejects 'no number'" in report["sysctl:net.core.somaxconn"]["error"]
    assert report[f"unit:{UNIT}"]["status"] == "changed"
    document["sysctls"][0]["name"] = "net.core.nothing"
    assert "no such setting" in machine.ask("look", document)["sysctl:net.core.nothing"]["error"]


def test_a_unit_that_ends_badly_leaves_without_a_trace(machine: Machine) -> None:
    """Ray does: what is not wanted any more would be shown as failed for ever."""
    document = wanted()
    badly = "/bin/sh -c 'trap \"exit 3\" TERM; sleep 1000 & wait'"
    start = next(line for line in UNIT_TEXT.splitlines() if line.startswith("ExecStart="))
    document["files"][2]["content"] = UNIT_TEXT.replace(start, f"ExecStart={badly}")
    machine.ask("apply", document)
    document["units"], document["files"] = [], document["files"][:2]
    assert machine.ask("apply", document)[f"unit:{UNIT}"]["status"] == "changed"
    assert UNIT not in machine.run("systemctl", "list-units", "--all", "--no-legend").stdout
    assert f"unit:{UNIT}" not in machine.ask("look", document)


def test_a_report_comes_also_when_time_is_up(machine: Machine) -> None:
    document = wanted()
    document["files"][2]["content"] = UNIT_TEXT.replace(
        "ExecStart=", "Type=oneshot\nExecStart="
    )  # its start never ends
    report = machine.ask("apply", document, limit_s=8)
    assert report[f"file:{PATH}"]["status"] == "changed"
    assert report[f"unit:{UNIT}"] | {"changes": []} == {
        "id": f"unit:{UNIT}", "changes": [], "status": "failed", "error": "timed out",
    }  # fmt: skip
    machine.run("systemctl", "stop", UNIT)
    machine.ask("apply", wanted())
    assert differing(machine, wanted()) == {}


def test_killed_between_any_two_steps_and_run_again(machine: Machine) -> None:
    # First what a first run does, then what an edit does.
    for first in (None, wanted()):
        goal = wanted() if first is None else wanted(somaxconn="99", motto="two")
        step = 1
        while True:
            machine.undo()
            if first is not None:
                machine.ask("apply", first)
            if not machine.kill_at(step, goal):
                break
            report = machine.ask("apply", goal)
            assert [entry for entry in report.values() if "error" in entry] == [], step
            assert differing(machine, goal) == {}, step
            assert machine.run("stat", "-c", "%U %a", "/home/agent-test").stdout.startswith(
                "agent-test "
            ), step
            step += 1
        assert step > 10
