"""What slows a processor or a card down by a known factor: data. A vendor more is a row more.

None of them resets a card. A clock that is limited slows down what waits for it, in proportion,
whatever else goes on. A new quota of processor time does not: it limits the average over its
period, so that an engine which waits half of its time is slowed as much as one that computes all
the time. A quota that is there, and is said to limit, can be made smaller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster.vllm import SERVER_UNIT, WORKER_UNIT
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove.changes import (
    Argv,
    Edit,
    files,
    files_change,
    files_command,
)


@dataclass(frozen=True)
class FileKnob:
    """Files that hold the highest clock."""

    name: str
    pattern: str
    slows: tuple[Cause, ...]

    @property
    def read(self) -> Argv:
        return files_command(self.pattern)

    def found(self, text: str) -> dict[str, int]:
        """The clocks that may be limited, by file."""
        return files(text)

    def change(self, factor: float, was: Mapping[str, int]) -> Edit:
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

    def found(self, text: str) -> dict[str, int]:
        """The highest clocks in MHz, by card."""
        rows = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}

    def change(self, factor: float, was: Mapping[str, int]) -> Edit:
        def filled(words: Sequence[str], card: str) -> Argv:
            clock = str(round(was[card] / factor))
            return tuple(word.replace("CARD", card).replace("MHZ", clock) for word in words)

        return Edit(
            tuple(filled(self.set_, card) for card in was),
            tuple(filled(self.undo, card) for card in was),
        )


@dataclass(frozen=True)
class QuotaKnob:
    """Our services that have a quota of processors already; without one, this is no knob."""

    name: str
    units: tuple[str, ...]
    slows: tuple[Cause, ...]

    @property
    def read(self) -> Argv:
        script = 'for u; do echo "$u $(systemctl show -P CPUQuotaPerSecUSec "$u")"; done'
        return ("sh", "-c", script, "sh", *self.units)

    def found(self, text: str) -> dict[str, int]:
        """The quotas in percent of a processor, by unit."""
        words = [line.partition(" ") for line in text.splitlines()]
        quotas = {unit: round(seconds(quota) * 100) for unit, _, quota in words}
        return {unit: quota for unit, quota in quotas.items() if unit in self.units and quota}

    def change(self, factor: float, was: Mapping[str, int]) -> Edit:
        def limit(unit: str, percent: float) -> Argv:
            quota = f"CPUQuota={max(1, round(percent))}%"
            return ("systemctl", "set-property", "--runtime", unit, quota)

        return Edit(
            tuple(limit(unit, quota / factor) for unit, quota in was.items()),
            tuple(limit(unit, quota) for unit, quota in was.items()),
        )


#: systemd's units of time in seconds.
TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def seconds(text: str) -> float:
    """Seconds of systemd's text, such as ``1min 2.5s``; 0 for another one, such as infinity."""
    return sum(float(n) * TIMES[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(us|ms|min|s)", text))


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
KNOBS: tuple[FileKnob | CommandKnob | QuotaKnob, ...] = (
    QuotaKnob("a quota of processors that is there", (SERVER_UNIT, WORKER_UNIT), HOST),
    FileKnob(
        "the processors' highest clock",
        "/sys/devices/system/cpu/cpu*/cpufreq/scaling_max_freq",
        HOST,
    ),
    _nvidia("the card's clock (NVIDIA)", "clocks.max.sm", "gpu", Cause.COMPUTE),
    _nvidia("the card's memory clock (NVIDIA)", "clocks.max.memory", "memory", Cause.MEMORY),
    FileKnob(
        "the card's highest clock (i915)",
        "/sys/class/drm/card*/gt/gt0/rps_max_freq_mhz",
        (Cause.COMPUTE,),
    ),
    FileKnob(
        "the card's highest clock (xe)",
        "/sys/class/drm/card*/device/tile*/gt*/freq0/max_freq",
        (Cause.COMPUTE,),
    ),
)
