"""The agent as the very process that a node runs, in a temporary root; and a model to fetch."""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.node.agent_program import program
from orchestrator.node.resources import Directory, File
from orchestrator.node.state import NodeState

MODEL = bytes(range(256)) * 10_000


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None: ...


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    """A web server on loopback; its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}"
        finally:
            web.shutdown()
            thread.join()


@contextlib.contextmanager
def serving_model(directory: Path) -> Iterator[str]:
    """One that has ``model``."""
    directory.mkdir()
    (directory / "model").write_bytes(MODEL)
    with serving(partial(Files, directory=str(directory))) as url:
        yield url


def state(*items: Directory | File) -> dict[str, Any]:
    return NodeState(
        "node0",
        users=(),
        directories=tuple(item for item in items if isinstance(item, Directory)),
        files=tuple(item for item in items if isinstance(item, File)),
        units=(),
    ).document()


def ask(
    verb: str, root: Path, wanted: dict[str, Any], inside: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Run the agent as a node does, in a network; resource -> its entry in the report."""
    request = json.dumps({"verb": verb, "root": str(root), "state": wanted})
    done = subprocess.run(
        [*inside, sys.executable, "-I", "-S", "-c", program()],
        input=request,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {entry["id"]: entry for entry in json.loads(done.stdout)["resources"]}


def statuses(report: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: entry["status"] for name, entry in report.items()}
