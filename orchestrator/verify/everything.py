"""All checks at once: nodes, their hardware, plan, Ray and endpoint side by side.

A check that cannot be made is a failed check with the reason; it holds no other back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from orchestrator.core.errors import UserError
from orchestrator.core.slots import JOBS, Slots
from orchestrator.core.waiting import as_long_as
from orchestrator.models.catalog import Answer
from orchestrator.models.serving import apart
from orchestrator.node.resources import Step
from orchestrator.node.selection import Selection, everything
from orchestrator.profile import Node, Profile
from orchestrator.verify import gather, hardware, judge
from orchestrator.verify.facts import RankFacts
from orchestrator.verify.gather import VerifyContext
from orchestrator.verify.judge import Rule, Verdict
from orchestrator.verify.report import Check, Report

#: What a model without known answers is asked again and again.
ANY_QUESTION = "What is the capital of France?"

#: Seconds by which the text of `ray status` may be older than Ray's nodes: a monitor writes it.
STATUS_LAG = 30.0

#: A rule, and the look that comes to its verdict.
Look = tuple[Rule, Callable[[], Verdict]]


@dataclass(frozen=True)
class Part:
    """Checks that are made together, in a thread of their own.

    ``checks``: what will be checked, as (rule, node); ``make`` makes all of them, in that order.
    """

    checks: Sequence[tuple[Rule, str]]
    make: Callable[[], Iterable[Check]]


def verify(
    profile: Profile,
    context: VerifyContext,
    chosen: Selection | None = None,
    jobs: int = JOBS,
) -> Report:
    """Make every check of the chosen nodes and steps. Raises nothing: what goes wrong is in the
    report. Ray and the endpoint are checked where the control node, which has them, is chosen."""
    parts = _parts(profile, context, chosen or everything(profile))
    slots = Slots(jobs)
    with ThreadPoolExecutor(max_workers=len(parts)) as pool:
        found = pool.map(lambda part: _made(part, context, slots), parts)
        return Report(tuple(check for checks in found for check in checks))


def _parts(profile: Profile, context: VerifyContext, chosen: Selection) -> list[Part]:
    has_control = profile.control in chosen
    parts = [_drift(context, chosen.names)]
    if Step.BASE in chosen.steps:
        machines = [_hardware(profile, context, node) for node in chosen.nodes if node.hardware]
        parts = [_node(profile, context, node) for node in chosen.nodes] + machines + parts
    if Step.RAY in chosen.steps and has_control:
        if profile.serving.by_ray:
            parts += [_ray(profile, context), _ray_status(profile, context)]
        else:
            parts.append(_ranks(profile, context))
    if Step.SERVING in chosen.steps and has_control:
        parts += [_endpoint(*each) for each in _of_models(profile, context)]
    return parts


def _of_models(profile: Profile, context: VerifyContext) -> list[tuple[Profile, VerifyContext]]:
    return list(zip(profile.services, context.services, strict=True))


def _made(part: Part, context: VerifyContext, slots: Slots) -> list[Check]:
    """The part's checks; all of them failed where it breaks, the first one with the whole reason.

    The others would only repeat it.
    """
    try:
        with slots.one(), context.network():
            return list(part.make())
    except Exception as error:
        reason = _reason(error)
        short = f"not checked: {reason.partition(chr(10))[0]}"
        return [
            rule.broken(node, short if number else reason)
            for number, (rule, node) in enumerate(part.checks)
        ]


def _node(profile: Profile, context: VerifyContext, node: Node) -> Part:
    def make() -> Iterator[Check]:
        facts, clock = gather.node(context, profile, node)
        observed = judge.NodeObservation(profile, node, context.image_id, facts, clock)
        for rule, verdict in judge.NODE_RULES.items():
            yield rule.check(node.name, verdict(observed))

    return Part([(rule, node.name) for rule in judge.NODE_RULES], make)


def _hardware(profile: Profile, context: VerifyContext, node: Node) -> Part:
    looks = hardware.looks(profile, node)

    def make() -> Iterator[Check]:
        facts = gather.hardware(context, profile, node)
        for look in looks:
            yield look.rule.check(node.name, look.judge(facts))

    return Part([(look.rule, node.name) for look in looks], make)


def _drift(context: VerifyContext, names: Sequence[str]) -> Part:
    def make() -> Iterator[Check]:
        plan = context.plan()
        for name in names:
            if name in plan:
                yield judge.DRIFT.check(name, judge.drift(plan[name]))
            else:
                yield judge.DRIFT.broken(name, "the plan does not include this node")

    return Part([(judge.DRIFT, name) for name in names], make)


def _ray(profile: Profile, context: VerifyContext) -> Part:
    name = profile.control.name

    def make() -> Iterator[Check]:
        facts = gather.ray(context, profile)
        yield judge.RAY_NODES.check(name, judge.ray_nodes(profile, facts))
        yield judge.RAY_HEAD.check(name, judge.ray_head(profile, facts))
        yield judge.RAY_ACCELERATORS.check(name, judge.ray_accelerators(profile, facts))
        yield from _judged_ranks(profile, context, facts.workers)

    rules = (judge.RAY_NODES, judge.RAY_HEAD, judge.RAY_ACCELERATORS, *_rank_rules(profile))
    return Part([(rule, name) for rule in rules], make)


def _ranks(profile: Profile, context: VerifyContext) -> Part:
    """The ranks that no Ray knows."""
    name = profile.control.name

    def make() -> Iterator[Check]:
        yield from _judged_ranks(profile, context, gather.ranks(context, profile))

    return Part([(rule, name) for rule in _rank_rules(profile)], make)


def _rank_rules(profile: Profile) -> list[Rule]:
    return [judge.RANKS.of(view) for view in profile.services]


def _judged_ranks(
    profile: Profile, context: VerifyContext, workers: Sequence[RankFacts]
) -> Iterator[Check]:
    of_models = judge.of_models(profile, workers)
    for (view, own), (_, found) in zip(_of_models(profile, context), of_models, strict=True):
        rule = judge.RANKS.of(view)
        yield rule.check(profile.control.name, judge.ranks(view, own.layout, found))


def _ray_status(profile: Profile, context: VerifyContext) -> Part:
    name = profile.control.name

    def make() -> Iterator[Check]:
        verdict = judge.ray_status(profile, gather.ray_status(context, profile))

        def lags() -> bool:
            nonlocal verdict
            if verdict.ok or not judge.ray_nodes(profile, gather.ray(context, profile)).ok:
                return False
            verdict = judge.ray_status(profile, gather.ray_status(context, profile))
            return not verdict.ok

        as_long_as(lags, STATUS_LAG, 0)
        yield judge.RAY_STATUS.check(name, verdict)

    return Part([(judge.RAY_STATUS, name)], make)


def _endpoint(profile: Profile, context: VerifyContext) -> Part:
    """A model at the endpoint, and each server of several behind it, one after the other: which
    requests are computed together changes the order of sums, and the log probabilities are
    compared."""
    name = profile.control.name
    answers = [judge.answer_rule(answer) for answer in context.answers]
    every = [judge.LISTED, judge.KEY_NEEDED, *answers, judge.REPEATED]
    whole = [rule.of(profile) for rule in every]
    one = [judge.LISTED, *answers]
    copies = apart(profile, context.layout)

    def make() -> Iterator[Check]:
        with context.http() as client:
            looks = _looks(profile, context, client)
            yield from _in_turn(name, zip(whole, looks, strict=True))
        for copy, place in copies.items():
            with context.http() as client:
                client.base_url = client.base_url.copy_with(path=place)
                yield from _in_turn(copy, zip(one, _known(profile, context, client), strict=True))

    return Part(
        [(rule, name) for rule in whole] + [(r, copy) for copy in copies for r in one], make
    )


def _looks(
    profile: Profile, context: VerifyContext, client: httpx.Client
) -> Iterator[Callable[[], Verdict]]:
    """What the endpoint is asked."""
    wanted = profile.verification

    def again() -> Verdict:
        question = context.answers[0].question if context.answers else ANY_QUESTION
        answers = [gather.ask(client, profile, question) for _ in range(wanted.repeats)]
        return judge.repeated(answers, wanted.logprob_tolerance)

    listed, *known = _known(profile, context, client)
    yield listed
    yield lambda: judge.key_needed(gather.status_without_key(client))
    yield from known
    yield again


def _known(
    profile: Profile, context: VerifyContext, client: httpx.Client
) -> Iterator[Callable[[], Verdict]]:
    """What each copy has to answer."""

    def known(answer: Answer) -> Callable[[], Verdict]:
        return lambda: judge.answer(answer, gather.ask(client, profile, answer.question))

    yield lambda: judge.listed(profile, gather.models(client))
    yield from map(known, context.answers)


def _in_turn(node: str, looks: Iterable[Look]) -> Iterator[Check]:
    """Make each check; once no answer comes at all, the rest fail without waiting for theirs."""
    lost = ""
    for rule, look in looks:
        if lost:
            yield rule.broken(node, lost)
            continue
        try:
            yield rule.check(node, look())
        except httpx.TransportError as error:
            lost = f"the endpoint does not answer: {_reason(error)}"
            yield rule.broken(node, lost)
        except Exception as error:
            yield rule.broken(node, _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return error.message
    return f"{type(error).__name__}: {error}"
