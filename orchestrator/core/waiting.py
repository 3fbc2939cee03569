"""Waiting with a deadline, in one way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_Seen = TypeVar("_Seen")


def as_long_as(look: Callable[[], _Seen], seconds: float, every: float) -> _Seen:
    """Call ``look`` every so often as long as its result is true, until ``seconds`` are over.

    Returns the last result: a false one in time, else why it is not over, for the error.
    """
    end = time.monotonic() + seconds
    while (seen := look()) and time.monotonic() < end:
        time.sleep(every)
    return seen
