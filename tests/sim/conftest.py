"""One simulated cluster for all tests of a directory: real image, systemd, sshd, Ray and vLLM.

`measures` is what takes figures of a cluster, and has one of its own, so that it runs beside the
rest. A cluster has a profile, a state directory and namespaces of its own: a demo that runs beside
is not met.

A test asks for the state of the cluster that it needs by a fixture, and leaves it in that state; so
it runs alone as well as after others. Tests are sorted by that fixture, not by the names of files:
then the cluster goes from one state to the next one, and few tests wait for the model to load.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.sim import ANYHOW, NAME, SHIPPED, STATES, Sim

HERE = Path(__file__).parent
#: Loads that take seconds.
LOADS = """
bench:
  workloads:
    brief: { prompt_tokens: 32, output_tokens: 8, requests: 4, concurrency: 2 }
    short: { prompt_tokens: 16, output_tokens: 48, requests: 4, concurrency: 2 }
"""
#: Fixtures that say what state a test needs, in the order in which their tests run.
ORDER = (
    "pair",
    "control",
    "machines",
    "base",
    "ray",
    "fresh",
    "serving",
    "spendable",
    "running",
    "without_compute1",
    "down",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests of this directory by the state that they need; others stay where they are."""

    def rank(item: pytest.Item) -> int:
        asked = getattr(item, "fixturenames", ())
        return max((ORDER.index(name) for name in ORDER if name in asked), default=-1)

    places = [number for number, item in enumerate(items) if HERE in item.path.parents]
    ranked = sorted((items[number] for number in places), key=rank)
    for number, item in zip(places, ranked, strict=True):
        items[number] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Nobody knows how a failed test left the cluster: the next one begins from nothing."""
    report = yield
    sim = getattr(item, "funcargs", {}).get("sim")
    if report.failed and isinstance(sim, Sim):
        sim.end_started()
        sim.spoiled = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """The last test of this directory ends the cluster: others need the processor."""
    sim = getattr(item, "funcargs", {}).get("sim")
    yield
    if isinstance(sim, Sim) and (nextitem is None or HERE not in nextitem.path.parents):
        sim.bring("down")


@pytest.fixture(scope="session")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    assert os.geteuid() == 0, "the simulated cluster needs root: run the tests as root"
    root = tmp_path_factory.mktemp("sim")
    document = yaml.safe_load(SHIPPED.read_text()) | {"name": NAME}
    # YAML 1.1 reads some MACs as numbers; the shipped text does not suffer from a new name.
    profile = root / f"{NAME}.yml"
    text = SHIPPED.read_text().replace(f"name: {SHIPPED.stem}\n", f"name: {NAME}\n", 1)
    profile.write_text(text + LOADS)
    env = os.environ | {
        "ORCHESTRATE_STATE": str(root / "state"),
        "ORCHESTRATE_PROFILE": str(profile),
        "PYTHONUNBUFFERED": "1",
    }
    sim = Sim(profile, env, document)
    sim.run("image", "build", document["image"])
    try:
        yield sim
    finally:
        sim.end_started()
        sim.run("down")
        assert sim.left() == []


@pytest.fixture
def down(sim: Sim) -> Sim:
    """Nothing of the cluster runs, before the test and after it."""
    sim.bring("down")
    return sim


@pytest.fixture
def control(sim: Sim) -> Sim:
    """The control node runs; whether others do is the test's own affair."""
    sim.bring("control")
    return sim


@pytest.fixture
def machines(sim: Sim) -> Sim:
    """All machines run; what is on them is as they booted, or as tests of this state left it."""
    sim.bring("machines")
    return sim


@pytest.fixture
def base(sim: Sim) -> Sim:
    """All machines are configured; no Ray, no model."""
    sim.bring("base")
    return sim


@pytest.fixture
def ray(sim: Sim) -> Sim:
    """Ray runs on all machines; the model does not."""
    sim.bring("ray")
    return sim


@pytest.fixture
def fresh(sim: Sim) -> Iterator[Sim]:
    """Nothing runs before the test; after it, the cluster serves."""
    sim.bring("down")
    yield sim
    sim.state = "serving"


@pytest.fixture
def serving(sim: Sim) -> Sim:
    """The cluster is up, verified, and answers."""
    sim.bring("serving")
    return sim


@pytest.fixture
def spendable(serving: Sim) -> Iterator[Sim]:
    """The cluster serves; the test may leave it in any state."""
    yield serving
    serving.state = ANYHOW


@pytest.fixture
def running(sim: Sim) -> Iterator[Sim]:
    """Ray runs on all machines, the model maybe; the test may leave them in any state."""
    if sim.spoiled or sim.state in STATES[: STATES.index("ray")]:
        sim.bring("ray")
    elif sim.state == ANYHOW:  # the test before may have left no Ray, or no machines
        sim.run("up", "--until", "ray")
    yield sim
    sim.state = ANYHOW


@pytest.fixture
def without_compute1(sim: Sim) -> Iterator[Sim]:
    """compute1 is off; the others are off too, or in any state. They may be so after the test."""
    if sim.spoiled or not sim.runs("control"):
        sim.bring("down")
    else:
        sim.run("node", "down", "compute1")
    yield sim
    sim.state = ANYHOW


@pytest.fixture
def probes(serving: Sim) -> Any:
    """What a whole probe of the cluster finds; it is made once for all tests."""
    serving.probed = serving.probed or serving.json("probe")
    return serving.probed
