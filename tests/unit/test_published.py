"""Predictions against what others measured and published, from shipped device files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.performance.predict import whatif
from orchestrator.performance.predict.forecast import Question, rank_all
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits, OfferedLoad
from orchestrator.performance.predict.outlook import Figure

DOCUMENT = yaml.safe_load((Path(__file__).parents[1] / "data/measured/published.yml").read_text())
#: A prediction farther off than this is a miss.
BOUND = 0.3


def predicted(row: dict[str, Any]) -> Figure:
    nodes, link = row["nodes"], row.get("link")
    device, _ = whatif.device(row["device"])
    asked = Question(
        row["model"],
        Limits(context=4096),
        config=DOCUMENT["models"][row["model"]],
        machines=whatif.changed(None, nodes, [device], wanted=link is not None),
        link=whatif.link(link) if link else None,
        eager=row["eager"],
        load=OfferedLoad(row["prompt"], row["output"], row["requests"]),
    )
    found = rank_all(asked)
    wanted = Parallelism(nodes)
    return next(each.output_tokens_per_s for each in found.ranked if each.layout == wanted)


@pytest.mark.parametrize("row", DOCUMENT["rows"], ids=lambda row: f"{row['model']}-{row['tokens']}")
def test_what_others_measured(row: dict[str, Any]) -> None:
    figure = predicted(row)
    off = figure.value / row["tokens"] - 1
    if "miss" in row:
        assert abs(off) > BOUND, "it is right now: take 'miss' out of the file"
        assert off == pytest.approx(row["miss"], abs=0.02)
    else:
        assert abs(off) <= BOUND, f"{figure.value:.3g} predicted, {row['tokens']} measured"
        assert figure.low <= row["tokens"] <= figure.high


def test_what_was_left_out_says_why() -> None:
    assert all({"source", "what", "why"} <= set(each) for each in DOCUMENT["left_out"])
