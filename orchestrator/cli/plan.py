"""`orchestrate plan`: what `up` would change, and how fast the model will be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.choice import Looking, NodeChoice, choice_options, json_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json, print_warning

if TYPE_CHECKING:
    from orchestrator.performance.predict.forecast import Forecast
    from orchestrator.performance.predict.load import OfferedLoad
    from orchestrator.profile import Profile

#: Layouts that are shown; `--json` has all.
SHOWN = 10


@click.command(cls=Looking)
@on_cluster
@json_option
@click.option(
    "--serving",
    is_flag=True,
    help="Predict the model's speed on each layout instead, from the figures of 'probe'.",
)
@click.option(
    "--probes",
    type=click.Path(path_type=Path),
    help="With --serving: a file of measurements, in place of the cluster's newest probes.",
)
@click.option(
    "--load",
    metavar="PROMPT,OUTPUT,REQUESTS",
    help="With --serving: prompt tokens, output tokens, concurrent requests.",
)
@choice_options
def plan(
    profile: Profile,
    as_json: bool,
    serving: bool,
    probes: Path | None,
    load: str | None,
    choice: NodeChoice,
) -> None:
    """Show what 'up' would change on the nodes. Changes nothing.

    A dry run. Files are shown as unified diffs; secrets only show that they differ. A difference
    that several nodes share is shown once. Exit code 0: nothing differs; 2: something differs;
    1: a node could not be checked (it is off or does not answer, and is listed as unknown).

    With --serving: rank the layouts of the model on the accelerators, the fastest first; say
    whether more than one node helps, and what would change that. Starts nothing. Exit code 0.

    \b
    Example: orchestrate plan --node 'compute[0-7]' --only base
    Example: orchestrate plan --serving --load 512,128,8
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.targets import plan

    if serving:
        if choice.nodes or choice.excluded or choice.only:
            raise click.UsageError("--serving cannot be combined with --node, --exclude or --only")
        return _show(_forecast(profile, probes, load), as_json)
    if probes or load:
        raise click.UsageError("--probes and --load require --serving")
    from orchestrator.models.capacity import ADVICE
    from orchestrator.models.publish import published
    from orchestrator.node.plan import rendered

    cluster = open_cluster(profile)
    selection = choice.of(cluster.profile)
    files = published(cluster.profile.name, cluster.profile.serving.model)
    found = plan(cluster, files, selection, choice.jobs)
    if as_json:
        print_json({"profile_sha256": cluster.profile.sha256, **found.document()})
    else:
        for line in rendered(found):
            out.print(line)
        for text in found.warnings:
            print_warning(f"{text}; {ADVICE}")
    sys.exit(found.code)


def _forecast(profile: Profile, probes: Path | None, load: str | None) -> Forecast:
    from orchestrator.core.errors import BadInput
    from orchestrator.models import catalog, serving
    from orchestrator.models.profiles import how_to_pull
    from orchestrator.performance.predict import inputs
    from orchestrator.performance.predict.forecast import forecast
    from orchestrator.performance.predict.layout import Parallelism

    asked = _load(load) if load else None
    model = catalog.served(profile)
    if model.repository and not model.config:
        raise BadInput(
            f"{profile.where('serving', 'model')}: {model.name} is not on this machine yet",
            f"Run: {how_to_pull(profile)}",
        )
    found = serving.resolve(profile)
    return forecast(
        profile,
        model.config,
        Parallelism(found.tensor, found.pipeline),
        inputs.probes(profile.name, probes),
        inputs.engine(profile.name),
        asked,
    )


def _load(text: str) -> OfferedLoad:
    from orchestrator.performance.predict.load import OfferedLoad

    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isdigit() and int(word) for word in words):
        raise click.UsageError(f"--load {text}: three whole numbers, like 512,128,8")
    return OfferedLoad(*map(int, words))


def _show(found: Forecast, as_json: bool) -> None:
    if as_json:
        return print_json(found.document())
    from rich.table import Table

    from orchestrator.performance.predict.forecast import headings
    from orchestrator.performance.predict.rank import AS_IT_IS

    table = Table(*headings(found.load), box=None, pad_edge=False)
    rows = list(found.rows())
    for row in rows[:SHOWN] + [row for row in rows[SHOWN:] if "profile" in row[0]]:
        table.add_row(*row)
    asked = found.load
    out.print(
        f"{found.model}, predicted from the probes of {found.probes}; prompts of"
        f" {asked.prompt_tokens} tokens, answers of {asked.output_tokens}"
    )
    out.print(table)
    out.print(found.answer)
    now = found.counterfactuals[AS_IT_IS]
    for what, tokens_per_s in found.counterfactuals.items():
        more = "" if what == AS_IT_IS else f" ({tokens_per_s / now - 1:+.0%})"
        out.print(f"  {found.compared}, {what}: {tokens_per_s:.3g} tokens/s{more}")
    for text in found.unpredicted:
        out.print(f"not predicted: {text}", markup=False)
    if found.assumed:
        out.print(f"assumed, not measured: {', '.join(found.assumed)}")
    for text in found.warnings:
        print_warning(text)
    return None
