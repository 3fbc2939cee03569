"""The project as a tool: installed from a repository's URL by uv, with what its index has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import PROJECT

from orchestrator.image.lock.index import settings


def test_uv_installs_the_tool_from_a_repository(tmp_path: Path) -> None:
    """The newest commit of this checkout, with what pip's index has; nothing of .venv."""
    uv = Path(sys.executable).with_name("uv")
    asked = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "UV_DEFAULT_INDEX": settings().index_urls[0],
        "UV_INDEX": " ".join(settings().index_urls[1:]),
        "UV_FIND_LINKS": ",".join(settings().find_links),
        "UV_PYTHON": sys.executable,
        "UV_NATIVE_TLS": "1",
    }
    words: list[str | Path] = [uv, "tool", "install", "--quiet", f"git+file://{PROJECT}@{commit}"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        argv: list[str | Path] = [tmp_path / "bin/orchestrate", *words]
        return subprocess.run(
            argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )

    for verb in ("attach", "doctor", "probe", "bench"):
        helped = ask(verb, "--help")
        assert helped.returncode == 0 and f"orchestrate {verb}" in helped.stdout, helped.stderr
    refused = ask("attach", "http://127.0.0.1:1")
    assert refused.returncode == 1 and "Connection refused" in refused.stderr, refused.stderr
