"""A cause that was changed on purpose, and what the measured time did, as it is stored.

Units: seconds, bytes, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Judgement(StrEnum):
    """What the changes showed of a named cause."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    #: The noise of the measurements is larger than the effect that decides.
    UNDECIDED = "undecided"
    NOT_TRIED = "cannot be tried here"


@dataclass(frozen=True)
class Slope:
    """Seconds for each unit of what was changed. Nine of ten such intervals from ``low`` to
    ``high`` hold the true value, or more. ``n``: differences that it was made from."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Turn:
    """One load under a dose. ``dose``: in words; ``x``: what was changed, in its unit;
    ``unchanged_s``: the same load in the unchanged state, the mean of just before and after."""

    dose: str
    x: float
    seconds: float
    unchanged_s: float


@dataclass(frozen=True)
class Proof:
    """The trial of one phase's cause.

    ``said_s``: the seconds of the phase that the cause is said to take. ``change``: what was
    changed, and where. ``slope_unit``: what a slope counts, such as "bytes". ``x_unchanged``: x in
    the unchanged state. ``why``: the figures that decided, or why it cannot be tried, with what is
    needed. ``put_back``: what undoes the changes if this program is killed. ``left``: commands that
    undo by hand what could not be undone.
    """

    run: str
    time: str
    workload: str
    phase: str
    cause: str
    measured_s: float
    said_s: float
    verdict: Judgement
    why: str
    change: str = ""
    slope_unit: str = ""
    x_unchanged: float = 0.0
    predicted: float | None = None
    slope: Slope | None = None
    points: tuple[Turn, ...] = ()
    put_back: str = ""
    left: tuple[str, ...] = field(default=())

    @property
    def line(self) -> str:
        where = f"{self.workload}, {self.phase}"
        if self.verdict is Judgement.NOT_TRIED:
            return f"{where}: {self.cause} {self.verdict}: {self.why}"
        return f"{where}: {self.cause} is {self.verdict}: {self.why}"
