"""Saved runs: load and store them, compare two of them, find regressions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.core.files import write_json
from orchestrator.core.nearest import nearest
from orchestrator.performance.results.bench import (
    Measured,
    Provenance,
    Run,
    RunState,
    layout_text,
)

RUNS = "runs"
#: The text of the layout on one accelerator.
ONE = layout_text(1, 1)
#: Figures that are worse when they are higher, and those that are worse when they are lower.
LATENCIES = {"time to first token": "ttft_s", "time per output token": "tpot_s"}
RATES = {"tokens a second": "output_tokens_per_s"}
#: A change is significant if chance alone gives it with a lower probability than this.
CHANCE = 0.05
#: Smaller changes are not reported, even if they are significant.
NOTABLE = 0.05


@dataclass(frozen=True)
class Change:
    """A figure of one workload, before and after. ``share``: the change as a share of before;
    ``significant``: the repeats of the two do not overlap, and there are enough of them."""

    workload: str
    figure: str
    before: float
    after: float
    share: float
    significant: bool
    worse: bool
    repeats: tuple[int, int]

    @property
    def line(self) -> str:
        """The change in one line for people."""
        figures = f"{self.workload}, {self.figure}: {self.before:.4g} to {self.after:.4g}"
        if abs(self.share) < 0.005:
            return f"{figures}, the same"
        way = "worse" if self.worse else "better"
        return f"{figures}, {abs(self.share):.0%} {way}, {self.sure}"

    @property
    def sure(self) -> str:
        """Whether the change is significant, in words."""
        if self.significant:
            return "significant"
        if chance(*self.repeats) >= CHANCE:
            return f"not significant with {' and '.join(map(str, self.repeats))} repeats"
        return "not significant"


@dataclass(frozen=True)
class Earlier:
    """Runs to compare with: the last complete one of the same layout, and one on one node."""

    good: Run | None = None
    on_one_node: Run | None = None


def earlier(cluster: str, run: Run) -> Earlier:
    """The runs to compare a run with: the newest complete ones before it that share a workload.

    The first has the same layout. The second has the same model and image on one accelerator, if
    the run itself uses more than one.
    """
    mine = run.provenance
    good = on_one_node = None
    for other in _before(cluster, run):
        its = other.provenance
        if its.layout == mine.layout:
            good = good or other
        elif its.layout == ONE and _served(its) == _served(mine):
            on_one_node = on_one_node or other
        if good and (on_one_node or mine.layout == ONE):
            break
    return Earlier(good, on_one_node)


def _served(found: Provenance) -> tuple[str, ...]:
    return (found.model, str(found.model_revision), found.image_id)


def store(run: Run) -> Path:
    """Save a run, replacing an earlier state of it. Returns the file."""
    path = _home(run.provenance.profile) / f"{run.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, TypeAdapter(Run).dump_python(run, mode="json"))
    return path


def names(cluster: str) -> list[str]:
    """The ids of the cluster's saved runs, the oldest first."""
    return sorted(path.stem for path in _home(cluster).glob("*.json"))


def report(cluster: str, run: str) -> Path:
    return _home(cluster) / f"{run}.html"


def load(cluster: str, name: str) -> Run:
    """A run by its id or the start of it; "last" is the newest. Raises BadInput if not exactly one
    run matches."""
    known = names(cluster)
    found = known[-1:] if name == "last" else [each for each in known if each.startswith(name)]
    if len(found) != 1:
        problem = "no run" if not found else "more than one run"
        raise BadInput(f"there is {problem} {name!r} of {cluster}", nearest(name, known))
    return read(_home(cluster) / f"{found[0]}.json")


def read(path: Path) -> Run:
    """The run in a file. Raises BadInput if it cannot be read, or does not contain one."""
    try:
        return TypeAdapter(Run).validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError:
        raise BadInput(f"{path}: does not hold a run", "Remove it, or restore it.") from None


def _before(cluster: str, run: Run) -> Iterator[Run]:
    """Complete runs before this one that share a workload with it, the newest first."""
    mine = {each.workload for each in run.measured}
    for name in reversed([each for each in names(cluster) if each < run.id]):
        other = load(cluster, name)
        if other.state is RunState.COMPLETE and mine & {each.workload for each in other.measured}:
            yield other


