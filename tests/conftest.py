"""Fixtures that tests of several directories use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.boot_service import DOCUMENT, NEIGHBOURS, Running
from support.profiles import PROFILE, make_checkout
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.profile import Profile

SIM = "tests/sim/"

# Tests start the command line hundreds of times: compiled each time, that is minutes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts background jobs with SIGINT ignored, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


class SharedClusters(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """A worker takes a file at a time; a directory of tests/sim is one: it shares a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return file.rpartition("/")[0] if file.startswith(SIM) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SharedClusters | None:
    """Where files are what workers take."""
    return SharedClusters(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Running]:
    """A service with all that it needs, not started yet."""
    service = Running(tmp_path)
    service.state.mkdir()
    service.publish(DOCUMENT)
    (tmp_path / "arp").write_text(NEIGHBOURS)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host_ca"])
    yield service
    if service.process is not None:
        service.stop()


@pytest.fixture
def service(stopped: Running) -> Running:
    stopped.start()
    return stopped


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Profile]:
    """Loads the small profile with `machines: real` and this `power`."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    file = make_checkout(tmp_path)

    def load_with(**power: Any) -> Profile:
        text = PROFILE.replace("machines: manual", "machines: real")
        file.write_text(text + yaml.safe_dump({"power": power}))
        return load(file)

    return load_with
