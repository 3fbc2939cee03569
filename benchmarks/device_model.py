"""Steps of Llama's layers on a device, against what is predicted of them from its probe.

python benchmarks/device_model.py CARD [--json FILE]

CARD: what benchmarks/device_step.py printed on the machine with the device, or several. No engine:
the device's part of a prediction alone, the host that gives it its operations, and the messages.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import measure

from orchestrator.core.errors import UserError
from orchestrator.performance.predict.engine import Engine
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import curve
from orchestrator.performance.predict.phase import Work, step
from orchestrator.performance.predict.rates import Rates, link_of, of_devices
from orchestrator.performance.predict.shape import read
from orchestrator.performance.probe.run import device_rates
from orchestrator.performance.results.probe import CollectiveRates, by_size

#: How far off a prediction may be: the goal of one request's phases on a cluster.
GOAL = 0.15


@dataclass(frozen=True)
class Compared:
    """A step: new tokens of so many sequences, each after ``before`` others. Seconds."""

    hidden: int
    sequences: int
    new: int
    before: int
    measured_s: float
    predicted_s: float
    bound: str

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1


@click.command(help=__doc__)
@click.argument("card", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@measure.json_option
def device_model(card: Path, json_file: Path | None) -> None:
    try:
        said = json.loads(card.read_text())
    except ValueError as error:
        hint = "It is what device_step.py printed where the device is."
        raise UserError(f"{card} is not JSON: {error}", hint) from error
    found = compared(said)
    probe = said["probe"]
    report = measure.Report("device_model", measure.versions({}) | {"torch": said["torch"]})
    report.figures = {"device": probe["name"], "steps": [asdict(each) for each in found]}
    errors = [abs(each.error) for each in found]
    report.goals = [measure.Goal("largest error", max(errors), GOAL)]
    rows = [
        (
            f"hidden {each.hidden}: {each.sequences} x {each.new} after {each.before}",
            f"{each.measured_s * 1e3:.2f}",
            f"{each.predicted_s * 1e3:.2f}",
            f"{each.error:+.0%}",
            each.bound,
        )
        for each in found
    ]
    columns = ("step", "measured, ms", "predicted", "", "by")
    title = f"{said['ranks']} x {probe['name']}: median error {statistics.median(errors):.0%}"
    report.finish([measure.table(title, columns, rows)], json_file)


def compared(said: dict[str, Any]) -> list[Compared]:
    """Each step of each model in what device_step.py said."""
    found, layout, known = [], Parallelism(tensor=said["ranks"]), rates(said)
    for model in said["models"]:
        config = {"torch_dtype": "bfloat16", "model_type": "llama"} | model["config"]
        shape, _ = read(config)
        assert shape is not None
        for each in model["steps"]:
            sequences, new, before = each["sequences"], each["new"], each["before"]
            work = Work(sequences * new, sequences, before + (new - 1) / 2)
            given = Engine(0, 0, 0, 0, each["operations"] / shape.layers)
            parts = step(shape, layout, replace(known, engine=given), work)
            measured = statistics.median(each["seconds"])
            found.append(
                Compared(
                    shape.hidden, sequences, new, before, measured, parts.seconds, parts.bound.value
                )
            )
    return found


def rates(said: dict[str, Any]) -> Rates:
    """The rates of these devices, of what their probes printed."""
    names = tuple(map(str, range(said["ranks"])))
    found = of_devices([device_rates(names[0], said["probe"], 0.0)])
    if len(names) == 1:
        return found
    between = said["collectives"]
    times = by_size(between["all_reduce_s"])
    link = link_of(CollectiveRates(names, between["backend"], (), times, {}))
    return replace(
        found, tensor_nodes=len(names), link=link, all_reduce=curve(len(names), times, link)
    )


if __name__ == "__main__":
    measure.start(device_model)
