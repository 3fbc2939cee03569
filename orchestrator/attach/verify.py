"""`status` and `verify` of a cluster that others run. Changes nothing on it.

Judges are pure; what is looked at is gathered before. A check that cannot be made is a failed
check with the reason; it holds no other back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import httpx

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach import ray as rays
from orchestrator.attach.endpoint import EndpointFacts, NotAnswered
from orchestrator.attach.facts import ALIKE, MachineFacts, apart, public
from orchestrator.attach.find import NodeFound, ask_node, of_ray
from orchestrator.attach.ray import RayCluster
from orchestrator.core.errors import UserError
from orchestrator.core.visible import one_line
from orchestrator.models.catalog import Answer
from orchestrator.profile.existing import Attached, AttachedNode
from orchestrator.profile.verification import Prompt
from orchestrator.verify import gather, judge
from orchestrator.verify.everything import ANY_QUESTION
from orchestrator.verify.facts import Generated
from orchestrator.verify.judge import Rule, Verdict
from orchestrator.verify.report import Check, Report

#: What a check of the endpoint, or of all nodes, is listed under.
ENDPOINT, NODES = "endpoint", "nodes"
#: What an endpoint says that has no chat: no such page, or no chat template.
NO_CHAT = re.compile("HTTP (404|405|400: .*chat.?template)", re.IGNORECASE)
_SERVER = "the server's log, on the machine where 'vllm serve' runs"
ANSWERS = Rule("answers", "curl URL/v1/models; " + _SERVER)
LISTED = Rule("model listed", "serving.model in the profile; " + _SERVER)
KEY = Rule("key needed", "vllm serve --api-key, or the router in front", warning=True)
REPEATED = Rule("same answer again", _SERVER)
REACHABLE = Rule("reachable", "your ~/.ssh/config; the profile: nodes.{node}.host")
CLOCK = Rule("clock", "on {node}: timedatectl; chronyc tracking", warning=True)
RANKS = Rule("ranks", "on {node}: ps aux | grep VLLM; the profile: nodes.{node}.ranks")
RAY = Rule("Ray's nodes", "on a node: ray status; its raylet's log", warning=True)
IN_RAY = Rule("alive in Ray", "on {node}: ray start; its raylet's log below /tmp/ray")
RAY_RANKS = Rule("ranks by Ray", "on a node: ray list actors; the profile: nodes.{node}.ranks")
LAYOUT = Rule("layout", "the profile: serving; the server's command line")
ALIKE_RULE = Rule("versions alike", "pip list in the engine's environment, on each node")
ENGINE = Rule("engine's version", "the server's log: it was started from another environment")
UNTHROTTLED = Rule("accelerators at full speed", "nvidia-smi -q -d PERFORMANCE", warning=True)
LINKS = Rule("accelerators' links", "reseat the card; the slot's lanes", warning=True)


@dataclass(frozen=True)
class Looked:
    """What the endpoint and the nodes said."""

    said: EndpointFacts | None
    error: str
    nodes: tuple[NodeFound, ...]
    ray: RayCluster | None = None

    @property
    def facts(self) -> list[MachineFacts]:
        return [each.facts for each in self.nodes if each.facts]


def look(profile: Attached, nodes: Sequence[AttachedNode]) -> Looked:
    """Ask the endpoint and these nodes; what does not answer is part of it."""
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        asked = [pool.submit(ask_node, node) for node in nodes]
        said, error = None, ""
        try:
            with endpoints.client_of(profile) as client:
                said = endpoints.find(client)
        except NotAnswered as reason:
            error = str(reason)
        mine = (profile.serving.model, profile.endpoint.url)
        found = tuple(each.result().of(*mine) for each in asked)
        return Looked(said, error, found, of_ray(found))


def verify(profile: Attached, nodes: Sequence[AttachedNode]) -> Report:
    """All checks. Raises BadInput for a key or an authority that cannot be read."""
    whole = len(nodes) == len(profile.nodes)
    return Report(tuple(checks(profile, look(profile, nodes), whole=whole)))


def checks(profile: Attached, seen: Looked, *, whole: bool) -> Iterator[Check]:
    """All checks of what was seen; questions are asked now. ``whole``: all nodes were looked at."""
    yield from _endpoint(profile, seen)
    yield from _questions(profile, seen)
    for found in seen.nodes:
        yield from _node(profile, found)
    if seen.ray:
        yield from _ray(seen, seen.ray)
    if seen.nodes:
        yield from _together(profile, seen, whole=whole)


def _endpoint(profile: Attached, seen: Looked) -> Iterator[Check]:
    if seen.said is None:
        yield ANSWERS.broken(ENDPOINT, seen.error)
        return
    version = f"vLLM {seen.said.version}" if seen.said.version else "version unknown"
    yield ANSWERS.check(ENDPOINT, Verdict(True, "an answer of an OpenAI-like API", version))
    yield LISTED.check(ENDPOINT, judge.listed(profile, [one_line(m) for m in seen.said.models]))
    yield KEY.check(ENDPOINT, key_needed(seen.said.without_key))


def key_needed(status: int) -> Verdict:
    seen = f"HTTP {status} without the API key"
    return Verdict(status in (401, 403), "HTTP 401 or 403 without the API key", seen)


def _questions(profile: Attached, seen: Looked) -> Iterator[Check]:
    """Each question's answer, then the first one's again and again."""
    if seen.said is None or profile.serving.model not in seen.said.models:
        return
    prompts = profile.verification.prompts
    first = prompts[0].question if prompts else ANY_QUESTION
    with endpoints.client_of(profile) as client:
        for prompt in prompts:
            yield _judged(
                Rule(f"answer: {prompt.question}", _SERVER),
                partial(_answered, client, profile, prompt),
            )
        tolerance = profile.verification.logprob_tolerance
        yield _judged(
            REPEATED,
            lambda: judge.repeated(
                [ask(client, profile, first) for _ in range(profile.verification.repeats)],
                tolerance,
            ),
        )


def _answered(client: httpx.Client, profile: Attached, prompt: Prompt) -> Verdict:
    known = Answer(prompt.question, prompt.contains, whole=False)
    return judge.answer(known, ask(client, profile, prompt.question))


def _judged(rule: Rule, make: Callable[[], Verdict]) -> Check:
    try:
        return rule.check(ENDPOINT, make())
    except UserError as error:
        return rule.broken(ENDPOINT, error.message)


def ask(client: httpx.Client, profile: Attached, question: str) -> Generated:
    """An answer, of a base model by completion: it has no chat. Raises UserError without one."""
    try:
        try:
            return gather.ask(client, profile, question)
        except UserError as error:
            if not NO_CHAT.search(error.message):
                raise
            return _completed(client, profile, question)
    except httpx.HTTPError as error:
        raise UserError(f"no answer: {endpoints.why(error)}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the answer is none of this API: {error!r}") from None


def _completed(client: httpx.Client, profile: Attached, question: str) -> Generated:
    body = {
        "model": profile.serving.model,
        "prompt": question,
        "temperature": 0,
        "seed": profile.verification.seed,
        "max_tokens": profile.verification.max_tokens,
        "logprobs": 0,
    }
    response = client.post("/v1/completions", json=body)
    if response.status_code != httpx.codes.OK:
        shown = one_line(response.text[:200])
        raise UserError(f"/v1/completions: HTTP {response.status_code}: {shown}")
    choice = response.json()["choices"][0]
    return Generated(
        text=str(choice["text"]),
        finish_reason=str(choice["finish_reason"]),
        tokens=tuple(map(str, choice["logprobs"]["tokens"])),
        logprobs=tuple(map(float, choice["logprobs"]["token_logprobs"])),
    )


def _node(profile: Attached, found: NodeFound) -> Iterator[Check]:
    name = found.node.name
    if found.facts is None or found.clock is None:
        yield REACHABLE.broken(name, found.error)
        return
    facts, clock = found.facts, found.clock
    yield REACHABLE.check(
        name, Verdict(True, "an answer", f"{facts.user} on {facts.hostname}, Python {facts.python}")
    )
    tolerance = profile.verification.clock_tolerance_s
    yield CLOCK.check(
        name,
        Verdict(
            abs(clock.offset) - clock.uncertainty <= tolerance,
            f"at most {tolerance:g} s from this machine's clock",
            f"{clock.offset:+.2f} s (± {clock.uncertainty:.2f} s)",
        ),
    )
    count = len(facts.ranks)
    shown = f"{count}: {', '.join(facts.ranks)}" if facts.ranks else "none"
    yield RANKS.check(name, Verdict(count == found.node.ranks, str(found.node.ranks), shown))
    if facts.accelerators:
        slow = [f"{e.place}: {e.throttled}" for e in facts.accelerators if e.throttled]
        yield UNTHROTTLED.check(
            name, Verdict(not slow, "nothing slows them down", "; ".join(slow) or "nothing")
        )
    wide = [each for each in facts.accelerators if each.link_width and each.link_width_most]
    if wide:
        narrow = [
            f"{each.place}: x{each.link_width} of x{each.link_width_most}"
            for each in wide
            if (each.link_width or 0) < (each.link_width_most or 0)
        ]
        full = "all lanes that they have"
        yield LINKS.check(name, Verdict(not narrow, full, "; ".join(narrow) or full))


def _ray(seen: Looked, ray: RayCluster) -> Iterator[Check]:
    """Ray's nodes live, and hold the ranks that the profile says."""
    every = "all of Ray's nodes are alive"
    if ray.error:
        yield RAY.check(NODES, Verdict(True, every, rays.why(ray), ran=False))
        return
    dead = ", ".join(each.told for each in ray.dead)
    alive = f"{len(ray.living)} alive"
    yield RAY.check(NODES, Verdict(not dead, every, f"{alive}; dead: {dead}" if dead else alive))
    job = rays.job_of(ray, seen.facts)
    ranks = ray.of_job(job) if job else []
    for each in seen.nodes:
        if each.facts is None:
            continue
        lives = any(rays.is_same(node, each.facts) for node in ray.living)
        # One that died has no process of Ray's left, and a restarted head does not know it.
        if not (lives or each.facts.ray or each.node.ranks):
            continue
        yield IN_RAY.check(
            each.node.name, Verdict(lives, "Ray has it, alive", "alive" if lives else "it has not")
        )
        if ranks:
            here = len(ray.on(each.facts, ranks))
            verdict = Verdict(here == each.node.ranks, str(each.node.ranks), str(here))
            yield RAY_RANKS.check(each.node.name, verdict)


