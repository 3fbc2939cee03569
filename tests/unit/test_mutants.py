"""The list of faults that `make mutants` puts in, and what puts them in, on a small project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TOOL = PROJECT / "tools/mutate.py"
FAULT = """\
- id: {id}
  file: product.py
  find: '{find}'
  replace: '{replace}'
  harm: sums are wrong
  {tests}: ['{test}']
"""
WRONG_SIGN = {"id": "sign", "find": "a + b", "replace": "a - b", "tests": "tests"}
NO_MATTER = {"id": "order", "find": "a + b", "replace": "b + a", "tests": "tests"}


as_user = pytest.mark.skipif(os.geteuid() == 0, reason="the tool refuses root")


def mutate(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(TOOL), "--project", str(project), *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def fault(project: Path, **words: str) -> None:
    with (project / "tests/mutants/room.yml").open("a") as file:
        file.write(FAULT.format(**{"test": "test_product.py", **words}))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tests/mutants").mkdir(parents=True)
    (tmp_path / "product.py").write_text("def total(a, b):\n    return a + b\n")
    test = "from product import total\n\n\ndef test_total():\n    assert total(2, 3) == 5\n"
    (tmp_path / "test_product.py").write_text(test)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_every_fault_of_this_project_can_still_be_put_in() -> None:
    done = mutate(PROJECT, "--check")
    assert done.returncode == 0, done.stderr


@as_user
def test_a_fault_is_noticed_and_nothing_is_left_of_it(project: Path) -> None:
    fault(project, **WRONG_SIGN)
    done = mutate(project, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["status"], found["by"]) == ("noticed", "test_product.py::test_total")
    assert "a + b" in (project / "product.py").read_text()


@as_user
def test_one_that_lives_is_a_failure_with_the_harm_that_it_does(project: Path) -> None:
    fault(project, **NO_MATTER)
    fault(project, **WRONG_SIGN)
    done = mutate(project)
    assert done.returncode == 1
    assert "1 lived, 1 noticed" in done.stderr and "lived: order: sums are wrong" in done.stderr


@as_user
def test_one_at_a_time_and_slow_suites_are_not_run(project: Path) -> None:
    fault(project, **NO_MATTER)
    fault(project, **(WRONG_SIGN | {"id": "slow", "tests": "suites"}))
    done = mutate(project, "--only", "slow", "--json")
    assert done.returncode == 0
    assert [(each["id"], each["status"]) for each in json.loads(done.stdout)] == [
        ("slow", "not run")
    ]


@as_user
def test_tests_that_fail_by_themselves_prove_nothing(project: Path) -> None:
    fault(project, **WRONG_SIGN)
    (project / "product.py").write_text("def total(a, b):\n    return a + b + 1\n")
    done = mutate(project)
    assert done.returncode == 1 and "without any fault the tests do not pass" in done.stderr


@as_user
def test_each_run_has_a_home_and_temporary_files_of_its_own(project: Path) -> None:
    fault(project, **NO_MATTER)
    test = """
from pathlib import Path
from tempfile import gettempdir

def test_places(tmp_path):
    places = [Path.home(), Path(gettempdir()), tmp_path]
    assert all(Path(__file__).parent.parent in place.parents for place in places)
    assert not list(Path.home().iterdir())
    (Path.home() / "left").touch()
"""
    (project / "test_product.py").write_text(test)
    done = mutate(project, "--json")
    (found,) = json.loads(done.stdout)
    assert found["status"] == "lived", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_refused_before_anything_runs(project: Path) -> None:
    fault(project, **WRONG_SIGN)
    (project / "test_product.py").write_text("def test(): open('ran', 'w')\n")
    done = mutate(project)
    assert done.returncode == 1 and "refused" in done.stderr
    assert not (project / "ran").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"find": "a * b"}, "room.yml: new: `find` stands 0 times in product.py, not once"),
        ({"find": "a"}, "room.yml: new: `find` stands 3 times in product.py, not once"),
        ({"test": "no.py"}, "room.yml: new: there is no no.py"),
        (
            {"test": "test_product.py::test_no"},
            "room.yml: new: there is no test_product.py::test_no",
        ),
        ({"tests": "test"}, "room.yml: new: has to have"),
        ({"id": "sign"}, "more than one is called sign"),
    ],
)
def test_a_fault_that_cannot_be_put_in_is_an_error(
    project: Path, change: dict[str, str], said: str
) -> None:
    fault(project, **WRONG_SIGN)
    fault(project, **(WRONG_SIGN | {"id": "new"} | change))
    done = mutate(project, "--check")
    assert done.returncode == 1 and said in done.stderr
