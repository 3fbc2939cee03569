"""`bench prove` on a cluster that others run: only what its user may change, as that user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.attach import endpoint as endpoints
from orchestrator.attach.bench import kept_speeds, loaded, own_home
from orchestrator.attach.explain import findings
from orchestrator.attach.facts import of_ranks
from orchestrator.attach.find import NodeFound, ask_node
from orchestrator.attach.reach import NodeShell
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.nearest import nearest
from orchestrator.core.progress import Board
from orchestrator.performance.bench import client as clients
from orchestrator.performance.bench.load import check
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.load import limits
from orchestrator.performance.predict.phase import Cause
from orchestrator.performance.prove.claim import Claim, seconds_of
from orchestrator.performance.prove.guards import Site, guarded
from orchestrator.performance.prove.store import store
from orchestrator.performance.prove.trials import End, Ground
from orchestrator.performance.prove.turns import Loads, prove
from orchestrator.performance.results.bench import Asked, Measured, Run, Workload
from orchestrator.performance.results.proof import Proof
from orchestrator.profile.existing import Attached

#: Of a cause that is asked for, the share of the time that it would have to take.
MAIN = 0.5


def claims(
    run: Run,
    profile: Attached,
    speeds: Mapping[str, float],
    names: Sequence[str],
    cause: str | None = None,
) -> list[Claim]:
    """What the findings of a run say, as far as something could be changed for it.

    ``names``, ``cause``: as in performance.prove.claim. Raises BadInput for an unknown workload, or
    where there is nothing to try.
    """
    known = {each.workload.name: each for each in run.measured}
    if unknown := [name for name in names if name not in known]:
        text = f"there is no workload {unknown[0]!r} in the run {run.id}"
        raise BadInput(text, nearest(unknown[0], list(known)))
    if cause:
        chosen = [known[name] for name in names] or list(run.measured[:1])
        phases = ("prefill",) if cause == Cause.BATCH_LIMIT else ("prefill", "decode")
        found = [_claim(each, phase, Cause(cause), MAIN, "asked for")
                 for each in chosen for phase in phases]  # fmt: skip
    else:
        found = [
            _claim(known[each.workload], each.phase, Cause(each.cause), each.weight, each.seen)
            for each in findings(run, profile, speeds)
            if each.cause and each.workload in known and (not names or each.workload in names)
        ]
    if not found:
        raise BadInput(
            f"the run {run.id} shows no limit that could be changed on purpose",
            "Try a cause: --cause NAME. What it shows: orchestrate bench show",
        )
    return found


def _claim(found: Measured, phase: str, cause: Cause, share: float, why: str) -> Claim:
    return Claim(found, phase, cause, share * seconds_of(found, phase), {}, why)


def prove_all(
    profile: Attached, board: Board, run: Run, wanted: Sequence[Claim], rounds: int
) -> list[Proof]:
    """Try the claims, one after the other. Each proof is kept when it is made."""
    seen = [ask_node(node) for node in profile.nodes]
    found = []
    with endpoints.client_of(profile) as client:
        known = clients.vocabulary(client, profile.serving.model)

    def load(workload: Workload) -> Measured:
        check(workload, profile)
        return loaded(profile, Asked((workload,), repeats=1), workload, known)[0]

    own_home(profile.name)
    with guarded() as guards:
        for each in wanted:
            bench = Loads(board, guards, load, rounds)
            proof = prove(run.id, each, ground(profile, seen), "", bench)
            store(profile.name, [proof])
            found.append(proof)
    return found


def ground(profile: Attached, seen: Sequence[NodeFound]) -> Ground:
    """What can be changed. Whether this user may is found out by trying, on the nodes."""
    places = {each.node.name: _place(each) for each in seen if each.facts}
    try:
        links = inputs.probes(profile.name).links
    except UserError:
        links = ()
    speeds = kept_speeds(profile.name)
    slowest = min((each.bytes_per_s.median for each in links), default=None)
    if slowest is None:
        slowest = min(speeds.values(), default=None)
    allowed = limits(profile)

    def ends(_: Cause) -> list[End]:
        found = [end for each in seen if (end := _end(each, places))]
        return found if len(found) > 1 else []

    return Ground(
        hosts=list(places.values()),
        cards=[places[each.node.name] for each in seen if _all_cards(each)],
        ends=ends,
        bytes_per_s=slowest,
        latency_s=max((each.latency_s.median for each in links), default=None),
        synchronous=False,
        limit=allowed.sequences,
        context=allowed.context,
    )


def _place(found: NodeFound) -> Site:
    shell = NodeShell(found.node)

    def argv(words: Sequence[str]) -> list[str]:
        return shell.argv(words, inside=False)

    python = "python3" if found.node.enter else found.node.python
    return Site(found.node.name, argv, (python, "-I", "-S"))


def _end(found: NodeFound, places: Mapping[str, Site]) -> End | None:
    """The node's link that the ranks use."""
    if found.facts is None:
        return None
    address = str(found.node.address or of_ranks(found.facts))
    for link in found.facts.addresses:
        if link.address == address:
            return End(places[found.node.name], link.interface)
    return None


def _all_cards(found: NodeFound) -> bool:
    """Whether all of the node's cards are the model's: others' are not to be slowed down."""
    facts = found.facts
    return bool(facts and facts.accelerators and len(facts.ranks) == len(facts.accelerators))
