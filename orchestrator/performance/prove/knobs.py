"""What slows a processor or a card down by a known factor: data. A vendor more is a row more.

None of them resets a card. A clock that is limited slows down what waits for it, in proportion,
whatever else goes on. A quota of processor time does not: it limits the average over its period, so
that an engine which waits half of its time is slowed as much as one that computes all the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove.changes import (
    Argv,
    Change,
    files,
    files_change,
    files_command,
)


@dataclass(frozen=True)
class FileKnob:
    """Files that hold the highest clock. ``card``: of an accelerator, else of the processors."""

    name: str
    pattern: str
    slows: tuple[Cause, ...]
    card: bool

    @property
    def read(self) -> Argv:
        return files_command(self.pattern)

    def found(self, text: str) -> dict[str, int]:
        """The clocks that may be limited, by file."""
        return files(text)

    def change(self, factor: float, was: Mapping[str, int]) -> Change:
        return files_change(round(max(was.values()) / factor), was)


@dataclass(frozen=True)
class CommandKnob:
    """A program that limits a clock. ``read`` prints lines ``CARD, MHZ``. ``set_``, ``undo``: with
    CARD and MHZ in them. Undoing gives back the driver's own limit: the program does not tell
    another one that was set before."""

    name: str
    read: Argv
    set_: Argv
    undo: Argv
    slows: tuple[Cause, ...]
    card: bool = True

    def found(self, text: str) -> dict[str, int]:
        """The highest clocks in MHz, by card."""
        rows = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}

    def change(self, factor: float, was: Mapping[str, int]) -> Change:
        def filled(words: Sequence[str], card: str) -> Argv:
            clock = str(round(was[card] / factor))
            return tuple(word.replace("CARD", card).replace("MHZ", clock) for word in words)

        return Change(
            tuple(filled(self.set_, card) for card in was),
            tuple(filled(self.undo, card) for card in was),
        )


def _nvidia(name: str, queried: str, flag: str, cause: Cause) -> CommandKnob:
    query = ("nvidia-smi", f"--query-gpu=index,{queried}", "--format=csv,noheader,nounits")
    return CommandKnob(
        name,
        query,
        ("nvidia-smi", "-i", "CARD", f"--lock-{flag}-clocks=MHZ,MHZ"),
        ("nvidia-smi", "-i", "CARD", f"--reset-{flag}-clocks"),
        (cause,),
    )


HOST = (Cause.HOST, Cause.SCHEDULING)
KNOBS = (
    FileKnob(
        "the processors' highest clock",
        "/sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq",
        HOST,
        False,
    ),
    _nvidia("the card's clock (NVIDIA)", "clocks.max.sm", "gpu", Cause.COMPUTE),
    _nvidia("the card's memory clock (NVIDIA)", "clocks.max.memory", "memory", Cause.MEMORY),
    FileKnob(
        "the card's highest clock (i915)",
        "/sys/class/drm/card*/gt/gt0/rps_max_freq_mhz",
        (Cause.COMPUTE,),
        True,
    ),
    FileKnob(
        "the card's highest clock (xe)",
        "/sys/class/drm/card*/device/tile*/gt*/freq0/max_freq",
        (Cause.COMPUTE,),
        True,
    ),
)
