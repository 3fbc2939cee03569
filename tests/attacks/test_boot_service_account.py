"""The door: the control node's boot service, if a request took it over.

It owns one directory. Root reads its events there and writes nothing: neither a link nor a second
name shows another file, and a pipe holds nobody up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.node.paths import LASTING
from orchestrator.provision.netboot import probe_boot, state

MAC = "02:00:0a:4d:00:10"
EVENT = {"time": 1.0, "kind": "identity"}
SECRET = json.dumps({"time": 2.0, "kind": "identity", "text": "of root"}) + "\n"


def look(directory: Path) -> dict[str, Any]:
    """What root reads of boots, as `orchestrate status` does on the control node."""
    if shutil.which("journalctl") is None:
        pytest.skip("needs journalctl (Debian: systemd)")
    want = {
        **{"dnsmasq": "no-such-unit.service", "files": "no-such-unit.service"},
        **{"since": "-1min", "wanted": ".", "machines": [MAC]},
        "events": str(directory / state.EVENTS),
    }
    argv = [sys.executable, "-I", probe_boot.__file__, json.dumps(want)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def events(tmp_path: Path) -> Path:
    (tmp_path / state.EVENTS).mkdir(parents=True)
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path / state.EVENTS / f"{MAC.replace(':', '-')}.jsonl"


def test_its_events_are_read(events: Path, tmp_path: Path) -> None:
    events.write_text(json.dumps(EVENT) + "\n")
    assert look(tmp_path)["events"] == [EVENT]


def test_its_directory_is_no_way_to_another(events: Path, tmp_path: Path) -> None:
    events.parent.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / events.name).write_text(SECRET)
    events.parent.symlink_to(tmp_path / "elsewhere")
    assert look(tmp_path)["events"] == []


@pytest.mark.parametrize("how", ["link", "second name", "pipe", "directory"])
def test_nothing_else_is_read_in_their_place(events: Path, tmp_path: Path, how: str) -> None:
    match how:
        case "link":
            events.symlink_to(tmp_path / "secret")
        case "second name":
            events.hardlink_to(tmp_path / "secret")
        case "pipe":
            os.mkfifo(events)
        case "directory":
            events.mkdir()
    assert look(tmp_path)["events"] == []


def test_what_root_writes_is_beside_its_directory() -> None:
    assert Path(LASTING, state.LEASES).parent == Path(LASTING)
    assert Path(LASTING, state.EVENTS).parent == Path(LASTING, state.BOOT_STATE)
