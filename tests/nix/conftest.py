"""Fixtures that more than one file of this directory uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.flake import Checkout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the flake reads, to change."""
    return Checkout.copy(tmp_path / "tree").root
