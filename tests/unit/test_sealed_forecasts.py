"""Forecasts that are sealed before a load is measured, and what shows that one was changed."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import TypeAdapter
from support.predict import MISTRAL, collective, device, exactly, link, probes
from support.profiles import PROFILE, make_checkout
from support.report import measured as made
from support.report import story

from orchestrator.cli.bench import accuracy, bench, show
from orchestrator.cli.bench import finished as ended
from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.models.profiles import load
from orchestrator.performance.bench import history
from orchestrator.performance.bench.basis import basis
from orchestrator.performance.bench.loads import loads
from orchestrator.performance.bench.seal import Basis, broken, digest
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.report.page import page
from orchestrator.performance.report.score import score
from orchestrator.performance.results.bench import Asked, Measured, Run, RunState, Workload
from orchestrator.performance.results.engine import EngineCell, EngineRates, EngineWeights
from orchestrator.performance.results.probe import Probes
from orchestrator.profile.model import Profile

PROJECT = Path(__file__).resolve().parents[2]
ONE, MANY = Workload("single stream", 64, 32, 4, 1), Workload("2 at once", 64, 32, 4, 2)
BOTH = Asked((ONE, MANY), rates=False)
CARD = {"device": "xpu", "matrix_flops_per_s": {"float16": exactly(60e12)}}
GBE = probes(
    devices=(device("left", 410e9, **CARD), device("right", 410e9, **CARD)),
    links=(link("left", "right", 100e-6, 117.5e6),),
    collectives=(collective(("left", "right"), {256: 3e-4}),),
)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Two nodes with a card each, probed."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("ORCHESTRATE_PROFILE", "small")
    found = load(make_checkout(tmp_path, PROFILE, MISTRAL))
    probed(found, GBE)
    return found


def probed(profile: Profile, found: Probes) -> None:
    file = paths.measured(profile.name) / "probes/1.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(TypeAdapter(Probes).dump_json(found))


def begun(profile: Profile, asked: Asked = BOTH) -> Run:
    run = story().run
    changed = replace(
        run.provenance, profile=profile.name, profile_text=profile.path.read_text(),
        model=profile.serving.model, layout="tensor 2, pipeline 1",
    )  # fmt: skip
    return replace(
        run, provenance=changed, state=RunState.INTERRUPTED, asked=asked, measured=(), series=()
    )


def now(profile: Profile, run: Run) -> Callable[[], Basis]:
    return lambda: basis(profile, run.provenance, Parallelism(2), MISTRAL)


def figures(workload: Workload) -> tuple[Measured, tuple[str, ...]]:
    return replace(made(1, 1), workload=workload), ()


def finished(profile: Profile, asked: Asked = BOTH) -> Run:
    """A whole run, stored after each step."""
    run = begun(profile, asked)
    for more in loads(run, now(profile, run), figures):
        run = more
        history.store(run)
    run = replace(run, state=RunState.COMPLETE, note="")
    history.store(run)
    return run


def stored(run: Run) -> Path:
    return paths.measured(run.provenance.profile) / f"runs/{run.id}.json"


# Order.


def test_each_forecast_is_on_disk_before_its_load_starts(profile: Profile) -> None:
    """Rate loads too: they are known when the others are done."""
    run = begun(profile, Asked((ONE, MANY)))
    seen: list[str] = []

    def measure(workload: Workload) -> tuple[Measured, tuple[str, ...]]:
        kept = history.read(stored(run))
        assert workload not in {each.workload for each in kept.measured}
        (mine,) = (each for each in kept.forecasts if each.workload == workload)
        assert mine.ttft_s is not None and not broken(mine, kept.provenance)
        seen.append(workload.name)
        return figures(workload)

    for more in loads(run, now(profile, run), measure):
        history.store(more)
        last = more
    rates = ["25% of the maximum", "50% of the maximum", "75% of the maximum"]
    assert seen == ["single stream", "2 at once", *rates]
    assert [each.workload.name for each in last.forecasts] == seen
    assert last.warnings == ()


def test_what_is_stored_is_the_forecast_with_interval_origin_and_cause(profile: Profile) -> None:
    (one, many) = finished(profile).forecasts
    assert one.ttft_s and one.tpot_s and one.output_tokens_per_s and many.tpot_s
    assert one.tpot_s.low < one.tpot_s.value < one.tpot_s.high
    assert (one.tpot_s.origin, one.reason) == ("modelled", "")
    assert one.tpot_s.cause and one.ttft_s.cause
    assert one.tpot_s.value != many.tpot_s.value
    assert one.made_from.keys() == {"probes"}


def test_without_measurements_the_reason_is_stored(profile: Profile) -> None:
    (paths.measured(profile.name) / "probes/1.json").unlink()
    run = finished(profile)
    assert {each.reason for each in run.forecasts} == {
        "no measurements of small yet Run: orchestrate probe"
    }
    assert not any(each.ttft_s or broken(each, run.provenance) for each in run.forecasts)
    assert [each.reason for each in score(run).unscored] == [run.forecasts[0].reason] * 2


@pytest.mark.parametrize("text", ["", "{", '{"profile": "small"}'])
def test_damaged_probes_are_a_reason_and_stop_no_run(profile: Profile, text: str) -> None:
    (paths.measured(profile.name) / "probes/1.json").write_text(text)
    run = finished(profile)
    assert "does not hold probes" in run.forecasts[0].reason
    assert len(run.measured) == 2


def test_the_measured_engine_is_one_of_the_same_model_flags_image_and_version(
    profile: Profile,
) -> None:
    run = begun(profile)
    cell = EngineCell(64, 32, 1, exactly(0.1), exactly(0.02), exactly(45))
    engine = EngineRates(
        "k", "2026-11-30T10:00:00Z", profile.serving.model, ("left", "right"), ("a", "b"),
        2, 1, 1, {"dtype": "half"}, {"vllm": "0.30.0"}, EngineWeights.DUMMY, (cell,),
        image_id=run.provenance.image_id,
    )  # fmt: skip
    folder = paths.measured(profile.name) / "engines"
    folder.mkdir()
    others = (
        replace(engine, key="model", model="other"),
        replace(engine, key="layout", tensor=1),
        replace(engine, key="flags", args={"dtype": "half", "enforce-eager": "True"}),
        replace(engine, key="image", image_id="0" * 64),
        replace(engine, key="vllm", versions={"vllm": "0.31.0"}),
    )
    for each in (engine, *(replace(each, time="2026-11-30T11:00:00Z") for each in others)):
        (folder / f"{each.key}.json").write_bytes(TypeAdapter(EngineRates).dump_json(each))
    found = now(profile, run)()
    assert profile.serving.args == {"dtype": "half"}
    assert found.known is not None and found.known.engine == engine
    assert found.made_from is not None and found.made_from["engine"] == digest(engine)
    (folder / "k.json").unlink()
    without = now(profile, run)()
    assert without.known is not None and without.known.engine is not None
    assert without.known.engine.key == "layout"  # formulas say what another layout changes
    (folder / "layout.json").unlink()
    none = now(profile, run)()
    assert none.known is not None and none.known.engine is None


def test_probes_that_change_before_a_load_ends_are_a_warning(profile: Profile) -> None:
    run = begun(profile)
    slower = replace(GBE, links=(link("left", "right", 100e-6, 12e6),))

    def measure(workload: Workload) -> tuple[Measured, tuple[str, ...]]:
        if workload == ONE:
            probed(profile, slower)
        return figures(workload)

    *_, last = loads(run, now(profile, run), measure)
    (warning,) = last.warnings
    assert warning.startswith("single stream: its forecast is from older measurements")
    one, many = last.forecasts
    assert one.made_from != many.made_from  # the next load has a forecast from the new ones
    assert len(score(last).scored) == 4


def test_a_resumed_run_keeps_the_forecasts_of_its_finished_loads(profile: Profile) -> None:
    """The load that did not finish is forecast again: the probes may be newer."""
    run = begun(profile)
    first, half, begun_second, *_ = loads(run, now(profile, run), figures)
    assert (len(first.measured), len(half.measured), len(begun_second.forecasts)) == (0, 1, 2)
    probed(profile, replace(GBE, links=(link("left", "right", 100e-6, 12e6),)))
    *_, last = loads(begun_second, now(profile, run), figures)
    assert last.forecasts[0] == half.forecasts[0]
    assert last.forecasts[1].made_from != begun_second.forecasts[1].made_from
    assert len(last.forecasts) == 2 == len(last.measured)


def test_a_load_that_failed_is_counted_and_not_scored(profile: Profile) -> None:
    def measure(workload: Workload) -> tuple[Measured, tuple[str, ...]]:
        if workload == MANY:
            raise UserError("the workload '2 at once' gave no figures")
        return figures(workload)

    run = begun(profile)
    with pytest.raises(UserError):
        for more in loads(run, now(profile, run), measure):
            run = more
            history.store(run)
    found = score(history.read(stored(run)))
    assert {each.workload for each in found.scored} == {"single stream"}
    (left,) = found.unscored
    assert (left.workload, left.reason) == ("2 at once", "it was not measured")


# Seal.


def changed(document: Any, path: str, value: object) -> Any:
    *where, last = path.split(".")
    for key in where:
        document = document[int(key) if key.isdigit() else key]
    document[last] = value
    return document


CHANGES = {
    "figure": ("forecasts.0.tpot_s.value", 0.02),
    "interval": ("forecasts.0.ttft_s.high", 1e9),
    "load": ("forecasts.0.workload.prompt_tokens", 63),
    "origin": ("forecasts.0.tpot_s.origin", "measured here"),
    "time": ("forecasts.0.time", "2020-01-01T00:00:00Z"),
    "source": ("forecasts.0.made_from.probes", "0" * 64),
    "no figure": ("forecasts.0.ttft_s", None),
    "seal": ("forecasts.0.seal", ""),
    "profile": ("provenance.profile_text", "name: small\n"),
    "image": ("provenance.image_id", "0" * 64),
    "versions": ("provenance.versions", {"vllm": "0.31.0"}),
    "model": ("provenance.model", "other"),
    "revision": ("provenance.model_revision", "main"),
    "layout": ("provenance.layout", "tensor 1, pipeline 1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_hand_breaks_the_seal_and_is_not_scored(profile: Profile, change: str) -> None:
    run = finished(profile)
    assert len(score(history.read(stored(run))).scored) == 4
    document = json.loads(stored(run).read_text())
    changed(document, *CHANGES[change])
    stored(run).write_text(json.dumps(document))
    read = history.read(stored(run))
    found = score(read)
    assert "the seal is broken" in broken(read.forecasts[0], read.provenance)
    assert not any(each.workload == "single stream" for each in found.scored)
    assert "single stream" in {each.workload for each in found.unscored}
    text = page(replace(story(), run=read))
    assert re.search(r"not scored: .*single stream.*the seal is broken", text)


def test_the_show_names_a_changed_forecast(profile: Profile) -> None:
    run = finished(profile)
    document = json.loads(stored(run).read_text())
    changed(document, *CHANGES["figure"])
    stored(run).write_text(json.dumps(document))
    for command, words in ((show, ["last"]), (accuracy, [])):
        done = CliRunner().invoke(command, words)
        assert done.exit_code == 0, done.output
        assert f"not scored: {run.id}: single stream: the seal is broken" in done.stderr
        assert "2 at once" in done.stdout


def test_a_whole_number_seals_like_the_same_with_a_point(profile: Profile) -> None:
    """A profile says ``rate: 2``; a stored run has 2.0."""
    run = finished(profile, Asked((Workload("chat", 64, 32, 4, None, 2),), rates=False))
    assert len(score(run).scored) == len(score(history.read(stored(run))).scored) == 2


# Files.


def test_run_files_of_other_versions(profile: Profile) -> None:
    run = finished(profile)
    document = json.loads(stored(run).read_text())
    newer = json.loads(json.dumps(document))
    changed(newer, "forecasts.0.form", 2)
    changed(newer, "forecasts.0.more", "than is known here")
    changed(newer, "more", "than is known here")
    stored(run).write_text(json.dumps(newer))
    found = score(history.read(stored(run)))
    assert [each.reason for each in found.unscored] == [
        "sealed by another version of orchestrate (form 2): cannot be checked"
    ]
    assert {each.workload for each in found.scored} == {"2 at once"}
    for key in ("forecasts", "causes"):
        del document[key]
    stored(run).write_text(json.dumps(document))
    old = history.read(stored(run))
    assert (old.forecasts, len(old.measured)) == ((), 2)
    reasons = {each.reason for each in score(old).unscored}
    assert reasons == {"no forecast was sealed before it was measured"}


def asked(*words: str) -> Result:
    return CliRunner().invoke(bench, ["accuracy", *words])


def test_a_truncated_file_is_named_and_the_others_count(profile: Profile, tmp_path: Path) -> None:
    run = finished(profile)
    whole = stored(run).read_text()
    cut = stored(run).with_name("20261201T000000Z.json")
    cut.write_text(whole[: len(whole) // 2])
    done = asked()
    assert done.exit_code == 0, done.output
    assert f"not scored: {cut.stem}: {cut}: does not hold a run" in done.stderr
    assert "nine of ten within" in done.stdout
    given = tmp_path / "cut.json"
    given.write_text(whole[:100])
    for file, problem in ((given, "does not hold a run"), (tmp_path / "no.json", "cannot be read")):
        refused = asked(str(file))
        assert isinstance(refused.exception, BadInput) and problem in str(refused.exception)


def test_without_a_run_it_says_what_to_run(profile: Profile) -> None:
    done = asked()
    assert done.exit_code == 0
    assert done.stdout == (
        "No forecast of small can be scored yet. Run: orchestrate probe; orchestrate bench run\n"
    )


def test_files_count_beside_the_clusters_own_runs_and_none_twice(
    profile: Profile, tmp_path: Path
) -> None:
    run = finished(profile)
    other = tmp_path / "other.json"
    other.write_bytes(TypeAdapter(Run).dump_json(replace(run, id="20261201T000000Z")))
    found = json.loads(asked("--json", str(other), str(stored(run))).stdout)
    assert sum(each["number"] for each in found["groups"]) == 8 == len(found["phases"])
    assert {each["run"] for each in found["phases"]} == {run.id, "20261201T000000Z"}
    assert [each["keys"] for each in found["totals"]] == [["one request"], ["under load"]]


def test_the_report_has_the_forecast_beside_what_was_measured(profile: Profile) -> None:
    run = finished(profile)
    text = page(replace(story(), run=run))
    section = text[text.index("Forecast before it was measured") :]
    for word in ("single stream", "first token", "modelled", "<th>inside</th>"):
        assert word in section, word
    shown = json.loads(CliRunner().invoke(show, ["last", "--json"]).stdout)
    assert [each["phase"] for each in shown["forecasts"]["phases"][:2]] == [
        "first token", "further token",
    ]  # fmt: skip


def test_a_run_added_to_the_repository_is_small_scored_and_on_the_page(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    tool = importlib.import_module("accuracy")
    monkeypatch.setattr(tool, "FORECASTS", tmp_path / "forecasts")
    run = replace(finished(profile), series=story().run.series)
    history.store(run)
    copy = tool.add(stored(run))
    assert copy.name == f"small-{run.id}.json"
    assert copy.stat().st_size < stored(run).stat().st_size / 2
    mine, *_ = tool.sources()
    assert len(mine.scores.scored) == 4 and mine.scores.unscored == ()
    text = tool.rendered(f"head\n{tool.BEGIN}old\n{tool.END}\ntail\n", [mine])
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text
    sealed = text[text.index("## Sealed") : text.index("## Held out")]
    assert "single stream" in sealed and f"### small, run {run.id}" in text
    document = json.loads(copy.read_text())
    copy.write_text(json.dumps(changed(document, *CHANGES["figure"]) and document))
    text = tool.rendered(f"{tool.BEGIN}{tool.END}", tool.sources()[:1])
    assert re.search(r"Not scored: .*single stream: the seal is broken", text)


def test_a_marked_run_is_not_scored(profile: Profile) -> None:
    run = replace(finished(profile), state=RunState.MARKED, note="compute1 was lost")
    found = score(run)
    assert found.scored == ()
    assert {each.reason for each in found.unscored} == {"the run is marked: compute1 was lost"}


def test_the_named_causes_are_kept_with_the_run(
    profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(finished(profile), profile, as_json=True)
    assert json.loads(capsys.readouterr().out)["state"] == "complete"
    shown = json.loads(CliRunner().invoke(show, ["last", "--json"]).stdout)
    kept = [(each["workload"], each["phase"], each["cause"]) for each in shown["run"]["causes"]]
    assert len(kept) == 4
    assert kept == [(each["workload"], each["phase"], each["cause"]) for each in shown["phases"]]
    assert len(shown["forecasts"]["phases"]) == 4  # no seal is broken by them


def test_an_answer_of_one_token_has_no_further_one(profile: Profile) -> None:
    run = finished(profile)
    first = replace(run.measured[0], tpot_s=exactly(0.0))
    found = score(replace(run, measured=(first,)))
    assert [each.phase for each in found.scored] == ["first token"]
