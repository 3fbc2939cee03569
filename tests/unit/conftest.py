"""Fixtures that more than one file of unit tests uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.boot_service import DOCUMENT, NEIGHBOURS, Running
from support.control import Pair, pair_at

from orchestrator.run import run

# No example fails for being slow: machines are busy at times.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


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
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A laptop, and a control host that its ssh reaches as root."""
    with pair_at(tmp_path) as made:
        yield made
