"""`orchestrate plan`: what `up` would change, and how fast the model will be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.choice import (
    Looking,
    NodeChoice,
    choice_options,
    json_option,
    model_option,
    of_model,
)
from orchestrator.cli.layout import change_layout_option, settled_layout, tell_layout
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json, print_warning

if TYPE_CHECKING:
    from orchestrator.performance.predict.auto import Settled
    from orchestrator.performance.predict.forecast import Forecast, Question
    from orchestrator.performance.predict.load import OfferedLoad
    from orchestrator.performance.results.engine import EngineRates
    from orchestrator.performance.results.probe import Probes
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached

#: Layouts that are shown; `--json` has all.
SHOWN = 10
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _alone(given: dict[str, Any]) -> bool:
    """Whether the options say all that a prediction needs: no cluster."""
    return bool(given.get("serving") and given.get("config") and given.get("device"))


@click.command(cls=Looking)
@partial(on_cluster, attached=True, alone=_alone)
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
@click.option(
    "--config", type=FILE, help="With --serving: the model's config.json, in place of its own."
)
@click.option(
    "--device",
    metavar="NAME_OR_FILE",
    multiple=True,
    help="With --serving: on this accelerator instead; repeat it for one a node.",
)
@click.option(
    "--nodes", "count", type=click.IntRange(1, 64), help="With --serving: on so many nodes."
)
@click.option(
    "--link",
    metavar="BITS[:LATENCY]",
    help="With --serving: with this link between nodes, like 10Gbit:20us.",
)
@model_option
@change_layout_option
@choice_options
def plan(
    profile: Profile | Attached | None,
    as_json: bool,
    serving: bool,
    change_layout: bool,
    choice: NodeChoice,
    model: str | None,
    **what_if: Any,
) -> None:
    """Show what 'up' would change on the nodes. Changes nothing.

    A dry run. Files are shown as unified diffs; secrets only show that they differ. A difference
    that several nodes share is shown once. Exit code 0: nothing differs; 2: something differs;
    1: a node could not be checked (it is off or does not answer, and is listed as unknown).

    With --serving: rank the layouts of the model on the accelerators, the fastest first; say
    whether more than one node helps, and what would change that. Starts nothing. Exit code 0.
    Each figure has the range in which nine of ten measured ones should be. --device, --nodes and
    --link answer for hardware that is not there; with --config and --device, no cluster is needed.

    With 'serving.layout: auto', also which layout 'up' takes and why, and one that would be better.

    \b
    Example: orchestrate plan --node 'compute[0-7]' --only base
    Example: orchestrate plan --serving --load 512,128,8
    Example: orchestrate plan --serving --nodes 2 --link 10Gbit:20us
    Example: orchestrate plan --serving --config config.json --device a770 --nodes 2 --link 10Gbit
    """
    if serving:
        if choice.nodes or choice.excluded or choice.only:
            raise click.UsageError("--serving cannot be combined with --node, --exclude or --only")
        if change_layout:
            raise click.UsageError("--serving and --change-layout cannot be combined")
        profile = _of_model(profile, model)
        settled = _served(profile, **what_if)
        return _show(_forecast(profile, settled, **what_if), as_json, settled)
    if given := [name for name, value in {**what_if, "model": model}.items() if value]:
        words = ", ".join(f"--{'nodes' if name == 'count' else name}" for name in given)
        raise click.UsageError(f"these options require --serving: {words}")
    return _differences(profile, as_json, choice, change=change_layout)


def _of_model(profile: Profile | Attached | None, model: str | None) -> Profile | Attached | None:
    from orchestrator.profile.existing import Attached

    if profile is None or isinstance(profile, Attached):
        return profile
    return of_model(profile, model)


def _differences(
    profile: Profile | Attached | None, as_json: bool, choice: NodeChoice, *, change: bool
) -> None:
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.targets import plan, published_models
    from orchestrator.models.capacity import ADVICE
    from orchestrator.node.plan import rendered
    from orchestrator.profile.existing import Attached
    from orchestrator.profile.load import NotOurs

    assert profile is not None  # only --serving works without a profile
    if isinstance(profile, Attached):
        raise NotOurs(profile.path)
    cluster, settled = settled_layout(open_cluster(profile), change=change)
    selection = choice.of(cluster.profile)
    found = plan(cluster, published_models(cluster), selection, choice.jobs)
    if as_json:
        document = {"profile_sha256": cluster.profile.sha256, **found.document()}
        print_json(document | ({"layout": settled.document()} if settled else {}))
    else:
        tell_layout(settled)
        for line in rendered(found):
            out.print(line)
        for text in found.warnings:
            print_warning(f"{text}; {ADVICE}")
    sys.exit(found.code)


def _served(profile: Profile | Attached | None, **what_if: Any) -> Settled | None:
    """What is served of the cluster as it is and was measured, by ``layout: auto``."""
    from orchestrator.cli.layout import settled_profile
    from orchestrator.profile.existing import Attached

    if profile is None or isinstance(profile, Attached) or any(what_if.values()):
        return None
    return settled_profile(profile)


def _forecast(
    profile: Profile | Attached | None,
    settled: Settled | None,
    probes: Path | None,
    load: str | None,
    config: Path | None,
    **elsewhere: Any,
) -> Forecast:
    from dataclasses import replace

    from orchestrator.core.document import read_json
    from orchestrator.performance.predict.forecast import Question, rank_all
    from orchestrator.performance.predict.load import Limits, stated
    from orchestrator.profile.existing import Attached

    given = read_json(config) if config else None
    if profile is None:
        asked = Question(str(config), Limits(), config=given)
    else:
        asked = _asked(profile, given, probes, wanted=not elsewhere["device"])
        asked = replace(asked, chosen=settled.took) if settled else asked
    if config:
        asked = replace(asked, model=str(config))
    if profile and not isinstance(profile, Attached):
        asked = replace(asked, load=stated(profile))
    asked = replace(asked, load=_load(load)) if load else asked
    return rank_all(_elsewhere(asked, profile, **elsewhere))


def _elsewhere(
    asked: Question,
    profile: Profile | Attached | None,
    device: Sequence[str],
    count: int | None,
    link: str | None,
) -> Question:
    """The question on the hardware that is given by hand, if any."""
    from dataclasses import replace

    from orchestrator.performance.predict import whatif
    from orchestrator.performance.predict.rates import machines
    from orchestrator.performance.results.probe import Probes

    devices = [whatif.device(named) for named in device]
    if not (devices or count or link):
        return asked
    there = asked.machines
    if profile and devices and not there:
        there = machines(Probes("", "", "", {}, ""), profile)
    rates = [found for found, _ in devices]
    other = whatif.changed(there, count, rates, wanted=link is not None)
    sources = tuple(dict.fromkeys(f"{found.name}: {source}" for found, source in devices))
    return replace(
        asked,
        machines=other,
        then=asked.machines,
        link=whatif.link(link) if link else None,
        sources=sources,
    )


def _asked(
    profile: Profile | Attached, config: dict[str, Any] | None, probes: Path | None, wanted: bool
) -> Question:
    """What is known of a cluster. ``wanted``: measurements of it, for no device is named."""
    from orchestrator.core.errors import BadInput, UserError
    from orchestrator.performance.predict import inputs
    from orchestrator.performance.predict.forecast import asked
    from orchestrator.performance.predict.layout import Parallelism
    from orchestrator.profile.existing import Attached

    engines = inputs.engines(profile.name)
    try:
        measured = inputs.probes(profile.name, probes)
    except BadInput:
        raise
    except UserError as error:
        if wanted and not (engines or isinstance(profile, Attached)):
            raise UserError(
                error.message, f"{error.hint}. Or say what the nodes have: --device NAME_OR_FILE"
            ) from None
        measured = None
    if isinstance(profile, Attached):
        sizes = profile.serving
        chosen = Parallelism(sizes.tensor_parallel, sizes.pipeline_parallel, sizes.data_parallel)
        own = config or _own_config(profile)
        return asked(profile, own, chosen, measured, engines)
    return _ours(profile, config, measured, engines)


def _ours(
    profile: Profile,
    config: dict[str, Any] | None,
    measured: Probes | None,
    engines: Sequence[EngineRates],
) -> Question:
    from orchestrator.models import serving
    from orchestrator.models.profiles import config_of
    from orchestrator.performance.predict.forecast import asked
    from orchestrator.performance.predict.layout import Parallelism

    own = config or config_of(profile)
    sizes = serving.resolve(profile)
    return asked(profile, own, Parallelism.of(sizes), measured, engines)


def _own_config(profile: Attached) -> dict[str, Any] | None:
    """The config.json of a model that is a directory of this computer, if a node is this one."""
    from orchestrator.core.document import read_json
    from orchestrator.profile.existing import HERE

    file = Path(profile.serving.model) / "config.json"
    here = any(node.host == HERE for node in profile.nodes)
    return read_json(file) if here and file.is_file() else None


def _load(text: str) -> OfferedLoad:
    from orchestrator.performance.predict.load import OfferedLoad

    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isdigit() and int(word) for word in words):
        raise click.UsageError(f"--load {text}: three whole numbers, like 512,128,8")
    return OfferedLoad(*map(int, words))


def _show(found: Forecast, as_json: bool, settled: Settled | None) -> None:
    if as_json:
        auto = {"auto": settled.document()} if settled else {}
        return print_json(found.document() | auto)
    from rich.table import Table

    from orchestrator.performance.predict.forecast import headings
    from orchestrator.performance.predict.rank import AS_IT_IS

    table = Table(*headings(found.load), box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    rows = list(found.rows())
    for row in rows[:SHOWN] + [row for row in rows[SHOWN:] if "profile" in row[0]]:
        table.add_row(*row)
    asked = found.load
    source = f"the probes of {found.probes}" if found.probes else "what is measured or given"
    out.print(
        f"{found.model}, predicted from {source}; prompts of"
        f" {asked.prompt_tokens} tokens, answers of {asked.output_tokens}"
    )
    out.print(table)
    tell_layout(settled)
    out.print(found.answer)
    now = found.counterfactuals[AS_IT_IS]
    for what, tokens_per_s in found.counterfactuals.items():
        more = "" if what == AS_IT_IS else f" ({tokens_per_s / now - 1:+.0%})"
        out.print(f"  {found.compared}, {what}: {tokens_per_s:.3g} tokens/s{more}")
    told = [each for each in found.ranked if each.layout == found.compared]
    for text in (text for each in told for text in each.narrower):
        out.print(f"to narrow the ranges: {text}", markup=False)
    for text in found.sources:
        out.print(f"device: {text}", markup=False)
    for text in found.unpredicted:
        out.print(f"not predicted: {text}", markup=False)
    if found.assumed:
        out.print(f"assumed, not measured: {', '.join(found.assumed)}")
    for text in found.warnings:
        print_warning(text)
    return None
