"""`orchestrate model pull` without a commit: by a branch, with the line that pins it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROJECT
from support.hub import NEWEST, REPOSITORY, REVISION
from support.hub_box import WEIGHTS, Box, boxed

from orchestrator.models import hub as hubs


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with boxed(tmp_path) as found:
        yield found


def test_a_model_without_a_revision_comes_from_main_with_the_line_that_pins_it(box: Box) -> None:
    done = box.pull("open")
    assert done.returncode == 0, done.stderr
    assert "open: 3 files" in done.stdout
    assert done.stdout.splitlines()[-2].endswith("small.yml:36: models.open:")
    assert done.stdout.splitlines()[-1] == f"    revision: {NEWEST}"
    home = box.home.parent / NEWEST
    assert (home / WEIGHTS).read_bytes() == box.hub.files[WEIGHTS]
    assert set(hubs.manifest(home)) == {"config.json", "tokenizer.json", WEIGHTS}
    # The line, where it was said that it belongs, is all that the profile lacks.
    file = box.root / "profiles/small.yml"
    line = done.stdout.splitlines()[-1].strip()
    file.write_text(
        file.read_text()
        .replace(
            f"open: {{repository: {REPOSITORY}}}", f"open: {{repository: {REPOSITORY}, {line}}}"
        )
        .replace("model: big", "model: open")
    )
    again = box.pull()
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert "revision" not in again.stdout


def test_a_served_model_without_a_revision_can_be_pulled_and_not_served(box: Box) -> None:
    file = box.root / "profiles/small.yml"
    file.write_text(file.read_text().replace("model: big", "model: open"))
    assert box.pull().returncode == 0
    refused = subprocess.run(
        [sys.executable, "-m", "orchestrator", "profile", "check", str(file)],
        cwd=PROJECT, env=box.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "models.open.revision: is missing" in refused.stderr
    assert "'orchestrate model pull open' pulls the newest commit" in refused.stderr


@pytest.mark.parametrize(
    ("branch", "commit"), [("main", NEWEST), ("older", REVISION), (REVISION, REVISION)]
)
def test_a_branch_is_pulled_at_the_commit_that_it_is_at(branch: str, commit: str, box: Box) -> None:
    found = box.json(
        "pull", "open", "--revision", branch, "--profile", box.root / "profiles/small.yml"
    )
    assert (found["revision"], found["pinned"], found["files"]) == (commit, False, 3)
    assert Path(found["directory"]) == box.home.parent / commit


def test_another_branch_than_the_pinned_commit_is_said_to_be_one(box: Box) -> None:
    done = box.pull("--revision", "main")
    assert done.returncode == 0, done.stderr
    assert f"replace {REVISION} at" in done.stdout and f"    revision: {NEWEST}" in done.stdout
    assert not box.home.exists()


def test_a_branch_that_is_not_there_is_said(box: Box) -> None:
    done = box.pull("--revision", "nobodys")
    assert done.returncode == 1 and "no such commit, branch or tag" in done.stderr


def test_a_directory_cannot_say_which_commit_it_is(box: Box) -> None:
    done = box.pull("open", "--from", box.root)
    assert done.returncode == 2 and "models.open" in done.stderr
    assert "--revision COMMIT" in done.stderr
