"""--kv-cache-dtype: half the cache is read and held wherever a profile's model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from support.predict import MISTRAL, ONE, device, exactly, probes
from support.profiles import PROFILE, make_checkout
from support.report import measured, story

from orchestrator.core import paths
from orchestrator.models.flags import number_formats
from orchestrator.models.profiles import load
from orchestrator.performance.bench.basis import basis
from orchestrator.performance.bench.history import Earlier
from orchestrator.performance.predict import inputs
from orchestrator.performance.predict.forecast import asked, rank_all
from orchestrator.performance.report.attribute import story as explained
from orchestrator.performance.results.bench import Run
from orchestrator.performance.results.probe import Probes
from orchestrator.profile.model import Profile

ARGS = "args: {dtype: half, max-model-len: 4096, max-num-seqs: 8"
LONG = 3500


@pytest.fixture(params=["kv-cache-dtype", "kv_cache_dtype"])
def both(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Profile, Profile]:
    """A profile without the flag, and with it."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    found = []
    for name, more in (("own", ""), ("fp8", f", {request.param}: fp8")):
        checkout = tmp_path / name
        checkout.mkdir()
        monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(checkout))
        text = PROFILE.replace("args: {dtype: half}", f"{ARGS}{more}}}")
        found.append(load(make_checkout(checkout, text)))
    return found[0], found[1]


#: Cards whose memory decides how long a token takes.
RATES = {"matrix_flops_per_s": {"float16": exactly(1e15)}, "memory_total_bytes": 10**11}
SEEN = probes(devices=tuple(device(node, 400e9, **RATES) for node in ("left", "right")))


def run() -> Run:
    """Long prompts, one at a time and several at once."""
    slow = exactly(1.0)
    return replace(
        story().run,
        measured=tuple(
            replace(
                each,
                workload=replace(each.workload, prompt_tokens=LONG),
                ttft_s=slow,
                tpot_s=slow,
            )
            for each in (measured(n, n) for n in (1, 2, 4, 8))
        ),
    )


def test_the_flags_values_however_they_are_written() -> None:
    assert number_formats({}) == ("auto", "auto")
    assert number_formats({"kv_cache_dtype": "fp8", "dtype": "half"}) == ("half", "fp8")


def test_forecasts(both: tuple[Profile, Profile]) -> None:
    own, fp8 = (rank_all(asked(each, MISTRAL, ONE, SEEN)).ranked[0].fit for each in both)
    assert fp8.cache_bytes_per_sequence == own.cache_bytes_per_sequence / 2 > 0


def test_sealed_forecasts(both: tuple[Profile, Profile]) -> None:
    sizes = []
    for profile in both:
        folder = paths.measured(profile.name) / inputs.PROBES
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probe.json").write_bytes(TypeAdapter(Probes).dump_json(SEEN))
        known = basis(profile, story().run.provenance, ONE, MISTRAL).known
        assert known is not None and known.shape is not None
        sizes.append(known.shape.kv_bytes_per_token())
    assert sizes[1] == sizes[0] / 2 > 0


def test_reports(both: tuple[Profile, Profile]) -> None:
    own, fp8 = (
        next(
            phase.parts["memory"]
            for phase in explained(run(), each, MISTRAL, ONE, SEEN, (), Earlier()).phases
            if phase.name == "decode"
        )
        for each in both
    )
    token = 2 * 56 * 8 * 128 * 2
    assert own - fp8 == pytest.approx(token / 2 * LONG / 400e9, rel=0.05)
