"""What samplers read of a real kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.performance.bench.sample import series
from orchestrator.provision.machines.cgroup import MOUNT

PROJECT = Path(__file__).resolve().parents[2]
UNIT = f"orchestrate-test-{os.getpid()}.service"
#: Where quotas are on hosts with control groups of the old kind; tests/netboot has the new one.
OLD = MOUNT / "cpu"
#: Of a processor, for who wants all of it.
QUOTA_US, PERIOD_US = 20_000, 100_000


@contextmanager
def limited() -> Iterator[Path]:
    """A control group where systemd would have the unit's, with a quota."""
    made = [path for path in (OLD / "system.slice", OLD / "system.slice" / UNIT)
            if not path.exists()]  # fmt: skip
    for path in made:
        path.mkdir()
    try:
        (made[-1] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (made[-1] / "cpu.cfs_quota_us").write_text(str(QUOTA_US))
        yield made[-1]
    finally:
        for path in reversed(made):
            with suppress(OSError):  # somebody else's came in between
                path.rmdir()


@pytest.mark.skipif(
    not (OLD / "cgroup.procs").exists(), reason="control groups are of the new kind here"
)
def test_a_services_quota_is_seen_in_control_groups_of_the_old_kind() -> None:
    program = PROJECT / "orchestrator/performance/bench/sampler.py"
    busy = [sys.executable, "-I", "-S", "-c", "while True: pass"]
    sampler = [sys.executable, "-I", "-S", str(program), "", UNIT]
    with limited() as group, subprocess.Popen(busy) as wants:
        try:
            (group / "cgroup.procs").write_text(str(wants.pid))
            with subprocess.Popen(
                sampler, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as reads:
                assert reads.stdin and reads.stdout
                lines = [json.loads(reads.stdout.readline()) for _ in range(3)]
                reads.stdin.close()
        finally:
            wants.kill()
            wants.wait()
    found = {each.name: each.values for each in series({"a": lines}, {})}
    assert max(found["quota"]) > 50
