"""The verbs of a cluster, for one that others run: `status`, `verify`, `ask`, `probe`, `bench run`.

They have the parameters of the verbs in cluster.py, probe.py and bench.py, which hand over to them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.core.console import out, print_json

if TYPE_CHECKING:
    from orchestrator.attach.verify import Looked
    from orchestrator.cli.probe import EngineWish
    from orchestrator.profile.existing import Attached, AttachedNode

NOT_HERE = "is for clusters that orchestrate runs; this one is attached (machines: existing)"


def status(profile: Attached, as_json: bool, watch: bool) -> None:
    from orchestrator.attach.verify import look

    if watch:
        raise click.UsageError(f"--watch {NOT_HERE}")
    seen = look(profile, profile.nodes)
    if as_json:
        print_json(_document(profile, seen))
    else:
        _show(profile, seen)


def verify(
    profile: Attached,
    as_json: bool,
    junit: Path | None,
    nodes: Sequence[str],
    **others: Any,
) -> None:
    from orchestrator.attach.verify import verify as check

    _refuse(others, "hardware", "force", "excluded", "only")
    report = check(profile, _chosen(profile, nodes))
    if junit:
        junit.write_text(report.junit())
    if as_json:
        print_json(report.document())
    else:
        out.print(report.table())
        out.print(report.summary)
    sys.exit(0 if report.ok else 1)


def ask(profile: Attached, as_json: bool, question: str) -> None:
    from orchestrator.attach.endpoint import client_of
    from orchestrator.attach.verify import ask as put
    from orchestrator.cli.cluster import answered

    with client_of(profile) as client:
        answered(question, put(client, profile, question), as_json)


def bench_run(profile: Attached, as_json: bool, **how: Any) -> None:
    from orchestrator.attach.bench import bench
    from orchestrator.cli.bench import asked_for, finished
    from orchestrator.core.progress import Board

    _refuse(how, "against_one_node")
    resumed, asked = asked_for(profile, how)
    with Board(quiet=as_json) as board:
        run = bench(profile, board, asked, resumed)
    finished(run, profile, as_json)


def probe(
    profile: Attached,
    as_json: bool,
    only: Sequence[str],
    nodes: Sequence[str],
    force: bool,
    **asked: Any,
) -> None:
    from orchestrator.attach.probe import KINDS, requests_in_work
    from orchestrator.attach.probe import probe as measure
    from orchestrator.cli.probe import ENGINE, asked_engine, shown, undisturbed
    from orchestrator.core.progress import Board
    from orchestrator.performance.probe.run import Kind, store

    wish = asked_engine(only, **asked)
    if ENGINE in only:
        _engine(profile, as_json, nodes, wish, force=force)
        return
    if unknown := [each for each in only if Kind(each) not in KINDS]:
        raise click.UsageError(f"--only {unknown[0]} {NOT_HERE}")
    kinds = [Kind(each) for each in only or KINDS]
    chosen = _chosen(profile, nodes)
    if not chosen:
        raise click.UsageError("the profile has no nodes: attach again with --node HOST")
    requests = undisturbed(requests_in_work(profile), force=force)
    with Board(quiet=as_json) as board:
        found = measure(profile, board, kinds, chosen, requests)
    whole = len(chosen) == len(profile.nodes) and set(kinds) == set(KINDS)
    shown(found, store(found, whole=whole), (), as_json, whole)


def _engine(
    profile: Attached,
    as_json: bool,
    nodes: Sequence[str],
    wish: EngineWish,
    *,
    force: bool,
) -> None:
    from orchestrator.attach import engine
    from orchestrator.attach.bench import own_home
    from orchestrator.attach.probe import requests_in_work
    from orchestrator.cli.probe import engine_shown, undisturbed
    from orchestrator.core.progress import Board
    from orchestrator.performance.probe.engine import kept, read_config, store

    if nodes:
        raise click.UsageError("--node does not go with --only engine: it takes all its nodes")
    if wish.dummy == "":
        raise click.UsageError("--dummy wants the model's config.json, or its directory")
    own_home(profile.name)
    with Board(quiet=as_json) as board:
        if wish.dummy:
            config = read_config(Path(wish.dummy))
            found, known = engine.dummy(
                profile, board, config, wish.seconds, depths=wish.depths, again=force, force=force
            )
        else:
            undisturbed(requests_in_work(profile), force=force)
            found, known = engine.live(profile, board, wish.seconds, again=force)
    path = kept(profile.name, found) if known else store(profile.name, found)
    engine_shown(found, path, as_json, known)


def _refuse(given: dict[str, Any], *names: str) -> None:
    """Options that are about clusters that we run."""
    for name in names:
        if given.get(name):
            option = {"excluded": "exclude"}.get(name, name.replace("_", "-"))
            raise click.UsageError(f"--{option} {NOT_HERE}")


def _chosen(profile: Attached, words: Sequence[str]) -> list[AttachedNode]:
    """The nodes of --node; all without it. Raises BadInput for unknown ones."""
    from orchestrator.core.errors import BadInput
    from orchestrator.core.nearest import nearest
    from orchestrator.core.nodeset import unfold

    known = [node.name for node in profile.nodes]
    wanted = {name for word in words for name in unfold(word)}
    if unknown := sorted(wanted - set(known)):
        raise BadInput(f"--node: there is no node {unknown[0]!r}", nearest(unknown[0], known))
    return [node for node in profile.nodes if not words or node.name in wanted]


def _document(profile: Attached, seen: Looked) -> dict[str, Any]:
    return {
        "profile": profile.name,
        "machines": profile.machines,
        "endpoint": profile.endpoint.url,
        "model": profile.serving.model,
        "said": asdict(seen.said) if seen.said else None,
        "note": seen.error,
        "nodes": [
            {
                "name": each.node.name,
                "host": each.node.host,
                "ranks": len(each.facts.ranks) if each.facts else None,
                "facts": asdict(each.facts) if each.facts else None,
                "note": each.error,
            }
            for each in seen.nodes
        ],
        "ray": asdict(seen.ray) if seen.ray else None,
    }


def _show(profile: Attached, seen: Looked) -> None:
    from rich.table import Table
    from rich.text import Text

    nodes = Table("node", "host", "ranks", "accelerators", "vLLM", "", box=None, pad_edge=False)
    for each in seen.nodes:
        facts = each.facts
        busy = [
            f"{card.name} {card.busy_percent or 0:.0f} % busy"
            for card in (facts.accelerators if facts else [])
        ]
        cells = [
            each.node.name,
            each.node.host,
            f"{len(facts.ranks)} of {each.node.ranks}" if facts else "-",
            "\n".join(busy) or "-",
            facts.versions.get("vllm", "-") if facts else "-",
            each.error.splitlines()[0] if each.error else "",
        ]
        nodes.add_row(*map(Text, cells))
    if seen.nodes:
        out.print(nodes)
    for line in _of_ray(seen):
        out.print(f"Ray  {line}")
    said = seen.said
    served = f"serves {', '.join(said.models)}" if said else seen.error
    version = f", vLLM {said.version}" if said and said.version else ""
    out.print(f"endpoint  {profile.endpoint.url}/v1  {served}{version}")


def _of_ray(seen: Looked) -> list[str]:
    from orchestrator.attach.ray import told, why

    if seen.ray is None:
        return []
    return [why(seen.ray)] if seen.ray.error else list(told(seen.ray))
