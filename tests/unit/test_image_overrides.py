"""What image.yml replaces of requirements: lines, what is shown, what is in vain; METADATA."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
from support import PROJECT

from orchestrator.image import lockfile, overrides, spec
from orchestrator.image.lock import index
from orchestrator.image.lockfile import Overridden, PythonPart
from orchestrator.image.spec import Override, Python

ENVIRONMENT = index.environment("3.11.2")


def python(override: dict[str, Any], **more: Any) -> Python:
    given = {"version": "3.11", "glibc": "2.36", "requirements": ["server"], **more}
    return Python.model_validate({**given, "override": override})


def of(*requires: str, to: str = "==2") -> str:
    """What is shown as the replaced versions of 'kernels' that 'server' requires."""
    by = {"server": {"kernels": Override(to=to, because="a reason")}}
    (shown,), unused = overrides.found(by, {"server": requires}, ENVIRONMENT)
    assert unused == []
    return shown.from_


def unused(*requires: str, to: str = "==2") -> str:
    by = {"server": {"kernels": Override(to=to, because="a reason")}}
    shown, (problem,) = overrides.found(by, {"server": requires}, ENVIRONMENT)
    assert shown == []
    assert problem.key == "python.override.server.kernels"
    return str(problem)


@pytest.mark.parametrize(
    ("line", "replaced"),
    [
        ("kernels==1", "kernels==2"),
        ("Ker_nels", "Ker_nels"),  # another name
        ("KERNELS[gpu]>=1,<2; python_version < '3.12'", 'KERNELS[gpu]==2; python_version < "3.12"'),
        ("kernels @ https://example.org/kernels.whl", "kernels==2"),
        ("other==1", "other==1"),
        ("what is this", "what is this"),
    ],
)
def test_versions_are_replaced_and_extras_and_markers_stay(line: str, replaced: str) -> None:
    by = overrides.changes(python({"Server": {"Kernels": {"to": "==2", "because": "a reason"}}}))
    assert overrides.applied("server", [line], by) == [replaced]
    assert overrides.applied("client", [line], by) == [line]


def test_what_is_replaced_is_shown_as_the_distribution_says_it() -> None:
    assert of("kernels==1") == "==1"
    assert of("kernels") == ""
    assert of("kernels==1; python_version < '3.12'", "kernels==3; python_version > '3.11'") == "==1"
    assert of("kernels==1", "kernels==3; extra == 'gpu'") == "==1 and ==3"
    assert of("kernels @ https://example.org/k.whl") == " @ https://example.org/k.whl"


def test_what_replaces_nothing_is_told_with_its_key() -> None:
    assert "server does not require kernels (any more)" in unused("other")
    assert "server does not require kernels" in unused("kernels==1; python_version > '3.11'")
    assert "server itself requires kernels==2" in unused("kernels==2.0", "kernels==2")
    by = {"gone": {"kernels": Override(to="==2", because="a reason")}}
    _, (problem,) = overrides.found(by, {"server": ["kernels"]}, ENVIRONMENT)
    assert "the image has no distribution gone" in str(problem)


def test_a_lock_keeps_from_to_and_reason() -> None:
    row = {
        "distribution": "server",
        "requirement": "kernels",
        "from": "==1",
        "to": "==2",
        "because": "a reason",
    }
    assert Overridden.model_validate(row).document() == row
    part = PythonPart.model_validate({"version": "3.11", "rename": {}, "overrides": [row]})
    assert PythonPart.model_validate(part.model_dump(mode="json", by_alias=True)) == part


def test_every_override_of_the_tree_is_on_a_page_for_people() -> None:
    locks = [lockfile.read(name) for name in spec.names()]
    listed = [each for lock in locks if lock and lock.python for each in lock.python.overrides]
    assert listed
    pages = "\n".join(
        path.read_text() for path in sorted((PROJECT / "docs/explanation").glob("hardware-*.md"))
    )
    rows = [line.replace("_", "-") for line in pages.splitlines() if line.startswith("|")]
    for each in listed:
        pin, taken = f"{each.requirement}{each.from_}", each.to.removeprefix("==")
        assert any(f"{pin} |" in row and f"| {taken} |" in row for row in rows), str(each)


def test_the_environment_says_of_a_distribution_what_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The build's module, which runs on the build's own Python."""
    monkeypatch.syspath_prepend(str(PROJECT / "images/lib/build"))
    build = importlib.import_module("metadata")
    monkeypatch.delitem(sys.modules, "metadata")
    metadata = (
        b"Name: server\nRequires-Dist: Fast.Kernels[gpu]==1.0 ; extra == 'x'\n"
        b"Requires-Dist: fast_kernels (==1.0)\nRequires-Dist: fast-kernels-more==1.0\n\n"
        b"Requires-Dist: fast_kernels==1.0\n"
    )
    assert build.with_requirements(metadata, {"fast-kernels": "==2.0"}) == (
        b"Name: server\nRequires-Dist: Fast.Kernels[gpu]==2.0; extra == 'x'\n"
        b"Requires-Dist: fast_kernels ==2.0\nRequires-Dist: fast-kernels-more==1.0\n\n"
        b"Requires-Dist: fast_kernels==1.0\n"
    )
