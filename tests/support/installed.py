"""The wheel of this checkout, in an empty environment, without a network."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support import PROJECT

#: What the wheel is built from.
SOURCES = ("orchestrator", "pyproject.toml", "README.md", "LICENSE")


def installed(place: Path) -> Path:
    """Make the environment in ``place``, for anybody to run; its ``orchestrate``.

    What the wheel requires is copied from .venv, which has the locked versions: a requirement that
    pyproject.toml lacks is missing there.
    """
    built = wheel(place)
    venv = place / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", f"{venv}/bin/python", "install", "--quiet"]
    pip += ["--no-index", "--no-deps", "--no-cache-dir", str(built)]
    subprocess.run(pip, check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for name in needed("orchestrate"):
        for file in importlib.metadata.files(name) or ():
            source, target = Path(str(file.locate())), packages / str(file)
            if ".." not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    # Whoever runs it cannot write there, and would compile it each time.
    subprocess.run([venv / "bin/python", "-m", "compileall", "-q", packages], check=False)
    subprocess.run(["chmod", "-R", "a+rX", place], check=True)
    return venv / "bin/orchestrate"


def wheel(place: Path) -> Path:
    """Build it, from a copy: a build leaves directories in its tree."""
    tree = place / "tree"
    tree.mkdir(parents=True)
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    argv += ["--no-index", "--no-cache-dir", "--wheel-dir", str(place), str(tree)]
    subprocess.run(argv, check=True, capture_output=True)
    shutil.rmtree(tree)
    (built,) = place.glob("*.whl")
    return built


def needed(name: str) -> list[str]:
    """All that a distribution requires here, without its extras."""
    found: dict[str, None] = {}
    todo = list(_requires(name))
    while todo:
        each = todo.pop()
        if each not in found:
            found[each] = None
            todo += _requires(each)
    return list(found)


def _requires(name: str) -> Iterator[str]:
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()
