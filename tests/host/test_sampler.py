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
from support.recorded import ACCELERATORS, laid_out

from orchestrator.performance.bench.sample import SAMPLER, series
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


#: Reads what nvidia-smi prints again and again in the background: it comes some lines later.
LINES = 20
#: What the kernel's files tell is in the first line.
AT_ONCE = 2


@pytest.mark.parametrize("path", ACCELERATORS, ids=lambda path: path.stem)
def test_recorded_accelerators_are_sampled_by_the_table_that_attach_reads(
    path: Path, tmp_path: Path
) -> None:
    case = laid_out(path, tmp_path)
    wanted = case.get("sampled", {})
    enter = 'mount --rbind "$0/root/sys" /sys; PATH="$0/bin:$PATH" exec "$@"'
    words = [sys.executable, "-I", "-S", "-c", SAMPLER, ""]
    argv = ["unshare", "--mount", "sh", "-c", enter, str(tmp_path), *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reads:
        assert reads.stdin and reads.stdout
        for _ in range(LINES if wanted else AT_ONCE):
            told = json.loads(reads.stdout.readline())["hardware"]
            found: dict[str, list[float]] = {}
            for name, value in told.items():
                unit = name.partition(" of ")[0]
                if "GPU" in unit:
                    found.setdefault(unit, []).append(value)
            if set(wanted) <= set(found):
                break
        reads.stdin.close()
    assert found == wanted
