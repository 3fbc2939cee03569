"""A machine on the boot network that is not what it says, or says what it should not.

The boot service is a real process; its events go the whole way to the operator's terminal.
"""

from __future__ import annotations

import shutil
import stat
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from support.boot_service import MAC, Running, new_key
from support.golden import GOLDEN

from orchestrator.cluster.live_status import timeline
from orchestrator.cluster.status import NodeStatus, Status
from orchestrator.core.console import out, print_error
from orchestrator.core.run import CommandFailed, run
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout
from orchestrator.provision.netboot import look
from orchestrator.provision.netboot.diary import Diary
from orchestrator.provision.netboot.images import Image, ImageChoice

#: Clears the screen, sets the title, colours, goes back, turns the writing: and looks like a reply.
HOSTILE = "\x1b[2J\x1b]0;pwned\x07\x9b31m\x08\r\u202elive\u2066\u2028\x7f[red]ok[/red][/x]"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text)


@pytest.fixture
def slow(stopped: Running, tmp_path: Path) -> Running:
    """The service, whose ssh-keygen waits for a file ``go`` before it signs."""
    keygen = tmp_path / "bin/ssh-keygen"
    keygen.parent.mkdir()
    keygen.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/asked\n"
        f"until [ -e {tmp_path}/go ]; do sleep 0.05; done\n"
        f'exec {shutil.which("ssh-keygen")} "$@"\n'
    )
    keygen.chmod(keygen.stat().st_mode | stat.S_IXUSR)
    stopped.prefix = ["env", f"PATH={keygen.parent}:/usr/bin:/bin"]
    stopped.start()
    return stopped


class Asked(threading.Thread):
    """Asks for an identity in the background, until the certificate is being made."""

    def __init__(self, service: Running, nonce: str, key: str) -> None:
        super().__init__()
        self.status = 0
        self.service, self.nonce, self.key = service, nonce, key
        self.start()
        deadline = time.monotonic() + 30
        while not (service.home / "asked").exists():
            assert time.monotonic() < deadline, "ssh-keygen was not called"
            time.sleep(0.02)

    def run(self) -> None:
        self.status = self.service.identity(self.nonce, self.key).status_code

    def answer(self) -> int:
        (self.service.home / "go").touch()
        self.join(30)
        return self.status


def test_a_boot_that_was_superseded_while_it_was_served_gets_nothing(
    slow: Running, tmp_path: Path
) -> None:
    """The later boot is the node's own: what began before it is over, whoever asks for it."""
    key = new_key(tmp_path)
    before = Asked(slow, slow.boot(), key)
    latest = slow.boot()
    assert before.answer() == 410
    assert [event["kind"] for event in slow.events()][-1] == "refused"
    assert slow.identity(latest, key).status_code == 200
    assert slow.identity(latest, key).status_code == 409
    assert len(slow.events("identity")) == 1


def test_of_many_that_ask_at_once_one_gets_it(slow: Running, tmp_path: Path) -> None:
    key, nonce = new_key(tmp_path), slow.boot()
    asked = [Asked(slow, nonce, key) for _ in range(8)]
    assert sorted(each.answer() for each in asked) == [200] + [409] * 7
    assert len(slow.events("identity")) == 1


def logs(service: Running) -> dict[str, Any]:
    """As the control node's probe brings them, with what dnsmasq and nginx say of strangers."""
    now = time.time()
    dnsmasq = [
        (now, f"1 DHCPDISCOVER(eth0) {MAC} {HOSTILE}"),
        (now, "1 DHCPDISCOVER(eth0) 02:00:0a:4d:00:99 no address available"),
        (now, f"file /srv/{HOSTILE.replace(chr(8), '')} not found for 10.77.0.10"),
    ]
    access = {
        "time": now, "address": "10.77.0.10", "method": "GET", "uri": f"/loaders/{HOSTILE}",
        "status": 404, "bytes": 0, "seconds": 0.0, "range": "",
    }  # fmt: skip
    return {"dnsmasq": dnsmasq, "access": [access], "events": service.events()}


def test_what_a_machine_says_does_not_command_the_operators_terminal(
    service: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nonce = service.boot()
    report = f"layer:base failed 9.5 {HOSTILE}".encode()
    assert service.ask("POST", f"/boot/report?mac={MAC}&boot={nonce}", body=report).is_success
    service.ask("GET", f"/boot/ipxe?mac={MAC}", address="10.77.0.11")  # refused, and told
    profile = load(GOLDEN / "sim/profile.yml")
    names = [node.name for node in profile.nodes]
    seen = look.seen(profile, Diary(tmp_path / "timeline.jsonl"), logs(service), names)
    assert seen.netboot.refused and seen.netboot.unknown and seen.stuck
    nodes = [
        NodeStatus(name, "10.77.0.1", "on", HOSTILE, HOSTILE, {HOSTILE: "failed"}, HOSTILE, HOSTILE)
        for name in names
    ]
    status = Status(
        profile=profile.name,
        image="pxe",
        image_id="1" * 64,
        layout=Layout(tensor=2, pipeline=1, expert=False, accelerators=2),
        endpoint="http://10.77.0.1:8080",
        model=HOSTILE,
        models=[HOSTILE],
        note=HOSTILE,
        nodes=nodes,
        choice=ImageChoice(current=Image("1" * 64, "pxe")),
        seen=seen,
    )
    for table in (*status.tables(), timeline(seen.netboot.boots.values())):
        out.print(table)
    said = capsys.readouterr().out
    assert "base" in said and "x1b[2J" in said
    assert harmless(said)


def test_what_a_remote_command_says_does_not_either(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed) as failed:
        run(["sh", "-c", 'printf "%s" "$0" >&2; exit 3', HOSTILE])
    print_error(failed.value.message)
    said = capsys.readouterr().err
    assert "exit code: 3" in said and "\\x1b[2J" in said
    assert harmless(said)
