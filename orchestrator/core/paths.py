"""Where things are: the checkout, and what this machine keeps between commands.

Each can be moved by an environment variable, so that tests and several clusters on one machine
do not meet.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_state_path

APP = "orchestrate"


def checkout() -> Path:
    """The project's tree: where the flake, the images and the profiles are."""
    named = os.environ.get("ORCHESTRATE_CHECKOUT")
    return Path(named).resolve() if named else Path(__file__).resolve().parents[2]


def state() -> Path:
    """What must last: keys, models, built images, the state of simulated clusters."""
    named = os.environ.get("ORCHESTRATE_STATE")
    return Path(named).resolve() if named else user_state_path(APP)


def hub() -> Path:
    """Models of the Hugging Face hub: OWNER/NAME/COMMIT, each as its repository has it."""
    return state() / "hub"


def cache() -> Path:
    """What can be fetched again: package lists and downloads."""
    named = os.environ.get("ORCHESTRATE_CACHE")
    return Path(named).resolve() if named else user_cache_path(APP)


def cluster(name: str) -> Path:
    """All that is kept for one cluster: keys, machines, what it serves."""
    return state() / "clusters" / name


def lasting(name: str) -> Path:
    """What the control node keeps when it restarts: leases, boots and their logs."""
    return cluster(name) / "control"


def served(name: str) -> Path:
    """What the control node's web server hands out to the cluster."""
    return cluster(name) / "served"


def measured(name: str) -> Path:
    """What was measured on the cluster: probes, runs, what was fitted to them."""
    return cluster(name) / "measured"
