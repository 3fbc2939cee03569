"""The program that fetches a small model's files as root, and then becomes another one."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.verify.first_run import source


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[str]:
    """Serves a directory."""
    home = tmp_path / "shelf"
    home.mkdir()
    (home / "a").write_bytes(b"weights")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    handler = partial(Quiet, directory=str(home))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_weights_of_the_small_model_are_checked(tmp_path: Path, shelf: str) -> None:
    right = hashlib.sha256(b"weights").hexdigest()
    show = "import json, sys; print(open(json.loads(sys.argv[1])['directory'] + '/m/a').read())"

    def become(sha256: str) -> subprocess.CompletedProcess[str]:
        files = json.dumps([{"path": "m/a", "url": f"{shelf}/a", "sha256": sha256}])
        argv = [sys.executable, "-I", "-c", source("node_files"), files]
        argv += [sys.executable, "-c", show, '{"device": "cpu"}']
        home = os.environ | {"TMPDIR": str(tmp_path)}
        return subprocess.run(argv, env=home, capture_output=True, text=True, check=False)

    assert become(right).stdout == "weights\n"
    other = become("0" * 64)
    assert (other.returncode, other.stdout) == (1, "") and "sha256" in other.stderr
