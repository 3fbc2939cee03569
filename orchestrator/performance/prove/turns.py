"""Loads in turns: each dose between two loads in the unchanged state, so that drift cancels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.performance.prove.changes import NotHere
from orchestrator.performance.prove.claim import Claim, seconds_of
from orchestrator.performance.prove.guards import PUT_BACK, Guards, NotPutBack
from orchestrator.performance.prove.slope import judge, judge_without_effect, slope
from orchestrator.performance.prove.trials import Dose, Ground, Intervention, Trial, intervention
from orchestrator.performance.results.bench import Measured, Workload
from orchestrator.performance.results.proof import Judgement, Proof, Slope, Turn

#: How far the unchanged state may be off the run's figure, as a factor, and so many loads to be
#: within it: one hiccup is no change of the cluster.
AS_BEFORE, TRIES = 2.0, 3
#: A dose may last this many times as long as an unchanged load, and so many seconds more.
LONGER, SECONDS = 10.0, 120.0

Load = Callable[[Workload], Measured]


@dataclass(frozen=True)
class Loads:
    """What a proof is made with. ``load``: runs a workload on the cluster."""

    board: Board
    guards: Guards
    load: Load
    rounds: int

    def seconds(self, claim: Claim, workload: Workload, name: str) -> tuple[float, float]:
        """The phase's seconds under a load, and how long the load took."""
        begun = time.monotonic()
        self.board.note(CLUSTER, f"{name} ...")
        found = seconds_of(self.load(workload), claim.phase)
        self.board.note(CLUSTER, f"{name}: {found * 1e3:.4g} ms")
        return found, time.monotonic() - begun


def prove(run: str, claim: Claim, ground: Ground, node: str, bench: Loads) -> Proof:
    """Try a claim. What cannot be tried here is a proof that says so; nothing is left changed.

    Raises UserError where a load gives no figures, or something could not be undone.
    """
    name = f"{claim.found.workload.name}, {claim.phase}: {claim.cause}"
    with bench.board.step(CLUSTER, name) as step:
        found = _proof(run, claim, ground, node, bench)
        step.detail = str(found.verdict)
    return found


def _proof(run: str, claim: Claim, ground: Ground, node: str, bench: Loads) -> Proof:
    plain = _plain(run, claim)
    if claim.measured_s <= 0:
        why = "the run measured no time in this phase. Needs answers of two tokens or more"
        return replace(plain, verdict=Judgement.NOT_TRIED, why=why)
    try:
        # One after the other: before any load, whether each can be changed at all.
        found = [_ready(each, bench.guards) for each in intervention(claim, ground, node)]
    except NotHere as error:
        return replace(plain, verdict=Judgement.NOT_TRIED, why=str(error).replace("\n ", "."))
    for _ in range(TRIES):
        first, took = bench.seconds(claim, claim.found.workload, "unchanged")
        if 1 / AS_BEFORE < first / claim.measured_s < AS_BEFORE:
            break
    else:
        was, now = (f"{each * 1e3:.4g} ms" for each in (claim.measured_s, first))
        why = f"the cluster is not as it was in the run {run}: {was} then, {now} now"
        why += ". Needs a new run: orchestrate bench run"
        return replace(plain, verdict=Judgement.NOT_TRIED, why=why)
    proofs = []
    for trial in found:
        seconds = LONGER * took + SECONDS
        points = tuple(_turns(trial, claim, bench, first, seconds))
        proofs.append(_judged(plain, trial, points, seconds))
    return _worst(proofs)


def _plain(run: str, claim: Claim) -> Proof:
    return Proof(
        run=run,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=claim.found.workload.name,
        phase=claim.phase,
        cause=str(claim.cause),
        measured_s=claim.measured_s,
        said_s=claim.seconds,
        verdict=Judgement.UNDECIDED,
        why="",
    )


def _ready(wanted: Intervention, guards: Guards) -> Trial:
    """The trial, if its first dose can be made and undone. Raises NotHere otherwise."""
    try:
        trial = wanted.available(guards)
        if trial.predicted <= 0 or not trial.doses:
            raise NotHere("the cause predicts no time that could be compared")
        guards.apply(trial.doses[0].changes, trial.places, SECONDS)
        guards.undo()
    except (NotHere, NotPutBack):
        raise
    except UserError as error:
        raise NotHere(error.message, error.hint) from None
    return trial


def _turns(
    trial: Trial, claim: Claim, bench: Loads, first: float, seconds: float
) -> Iterator[Turn]:
    """Unchanged, a dose, unchanged, the next one, ... ; each round begins with another dose."""
    before = first
    for number in range(bench.rounds):
        turn = number % len(trial.doses)
        for dose in (*trial.doses[turn:], *trial.doses[:turn]):
            name = f"{dose.text} ({number + 1} of {bench.rounds})"
            dosed = _dosed(trial, dose, claim, bench, name, seconds)
            after, _ = bench.seconds(claim, claim.found.workload, f"unchanged after {name}")
            yield Turn(dose.text, dose.x, dosed, (before + after) / 2)
            before = after


def _dosed(
    trial: Trial, dose: Dose, claim: Claim, bench: Loads, name: str, seconds: float
) -> float:
    try:
        bench.guards.apply(dose.changes, trial.places, seconds)
        return bench.seconds(claim, dose.workload, name)[0]
    finally:
        bench.guards.undo()


def _judged(plain: Proof, trial: Trial, points: tuple[Turn, ...], seconds: float) -> Proof:
    found = slope(points, trial.x)
    verdict = (judge_without_effect if trial.no_effect else judge)(found, trial.predicted)
    return replace(
        plain,
        verdict=verdict,
        why=told(found, trial, verdict),
        change=trial.what,
        slope_unit=trial.unit,
        x_unchanged=trial.x,
        predicted=0.0 if trial.no_effect else trial.predicted,
        slope=found,
        points=points,
        put_back=PUT_BACK.format(seconds=seconds) if trial.places else "nothing was changed there",
    )


def told(found: Slope, trial: Trial, verdict: Judgement) -> str:
    figures = [f"{each:.3g}" for each in (found.value, found.low, found.high)]
    said = f"{figures[0]} {trial.unit} ({figures[1]} to {figures[2]})"
    wanted = f"none, where it would be {trial.predicted:.3g} if it limited"
    predicted = wanted if trial.no_effect else f"{trial.predicted:.3g}"
    text = f"changing {trial.what} gave {said}; predicted: {predicted}"
    if verdict is Judgement.UNDECIDED:
        text += ". The loads differ too much by themselves: try more --rounds"
    elif verdict is Judgement.CONFIRMED and not trial.no_effect and found.low > trial.predicted:
        text += ". The effect is stronger than predicted"
    return text


def _worst(proofs: list[Proof]) -> Proof:
    """Of several changes that all have to come out as predicted, the one that decides."""
    order = (Judgement.REFUTED, Judgement.UNDECIDED, Judgement.CONFIRMED)
    worst = min(proofs, key=lambda each: order.index(each.verdict))
    if len(proofs) == 1:
        return worst
    return replace(worst, why="; ".join(each.why for each in proofs))
