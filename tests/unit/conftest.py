"""What holds for all tests of this directory."""

from __future__ import annotations

from hypothesis import settings

# No example fails for being slow: machines are busy at times.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
