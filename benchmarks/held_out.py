"""Scores of what benchmarks/real_cards.py measured, by the product as it is.

A server's cells are what its forecast is made from, by the product's own outlook; the plan said
which loads these are before anything was measured. They were held out once: those scores are a file
of benchmarks/results/forecasts. What was changed since may have been changed with these
measurements in view, so these forecasts count as made afterwards. No device was probed there: over
another link than the cells', formulas with the shipped figures of such a card, and the link and
collectives that were probed, say what changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.core.errors import UserError
from orchestrator.performance.bench.load import offered
from orchestrator.performance.predict import whatif
from orchestrator.performance.predict.engine import assumed
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import LinkRate, curve
from orchestrator.performance.predict.load import Limits
from orchestrator.performance.predict.outlook import Known, Outlook, outlook
from orchestrator.performance.predict.rates import Rates, of_devices
from orchestrator.performance.predict.shape import read
from orchestrator.performance.report.score import (
    FIRST,
    FURTHER,
    Scored,
    Scores,
    Seal,
    Unscored,
    kind,
)
from orchestrator.performance.results.bench import Workload, layout_text
from orchestrator.performance.results.engine import EngineCell, EngineRates, EngineWeights
from orchestrator.performance.results.probe import spread

Row = Mapping[str, Any]
HOME = Path(__file__).resolve().parent / "real_cards"
#: Results, by their days; other files are plans and models.
RESULTS = "20*.json"
#: The shipped figures of the cards; what tc's bits carry, without headers.
CARD, CARRIED = "h200", 0.94
TIMES = ("ttft_s", "tpot_s")


def files() -> list[Path]:
    return sorted(HOME.glob(RESULTS))


def scores(path: Path) -> Scores:
    """The scores of every server of a file."""
    document = json.loads(path.read_text())
    plan = json.loads((HOME.parents[1] / document["about"]["plan"]).read_text())
    models = json.loads((HOME / plan["models"]).read_text())
    found = Scores()
    for server in plan["servers"]:
        rows = [row for row in document["rows"] if row["server"] == server["tag"]]
        held = list(_held(row for row in rows if row["kind"] == "held out"))
        if not held:
            continue
        cells = [row for row in rows if row["kind"] == "cell"]
        known = _known(plan, server, models[server["model"]], cells, document["about"])
        links = {row["link"] for row in cells}
        for row in held:
            there = known if row["link"] in links else _over(known, document["probed"], row["link"])
            found = found.plus(_scored(path.stem, there, row))
    return found


def _over(known: Known, probed: Row, link: str) -> Known:
    """The same over a link of so many Mb/s, by formulas; without them if no link was probed."""
    if not probed:
        return known
    free = LinkRate(*(spread(probed["link"][name]).median for name in ("latency_s", "bytes_per_s")))
    slow = replace(free, bytes_per_s=min(free.bytes_per_s, float(link) * 1e6 / 8 * CARRIED))
    return replace(known, rates=_rates(known, probed, free, slow), then=_rates(known, probed, free))


def _rates(known: Known, probed: Row, free: LinkRate, link: LinkRate | None = None) -> Rates:
    layout, times = known.layout, probed["collective"]
    by_size = {
        name: curve(2, {int(k): spread(v) for k, v in times[f"{name}_s"].items()}, free)
        for name in ("all_reduce", "send")
    }
    return replace(
        of_devices([whatif.device(CARD)[0]]),
        engine=assumed(synchronous=False, eager=False),
        tensor_nodes=layout.tensor,
        borders=layout.pipeline - 1,
        link=link or free,
        all_reduce=by_size["all_reduce"],
        send=by_size["send"],
    )


def _known(plan: Row, server: Row, config: Row, cells: Iterable[Row], about: Row) -> Known:
    """What a forecast may know of a server: its cells."""
    layout = Parallelism(server.get("tensor", 1), server.get("pipeline", 1))
    flags = dict(zip(plan["flags"], [*plan["flags"][1:], ""], strict=True))
    allowed = Limits(
        sequences=int(flags["--max-num-seqs"]),
        batched_tokens=int(flags["--max-num-batched-tokens"]),
        context=int(flags["--max-model-len"]),
    )
    engine = EngineRates(
        key=server["tag"], time=about["when"], model=server["model"], nodes=("a",),
        devices=(about["machine"],), tensor=layout.tensor, pipeline=layout.pipeline, data=1,
        args={}, versions=about["versions"], weights=EngineWeights.DUMMY,
        cells=tuple(_cells(cells)),
    )  # fmt: skip
    shape, _ = read(config)
    return Known(layout, allowed, shape, None, engine)


def _held(rows: Iterable[Row]) -> Iterator[Row]:
    """Each load once, with the median of its rounds."""
    by_load: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        by_load.setdefault((row["link"], *row["load"]), []).append(row)
    for rounds in by_load.values():
        yield {**rounds[0], **{name: median(row[name] for row in rounds) for name in TIMES}}


def _cells(rows: Iterable[Row]) -> Iterator[EngineCell]:
    """The first of several rounds warms up, since kernels are compiled then: it does not count, as
    in the product's own probe."""
    by_load: dict[tuple[int, int, int], list[Row]] = {}
    for row in rows:
        by_load.setdefault(tuple(row["load"][:3]), []).append(row)
    for (prompt, output, many), taken in by_load.items():
        rounds = taken[1:] or taken
        stays = [row["ttft_s"] + (output - 1) * row["tpot_s"] for row in rounds]
        yield EngineCell(
            prompt, output, many,
            spread([row["ttft_s"] for row in rounds]),
            spread([row["tpot_s"] for row in rounds]),
            spread([many * output / stay for stay in stays]),
        )  # fmt: skip


def _scored(run: str, known: Known, row: Row) -> Scores:
    prompt, output, many, requests = row["load"]
    cable = "" if row["link"] == "none" else f", link {row['link']}"
    name = f"{row['server']}{cable}, {prompt} + {output} tokens, {many} at once"
    workload = Workload(name, prompt, output, requests, many)
    if row["link"] not in ("none", "free") and known.rates is None:
        return Scores(unscored=(Unscored(run, name, "no link was probed"),))
    try:
        found = outlook(known, offered(workload))
    except UserError as error:
        return Scores(unscored=(Unscored(run, name, error.message),))
    return Scores(tuple(_phases(run, known, workload, found, row)))


def _phases(
    run: str, known: Known, workload: Workload, found: Outlook, row: Row
) -> Iterator[Scored]:
    layout = layout_text(known.layout.tensor, known.layout.pipeline)
    for phase, figure, measured in (
        (FIRST, found.ttft_s, row["ttft_s"]),
        (FURTHER, found.tpot_s, row["tpot_s"]),
    ):
        yield Scored(
            run, workload.name, phase, kind(workload), layout, str(figure.origin), figure.value,
            measured, figure.low, figure.high, Seal.AFTER,
        )  # fmt: skip
