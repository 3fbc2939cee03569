"""A box for each test: its own checkout, cache, state and Nix store; the real commands in it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from support.box import Box, Handler, Site
from support.suites import Archive


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    env = dict(os.environ) | {
        "ORCHESTRATE_CHECKOUT": str(tmp_path / "checkout"),
        "ORCHESTRATE_STATE": str(tmp_path / "state"),
        "ORCHESTRATE_CACHE": str(tmp_path / "cache"),
        "NIX_STORE_DIR": str(tmp_path / "nix/store"),
        "NIX_STATE_DIR": str(tmp_path / "nix/var"),
        "NIX_LOG_DIR": str(tmp_path / "nix/log"),
        "NIX_CONF_DIR": str(tmp_path / "nix/etc"),
    }
    yield Box(tmp_path, env)
    for path in (tmp_path / "nix").rglob("*"):  # the store is read-only
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def links(box: Box, tmp_path: Path) -> Path:
    """A directory of wheels that pip takes for its only index."""
    found = tmp_path / "links"
    found.mkdir()
    box.env |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(found)}
    return found


@pytest.fixture
def archive(box: Box, tmp_path: Path) -> Archive:
    """A Debian archive that the box uses as its mirror."""
    found = Archive(tmp_path / "archive")
    box.env |= {
        "ORCHESTRATE_DEBIAN_MIRROR": found.url,
        "ORCHESTRATE_DEBIAN_KEYRING": str(found.keyring),
    }
    return found


@pytest.fixture
def security(box: Box, archive: Archive) -> Archive:
    """The security archive beside it."""
    found = archive.security()
    box.env["ORCHESTRATE_DEBIAN_SECURITY_MIRROR"] = found.url
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    found = Site("", root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, found))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()
