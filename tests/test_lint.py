"""Linters and type checks as tests: one way to run them, and a warning is a failure."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
#: Written by programs, byte for byte what they wrote.
GENERATED = "tests/data/golden/"
LONGEST_FILE = 420
#: A node's resources, kind by kind; its other parts are files of their own. The boot service is one
#: file, which goes to the control node as it is.
LONGER = {
    "orchestrator/node/agent.py": 540,
    "orchestrator/provision/netboot/boot_service.py": 490,
    "orchestrator/verify/first_run_steps.py": 470,
}


def listed() -> list[Path]:
    """The files that git knows or would add, without deleted ones; of a plain copy, the sources."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in sorted(set(said.splitlines())) if (PROJECT / line).is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for file in listed():
        yield file, (PROJECT / file).read_text(encoding="utf-8")


def is_shell(file: Path) -> bool:
    if str(file).startswith(GENERATED):
        return False
    with (PROJECT / file).open("rb") as stream:
        first = stream.readline()
    return file.suffix == ".sh" or (first.startswith(b"#!") and b"sh" in first.split(b"/")[-1])


def passes(*argv: str | Path) -> None:
    """Run a linter from the project's root; its output is the failure's text."""
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv[0]}:\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    passes(TOOLS / "ruff", "check", ".")


def test_python_is_formatted() -> None:
    passes(TOOLS / "ruff", "format", "--check", ".")


def test_types_are_right() -> None:
    """pyproject.toml names the files: tests and tools too, so that no name in them is stale."""
    passes(TOOLS / "mypy")


def test_a_public_class_has_its_name_alone() -> None:
    """Two things of one name in two places are taken for one another."""
    where: dict[str, list[str]] = {}
    for file in (PROJECT / "orchestrator").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(file.relative_to(PROJECT)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


#: Sent to nodes as files: what they print is read by a program here, or by the journal there.
ON_NODES = re.compile(
    r"orchestrator/(.*/(probe|node)_\w+|.*/(boot_service|sampler|wait_for_ray|meet|support_node)"
    r"|verify/first_run_steps|node/(agent|guard|kernel_\w+))\.py"
)
#: Prints its documents by the terminal's own pager.
PAGER = {"orchestrator/cli/doc.py": {"click.echo_via_pager", "Console"}}
PRINTS = re.compile(
    r"(builtins\.)?print|Console|rich\.\w+|click\.\w*echo\w*|sys\.(stdout|stderr)\.write"
    r"|traceback\.print_\w+|warnings\.warn"
)


def test_nothing_is_printed_past_the_console() -> None:
    """The console makes foreign text visible; what prints otherwise would have to think of it."""
    wrong = []
    for file, text in texts():
        inside = str(file)
        if not inside.startswith("orchestrator/") or file.suffix != ".py":
            continue
        if ON_NODES.fullmatch(inside) or inside == "orchestrator/core/console.py":
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            markup = any(each.arg == "markup" and ast.unparse(each.value) != "False"
                         for each in node.keywords)  # fmt: skip
            if markup or (PRINTS.fullmatch(called) and called not in PAGER.get(inside, ())):
                wrong.append(f"{inside}:{node.lineno}: {called}")
    assert not wrong, "print by core/console.py, and style by rich's Text:\n" + "\n".join(wrong)


def test_rooms_import_in_one_direction() -> None:
    passes(TOOLS / "lint-imports", "--no-cache", "--no-logo")


@pytest.mark.parametrize("file", [*filter(is_shell, listed())], ids=str)
def test_shellcheck_finds_nothing(file: Path) -> None:
    passes(TOOLS / "shellcheck", "--external-sources", file)


@pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="needs Nix")
def test_nix_files_can_be_read() -> None:
    files = [file for file in listed() if file.suffix == ".nix"]
    assert files
    passes("nix-instantiate", "--parse", *files)


def test_white_space() -> None:
    """No blanks at line ends, one newline at the end, tabs only where make needs them."""
    wrong = []
    for file, text in texts():
        if str(file).startswith(GENERATED) or not text:
            continue
        if not text.endswith("\n") or text.endswith("\n\n"):
            wrong.append(f"{file}: does not end in one newline")
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip():
                wrong.append(f"{file}:{number}: blanks at the end")
            if "\t" in line and file.name != "Makefile":
                wrong.append(f"{file}:{number}: a tab")
    assert not wrong, "\n".join(wrong)


def test_no_python_file_is_too_long_to_read() -> None:
    long = [
        f"{file}: {text.count(chr(10))} lines, at most {limit}"
        for file, text in texts()
        if file.suffix == ".py"
        and text.count("\n") > (limit := LONGER.get(str(file), LONGEST_FILE))
    ]
    assert not long, "\n".join(long)


#: An entry of requirements.txt: name, version, and the rest with marker and hashes.
ENTRY = re.compile(r"^([\w.-]+)==([^ ;\\\n]+)((?:.*\\\n)*.*)$", re.MULTILINE)


def unlocked(lock: str, wanted: list[str]) -> list[str]:
    """Requirements without a pinned version that meets them, and entries without a hash."""
    entries = ENTRY.findall(lock)
    pinned = {canonicalize_name(name): version for name, version, _ in entries}
    behind = [
        each.name
        for each in map(Requirement, wanted)
        if pinned.get(canonicalize_name(each.name), "none") not in each.specifier
    ]
    hashed = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")
    return behind + [name for name, _, rest in entries if not hashed.search(rest)]


def test_what_the_environment_needs_is_locked_by_hash() -> None:
    document = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project = document["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted += document["build-system"]["requires"]
    lock = (PROJECT / "requirements.txt").read_text()
    assert unlocked(lock, wanted) == [], "run: make requirements"
    assert "://" not in lock, "an address: other machines use another index"
    # The test reads all of it: nothing is left beside entries and comments.
    assert ENTRY.sub("", re.sub(r"^ *#.*$", "", lock, flags=re.MULTILINE)).strip() == ""


@pytest.mark.parametrize(
    ("lock", "wrong"),
    [
        ("", ["Click"]),
        ("click==7.1 \\\n    --hash=sha256:HASH\n    # via x\n", ["Click"]),
        ("click==8.1 \\\n    --hash=sha256:HASH\nb==1 ; python_version < '3'\n", ["b"]),
        ("click==8.1\nb==1 \\\n    --hash=sha256:HASH \\\n    --hash=sha256:HASH\n", ["click"]),
        ("click==8.1 \\\n    --hash=sha256:0123\n", ["click"]),
        ("click==8.1 \\\n    --hash=sha256:HASH\n    # via x\n", []),
    ],
)
def test_a_lock_that_is_behind_is_noticed(lock: str, wrong: list[str]) -> None:
    assert unlocked(lock.replace("HASH", "0" * 64), ["Click>=8"]) == wrong
