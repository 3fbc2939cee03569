"""``orchestrate profile``, run as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support.profiles import PROFILE, make_checkout

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def orchestrate(tmp_path: Path) -> Run:
    """Runs ``orchestrate profile WORDS`` in a checkout with the profile 'small'."""
    make_checkout(tmp_path)
    env = {
        **{key: value for key, value in os.environ.items() if key != "ORCHESTRATE_PROFILE"},
        "ORCHESTRATE_CHECKOUT": str(tmp_path),
        "ORCHESTRATE_STATE": str(tmp_path / "state"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator", "profile", *words]
        return subprocess.run(
            argv, capture_output=True, text=True, env=env, cwd=tmp_path, check=False, timeout=60
        )

    return run


def test_use_then_check_and_show(orchestrate: Run, tmp_path: Path) -> None:
    assert orchestrate("check").returncode == 2
    used = orchestrate("use", "small")
    assert (used.returncode, used.stdout) == (
        0,
        "The active profile is small (profiles/small.yml).\n",
    )
    assert orchestrate("check").stdout == "profiles/small.yml: no errors\n"
    shown = orchestrate("show", "--json")
    document = json.loads(shown.stdout)
    layout = {"tensor": 2, "pipeline": 1, "data": 1, "expert": False, "accelerators": 2}
    assert document["layout"] == layout
    assert document["profile"]["ray"]["object_store_memory"] == 1610612736
    assert yaml.safe_load(orchestrate("show").stdout) == document
    assert (tmp_path / "state/active-profile").read_text() == "small\n"


def test_a_cluster_of_others_is_checked_chosen_and_shown_too(
    orchestrate: Run, tmp_path: Path
) -> None:
    text = "name: theirs\nmachines: existing\nendpoint: {url: 'http://x:1'}\nserving: {model: m}\n"
    (tmp_path / "profiles/theirs.yml").write_text(text)
    assert orchestrate("use", "theirs").returncode == 0
    assert orchestrate("check").stdout == "profiles/theirs.yml: no errors\n"
    document = json.loads(orchestrate("show", "--json").stdout)
    assert document["profile"]["endpoint"]["url"] == "http://x:1" and "layout" not in document
    rows = {row["name"]: row for row in json.loads(orchestrate("list", "--json").stdout)}
    assert rows["theirs"]["active"] and rows["theirs"]["summary"] == "0 machines of others, model m"
    (tmp_path / "profiles/theirs.yml").write_text(text + "image: x\n")
    checked = orchestrate("check", "theirs")
    assert checked.returncode == 2 and "theirs.yml:5: image: unknown key" in checked.stderr


def test_check_notes_what_it_cannot_know(orchestrate: Run, tmp_path: Path) -> None:
    pinned = f"big: {{repository: owner/big, revision: {'a' * 40}}}"
    text = f"models:\n  {pinned}\n  other: {{repository: owner/other}}\nserving:\n  model: big"
    small = tmp_path / "profiles/small.yml"
    small.write_text(PROFILE.replace("serving:\n  model: tiny", text))
    checked = orchestrate("check", "small")
    first, second, third = checked.stdout.replace("\n  ", " ").splitlines()
    assert (checked.returncode, first) == (0, "profiles/small.yml: no errors")
    assert second.startswith("note: big is not on this machine yet")
    assert "models.other has no revision" in third
    document = json.loads(orchestrate("check", "--json", "small").stdout)
    assert document["ok"] and len(document["notes"]) == 2


def test_a_wrong_profile_is_said_to_be_and_not_used(orchestrate: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(PROFILE.replace("port: 8000", "prot: 8000"))
    checked = orchestrate("check", "broken.yml")
    assert checked.returncode == 2
    assert checked.stdout == ""
    assert "broken.yml:36: serving.prot: unknown key; did you mean 'port'?" in checked.stderr
    assert "Traceback" not in checked.stderr
    as_json = orchestrate("check", "broken.yml", "--json")
    assert as_json.returncode == 2
    problems = json.loads(as_json.stdout)["problems"]
    assert [(one["line"], one["key"]) for one in problems] == [
        (34, "serving.port"),
        (36, "serving.prot"),
    ]
    assert orchestrate("use", "broken.yml").returncode == 2
    assert not (tmp_path / "state").exists()


def test_a_size_that_the_model_cannot_have_is_found_by_check(
    orchestrate: Run, tmp_path: Path
) -> None:
    text = PROFILE.replace("  model: tiny", "  model: tiny\n  tensor_parallel: 3")
    (tmp_path / "big.yml").write_text(text)
    checked = orchestrate("check", "./big.yml")
    assert checked.returncode == 2
    assert "big.yml:36: serving.tensor_parallel: 3 does not divide" in checked.stderr
    problems = json.loads(orchestrate("check", "./big.yml", "--json").stdout)["problems"]
    assert len(problems) == 1


def test_list_marks_the_active_one_and_survives_a_broken_one(
    orchestrate: Run, tmp_path: Path
) -> None:
    (tmp_path / "profiles/broken.yml").write_text("name: broken\n")
    orchestrate("use", "small")
    assert orchestrate("list").stdout == (
        "  broken  9 errors: orchestrate profile check broken\n"
        "* small   2 compute nodes, 2 accelerators, image plain, model tiny\n"
    )
    rows = json.loads(orchestrate("list", "--json").stdout)
    assert [(row["name"], row["active"], row["ok"]) for row in rows] == [
        ("broken", False, False),
        ("small", True, True),
    ]


def test_an_unknown_name_lists_the_known_ones(orchestrate: Run) -> None:
    used = orchestrate("use", "smal")
    assert used.returncode == 2
    assert "there is no profile 'smal'" in used.stderr
    assert "did you mean 'small'? (known: small)" in used.stderr


def test_schema_and_reference_are_printed(orchestrate: Run) -> None:
    schema = json.loads(orchestrate("schema").stdout)
    for kind in ("then", "else"):  # of a cluster that others run, of one that we run
        assert schema[kind]["properties"]["name"]["type"] == "string"
    assert orchestrate("schema", "--reference").stdout.startswith("# Profile reference\n")
