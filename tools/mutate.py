"""Break the product on purpose, one fault at a time, and see whether the tests notice.

    tools/mutate.py [--only WORD...] [--json]     `make mutants` runs all
    tools/mutate.py --check                       only whether each fault can still be put in

The faults are data: tests/mutants/ROOM.yml, a list of {id, file, find, replace, harm} with either
`tests` (which are run) or `suites` (which need root or take long: listed, not run). `find` stands
exactly once in `file`. Faults are put into a copy of the checkout, and each run of tests has a home
and temporary directories of its own. That is no sandbox: what is broken on purpose may remove what
its account may remove. So it never runs as root. Exit code: 0 where each fault was noticed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

FAULTS = "tests/mutants"
KEYS = {"id", "file", "find", "replace", "harm"}
#: Seconds for the tests of one fault, which may be a wait without an end; and for all of them once.
LIMIT, LIMIT_BEFORE = 180.0, 1800.0
#: pytest's exit code for tests that failed. (Files that cannot even be imported prove nothing.)
FAILED = 1


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def faults(project: Path) -> list[dict[str, Any]]:
    """All of them. Exits where one cannot be put in, or says not enough."""
    found, wrong = [], []
    for path in sorted((project / FAULTS).glob("*.yml")):
        for each in yaml.safe_load(text(path)):
            found.append({"room": path.stem, **each})
            where = f"{path.relative_to(project)}: {each.get('id')}"
            kinds = each.keys() - KEYS
            if not each.keys() >= KEYS or kinds not in ({"tests"}, {"suites"}):
                wrong.append(f"{where}: has to have {', '.join(sorted(KEYS))}, and tests or suites")
                continue
            if (count := text(project / each["file"]).count(each["find"])) != 1:
                wrong.append(f"{where}: `find` stands {count} times in {each['file']}, not once")
            for test in (name for kind in kinds for name in each[kind]):
                name, _, function = test.partition("::")
                if f"def {function}" not in text(project / name):
                    wrong.append(f"{where}: there is no {test}")
    names = Counter(each["id"] for each in found)
    wrong += [f"{FAULTS}: more than one is called {name}" for name in names if names[name] > 1]
    if wrong:
        sys.exit("\n".join(wrong) + "\nThe product moved on: write the fault anew, or take it out.")
    return found


def copy(project: Path, to: Path) -> None:
    """What git knows or would add. Tests ask git about the tree, so the copy is one for it."""
    argv = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=project, check=True, capture_output=True, text=True).stdout
    for name in {name for name in listed.split("\0") if (project / name).is_file()}:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, to / name, follow_symlinks=False)
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=to, check=True)


def tested(scratch: Path, tests: Sequence[str], limit: float) -> tuple[str, str]:
    """What came of the tests there, and the first that failed (of what cannot run, why)."""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORCHESTRATE_"))}
    with (
        # Short names: there are sockets in it.
        tempfile.TemporaryDirectory("", "", scratch.parent, ignore_cleanup_errors=True) as own,
        tempfile.TemporaryFile("w+") as out,
    ):
        for variable, name in (("HOME", "home"), ("TMPDIR", "t")):
            Path(own, name).mkdir()
            env[variable] = f"{own}/{name}"
        env |= {"XDG_RUNTIME_DIR": own, "PYTHONPATH": str(scratch)}
        started = subprocess.Popen(
            [*argv, f"--basetemp={own}/tests"],
            cwd=scratch, env=env, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code = started.wait(limit)
        except subprocess.TimeoutExpired:
            return "noticed", f"no end within {limit:g} s"
        finally:
            with suppress(ProcessLookupError):  # a test that was cut off leaves servers
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        out.seek(0)
        said = out.read()
    if code == 0:
        return "lived", ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return ("noticed", failed[1]) if code == FAILED and failed else ("broken", said[-500:])


def put_in(scratch: Path, fault: dict[str, Any], stamp: int) -> None:
    """Put a fault in, run its tests, take it out again. ``stamp``: by it Python sees the change."""
    path, right = scratch / fault["file"], text(scratch / fault["file"])
    for content in (right.replace(fault["find"], fault["replace"]), right):
        path.write_text(content, encoding="utf-8")
        os.utime(path, (stamp, stamp))
        stamp += 1
        if content != right:
            fault["status"], fault["by"] = tested(scratch, fault["tests"], LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults into a copy; do tests notice?")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of ids, rooms or files")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--check", action="store_true", help="run nothing")
    parser.add_argument("--project", type=Path, default=Path(__file__).resolve().parent.parent)
    given = parser.parse_args()
    every = faults(given.project)
    if given.check:
        return 0
    if os.geteuid() == 0:
        sys.exit("refused: a broken product can remove whatever root can. Use another account.")
    names = {each["id"]: f"{each['id']} {each['room']} {each['file']}" for each in every}
    chosen = [each for each in every if any(word in names[each["id"]] for word in given.only)]
    run = [each for each in chosen if "tests" in each]
    with tempfile.TemporaryDirectory(prefix="m-", ignore_cleanup_errors=True) as directory:
        copy(given.project, scratch := Path(directory, "project"))
        tests = sorted({test for each in run for test in each["tests"]})
        if run and (before := tested(scratch, tests, LIMIT_BEFORE))[0] != "lived":
            sys.exit(f"without any fault the tests do not pass: {before[1]}")
        for each, stamp in zip(run, itertools.count(10**9, 2), strict=False):
            put_in(scratch, each, stamp)
            words = (each[key] for key in ("status", "room", "id", "by"))
            print(*words, sep="  ", file=sys.stderr, flush=True)
    for each in chosen:
        each.setdefault("status", "not run")
    if given.json:
        print(json.dumps(chosen, indent=1))
    told = Counter(each["status"] for each in chosen)
    print(", ".join(f"{count} {status}" for status, count in told.items()), file=sys.stderr)
    bad = [each for each in chosen if each["status"] in ("lived", "broken")]
    for each in bad:
        print(f"{each['status']}: {each['id']}: {each['harm']}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
