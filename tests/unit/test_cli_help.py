"""Help beyond --help: examples, pages in the terminal, completion as a real shell asks for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.commands import leaves

from orchestrator.cli import pages

PROJECT = Path(__file__).resolve().parents[2]


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=PROJECT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("path", "command"), [pytest.param(*x, id=x[0]) for x in leaves()])
def test_every_command_shows_an_example_of_itself(path: str, command: click.Command) -> None:
    assert f"Example: {path}" in (command.help or "")


def test_every_page_is_listed_and_printed() -> None:
    listed = {page["topic"] for page in json.loads(run("doc", "--json").stdout)}
    sections = [path for path in (PROJECT / "docs").rglob("*.md") if path.parent.name != "docs"]
    assert listed == {path.stem for path in sections}
    assert len(listed) == len(sections), "two pages have one name"
    page = pages.find("first-cluster")
    assert run("doc", "first-cluster").stdout == page.path.read_text()
    assert page.title in run("doc").stdout


def test_part_of_a_name_is_enough_where_it_is_one_page() -> None:
    assert run("doc", "first-clus").stdout == pages.find("first-cluster").path.read_text()
    several = run("doc", "hardware")
    assert several.returncode == 2
    assert "hardware-0.1-arc-a770" in several.stderr and "hardware-0.2" in several.stderr
    wrong = run("doc", "frist-cluster")
    assert wrong.returncode == 2 and "did you mean 'first-cluster'" in wrong.stderr


def test_a_terminal_gets_rendered_text_in_a_pager() -> None:
    """script(1) gives the command a terminal; PAGER says what it was given."""
    argv = f"{sys.executable} -m orchestrator doc first-cluster"
    env = os.environ | {"PAGER": "cat", "TERM": "xterm"}
    done = subprocess.run(
        ["script", "-qec", argv, "/dev/null"],
        cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert pages.find("first-cluster").title in done.stdout
    assert "# " not in done.stdout.splitlines()[0] and "\x1b]8" not in done.stdout


def test_without_a_checkout_it_says_where_the_pages_are(tmp_path: Path) -> None:
    done = run("doc", ORCHESTRATE_CHECKOUT=str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr and "checkout" in done.stderr


#: What is typed, and a word that the shell then has to offer.
TYPED = [
    ("orchestrate ver", "verify"),
    ("orchestrate image fetch pxe-s", "pxe-sim"),
    ("orchestrate up --profile si", "sim"),
    ("orchestrate profile use 0.", "0.2"),
    ("orchestrate plan --profile sim --node comp", "compute1"),
    ("orchestrate doc first", "first-cluster"),
    ("orchestrate up --unt", "--until"),
    ("orchestrate plan --only ser", "serving"),
]


@pytest.mark.parametrize(("line", "word"), TYPED, ids=[line for line, _ in TYPED])
def test_bash_completes(line: str, word: str, tmp_path: Path) -> None:
    """The printed script, sourced by bash; its function called as bash calls it on Tab."""
    program = tmp_path / "orchestrate"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom orchestrator.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    words = line.split()
    ask = (
        f"source <({program} completion bash); COMP_WORDS=({line}); COMP_CWORD={len(words) - 1};"
        ' "$(complete -p orchestrate | sed -E "s/.*-F ([^ ]+).*/\\1/")" orchestrate;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        ["bash", "-c", ask], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    assert word in done.stdout.split(), done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_the_shell_reads(shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_ORCHESTRATE_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, timeout=60, check=True)


def test_completion_offers_nothing_where_the_profile_is_wrong() -> None:
    env = {"_ORCHESTRATE_COMPLETE": "bash_complete", "COMP_CWORD": "5"}
    done = run(COMP_WORDS="orchestrate plan --profile nosuch --node c", **env)
    assert done.stdout.strip() == "" and "Traceback" not in done.stderr
