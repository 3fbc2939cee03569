"""One simulated cluster for all tests of this directory: real image, systemd, sshd, Ray and vLLM.

It has a profile, a state directory and namespaces of its own: a demo that runs beside is not met.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import yaml
from support.sim import NAME, SHIPPED, Sim

#: Loads that take seconds.
LOADS = """
bench:
  loads:
    brief: { prompt_tokens: 32, output_tokens: 8, requests: 4, concurrency: 2 }
    short: { prompt_tokens: 16, output_tokens: 48, requests: 4, concurrency: 2 }
"""


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
        sim.run("down", ok=None)
        assert sim.left() == []
