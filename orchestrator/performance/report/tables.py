"""Forecasts beside measurements as rows of text, for the terminal, the report and the documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.performance.report.score import BOUNDS, Group, Load, Scored, Seal, Unscored

#: How many workloads of one run are named in a line.
NAMED = 3


def phase_row(each: Scored) -> dict[str, str]:
    """A phase: what was forecast, and what was measured."""
    return {
        "workload": each.workload,
        "phase": each.phase,
        "forecast": seconds(each.forecast_s),
        "interval": _interval(each),
        "from": each.origin,
        "measured": seconds(each.measured_s),
        "off": f"{each.off:+.0%}",
        "inside": {True: "yes", False: "no", None: ""}[each.inside],
    }


def named_row(each: Scored) -> dict[str, str]:
    """A phase among those of other runs."""
    return {"run": each.run} | phase_row(each)


def group_row(group: Group, names: Iterable[str]) -> dict[str, str]:
    """Statistics of forecasts of one kind; ``names``: of its keys."""
    return dict(zip(names, group.keys, strict=True)) | {
        "number": str(group.number),
        "median off": f"{group.off:.0%}",
        "nine of ten within": f"{group.off_90:.0%}",
        "within the goal": f"{group.good:.0%}",
        "inside the interval": (
            "" if group.inside is None else f"{group.inside:.0%} of {group.with_interval}"
        ),
    }


#: The names of a group's keys, by kind and in total.
KEYS, TOTAL = ("phase", "load", "layout", "from"), ("load",)
#: What the goal is, for the reader of a table.
GOAL = f"Goal: within {BOUNDS[Load.ONE]:.0%} for one request, {BOUNDS[Load.MANY]:.0%} under load."


def reasons(unscored: Iterable[Unscored]) -> list[str]:
    """Lines that say what does not count: one for each run and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in unscored:
        found.setdefault((each.run, each.reason), []).append(each.workload)
    return [f"{run}: {_listed(names)}{reason}" for (run, reason), names in found.items()]


def _listed(names: list[str]) -> str:
    shown = ", ".join(filter(None, names[:NAMED]))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{shown}{more}: " if shown else ""


def seconds(value: float) -> str:
    """A time as text, such as ``12.3 ms``."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _interval(each: Scored) -> str:
    if each.inside is None or each.low_s is None or each.high_s is None:
        return "none"
    return f"{seconds(each.low_s)} to {seconds(each.high_s)}"


def split(scored: Iterable[Scored]) -> Mapping[Seal, list[Scored]]:
    """Those that were made before they were measured, and those that were made after."""
    found: dict[Seal, list[Scored]] = {each: [] for each in Seal}
    for each in scored:
        found[each.made].append(each)
    return found
