"""Attacks, a file for each door: what is tried, beside the same thing done rightfully.

All of them are bounded, and happen in namespaces that the test makes. They need root.
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