def goes_on(begun: Run, now: Run) -> Run:
    """The interrupted run `begun`, to be continued. ``now``: a new run on the cluster as it is.

    Raises BadInput if `begun` is not interrupted, or the cluster has changed since.
    """
    if begun.state is not RunState.INTERRUPTED:
        reason = f": {begun.note}" if begun.note else ""
        raise BadInput(f"the run {begun.id} is {begun.state}{reason}", "Start a new run.")
    if came := differences(begun, now):
        raise BadInput(
            f"the run {begun.id} cannot be resumed: {'; '.join(came)}",
            "Its figures would mix two configurations. Start a new run.",
        )
    return replace(begun, state=now.state, note=now.note)


def changes(before: Run, after: Run) -> list[Change]:
    """The changes of all figures of the workloads that both runs share."""
    known = {each.workload: each for each in before.measured}
    return [
        change
        for each in after.measured
        if each.workload in known
        for change in _changes(known[each.workload], each)
    ]


def _changes(before: Measured, after: Measured) -> Iterator[Change]:
    for figure, key in {**LATENCIES, **RATES}.items():
        old, new = getattr(before, key), getattr(after, key)
        share = (new.median - old.median) / old.median if old.median else 0.0
        apart = old.high < new.low or new.high < old.low
        yield Change(
            workload=before.workload.name,
            figure=figure,
            before=old.median,
            after=new.median,
            share=share,
            significant=apart and chance(old.n, new.n) < CHANCE and abs(share) >= NOTABLE,
            worse=(share > 0) == (figure in LATENCIES),
            repeats=(old.n, new.n),
        )


def chance(old: int, new: int) -> float:
    """The probability that all repeats of one run exceed all of the other's by chance.

    All C(old + new, old) orders are equally likely, and in two of them the runs are separate (Mann
    and Whitney, 1947).
    """
    return 2 / math.comb(old + new, old)


def regressions(before: Run, after: Run) -> list[str]:
    """Lines for people: significant changes for the worse, then what else changed."""
    worse = [each for each in changes(before, after) if each.significant and each.worse]
    if not worse:
        return []
    came = differences(before, after)
    since = "; ".join(came) if came else "no recorded setting changed"
    return [*(each.line for each in worse), f"since {before.id}: {since}"]


def differences(before: Run, after: Run) -> list[str]:
    """Lines for people: how the two runs' clusters differ."""
    old, new = before.provenance, after.provenance
    found = []
    if old.image_id != new.image_id:
        found.append(f"image {old.image_id[:12]} to {new.image_id[:12]}")
    for name in sorted(old.versions.keys() | new.versions.keys()):
        if old.versions.get(name) != new.versions.get(name):
            found.append(f"{name} {old.versions.get(name)} to {new.versions.get(name)}")
    for what in ("model", "model_revision", "layout", "machine"):
        if getattr(old, what) != getattr(new, what):
            found.append(f"{what} {getattr(old, what)} to {getattr(new, what)}")
    return found + _profile_lines(old.profile_text, new.profile_text)


def _profile_lines(old: str, new: str) -> list[str]:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    told = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return [f"profile {line[0]} {line[1:].strip()}" for line in told]


def clusters_help(alone: Run, together: Run) -> list[str]:
    """Whether the cluster is faster than one node: a line for each workload of both runs."""
    return [
        f"{each.workload}: {_verdict(each)}"
        for each in changes(alone, together)
        if each.figure in RATES
    ]


def _verdict(change: Change) -> str:
    figures = f"{change.before:.4g} tokens a second on one node, {change.after:.4g} on all"
    answer = "it does not help" if change.worse else "it helps"
    if change.significant:
        return f"{answer}: {figures}"
    if chance(*change.repeats) >= CHANCE and abs(change.share) >= NOTABLE:
        return f"{answer}, {change.sure}: {figures}"
    return f"no measurable difference: {figures}"


def _home(cluster: str) -> Path:
    return paths.measured(cluster) / RUNS