def _together(profile: Attached, seen: Looked, *, whole: bool) -> Iterator[Check]:
    found = {each.node.name: each.facts for each in seen.nodes if each.facts}
    versions = {name: facts.versions for name, facts in found.items()}
    known = sorted({name for each in versions.values() for name in each} & set(ALIKE))
    yield ALIKE_RULE.check(NODES, alike(versions, known))
    engines = sorted({each["vllm"] for each in versions.values() if "vllm" in each})
    if seen.said and seen.said.version and engines:
        verdict = Verdict(
            public(seen.said.version) in map(public, engines),
            f"{seen.said.version}, as the endpoint says",
            ", ".join(engines),
        )
        yield ENGINE.check(NODES, verdict)
    heads = [e.flags for facts in found.values() for e in facts.servers if e.flags]
    if whole and heads:
        wanted = profile.serving
        made = (wanted.tensor_parallel, wanted.pipeline_parallel, wanted.data_parallel)
        runs = (heads[0].tensor, heads[0].pipeline, heads[0].data)
        yield LAYOUT.check(NODES, judge.same(_layout(made), _layout(runs)))


def alike(versions: Mapping[str, Mapping[str, str]], known: Sequence[str]) -> Verdict:
    """What is not known on any node is no difference, but it is said."""
    wrong = apart({node: dict(each) for node, each in versions.items()}, known)
    if not known:
        reason = "no node lets this user see them"
        return Verdict(True, "the same versions on all nodes", reason, ran=False)
    return Verdict(
        not wrong,
        "the same versions on all nodes",
        "; ".join(wrong) or f"alike: {', '.join(known)}",
    )


def _layout(sizes: tuple[int, int, int]) -> str:
    return "tensor {}, pipeline {}, data {}".format(*sizes)
