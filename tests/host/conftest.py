"""Tests of this directory need root: they make namespaces, mounts, control groups and accounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.account import machine
from support.control import Pair, pair_at
from support.installed import installed
from support.strangers import FLAGS, Strangers, strangers


@pytest.fixture(scope="session", autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A laptop, and a control host that its ssh reaches as root."""
    with pair_at(tmp_path) as made:
        yield made


@pytest.fixture
def network() -> Iterator[list[str]]:
    """A network namespace with the link `x0`; the words to run something in it."""
    name = f"agent-{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run([*inside, "ip", "link", "add", "x0", "type", "bridge"], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture(scope="session")
def orchestrate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Outside pytest's own directories, which only root may enter."""
    place = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        place.chmod(0o755)
        yield installed(place)
    finally:
        subprocess.run(["rm", "-r", place], check=True)


@pytest.fixture(scope="session")
def cluster(orchestrate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strangers]:
    with (
        machine(tmp_path_factory.mktemp("machine")) as made,
        strangers(made, orchestrate) as found,
    ):
        yield found


@pytest.fixture
def url(cluster: Strangers) -> Iterator[str]:
    with cluster.serving(*FLAGS) as url:
        yield url
