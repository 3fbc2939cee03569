"""Recorded /proc and /sys of machines with accelerators, and what programs printed there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from support import PROJECT

ACCELERATORS = sorted((PROJECT / "tests/data/recorded/accelerators").glob("*.yml"))


def laid_out(path: Path, place: Path) -> dict[str, Any]:
    """Lay a recording out: its files below ``root``, its programs in ``bin``. The document."""
    case: dict[str, Any] = yaml.safe_load(path.read_text())
    (place / "root/sys").mkdir(parents=True)
    for name, content in case["files"].items():
        file = place / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, target in case.get("links", {}).items():
        link = place / "root" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    (place / "bin").mkdir()
    for words, page in case.get("programs", {}).items():
        program, _, rest = words.partition(" ")
        tool = place / "bin" / program
        begin = tool.read_text() if tool.exists() else "#!/bin/sh\n"
        act = f"cat <<'END'\n{page}\nEND\nexit 0" if page is not None else "exit 9"
        tool.write_text(f'{begin}case "$*" in "{rest}"*)\n{act};;\nesac\n')
        tool.chmod(0o755)
    return case
