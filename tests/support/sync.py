"""The shell script of a sync, as the control host's sh runs it on two small trees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from orchestrator.cli.control_host import archive

TREES = {"old": {"a": "old", "gone": "old"}, "new": {"a": "new", "b": "new", "c/d": "new"}}


def packed(where: Path, name: str) -> bytes:
    files = {}
    for path, text in TREES[name].items():
        files[path] = where / name / path
        files[path].parent.mkdir(parents=True, exist_ok=True)
        files[path].write_text(text)
    return archive(files)


def sh(home: Path, script: str, *words: str, stdin: bytes = b"", path: str = "") -> tuple[int, str]:
    env = {"HOME": str(home), "PATH": path or os.environ["PATH"]}
    argv = ["/bin/sh", "-c", script, "sh", "co", *words]
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, timeout=60, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


def found(home: Path) -> dict[str, str] | None:
    co = home / "co"
    if not co.exists():
        return None
    files = (path for path in co.rglob("*") if path.is_file() and ".venv" not in path.parts)
    return {str(path.relative_to(co)): path.read_text() for path in files}
