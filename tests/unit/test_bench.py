"""Loads, samples and history: all that is pure of `orchestrate bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.report import measured as made
from support.report import story

from orchestrator.core.errors import BadInput
from orchestrator.models.profiles import load as load_profile
from orchestrator.performance import metrics
from orchestrator.performance.bench import history, load
from orchestrator.performance.bench.load import (
    RESULT,
    check,
    command,
    counters,
    differences,
    workloads,
)
from orchestrator.performance.bench.run import moved
from orchestrator.performance.bench.sample import series
from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.load import Limits
from orchestrator.performance.report.attribute import evidence
from orchestrator.performance.report.attribute import story as explained
from orchestrator.performance.results.bench import Run, RunState, Series, Window, Workload
from orchestrator.performance.results.probe import Spread
from orchestrator.profile import Profile

PROJECT = Path(__file__).resolve().parents[2]
SINGLE = Workload("single stream", 64, 32, 4, 1)


@pytest.fixture
def profile() -> Profile:
    return load_profile(PROJECT / "profiles/sim.yml")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    return story().run


# Loads.


def test_loads_fit_into_the_profiles_limits(profile: Profile) -> None:
    found = workloads(profile)
    assert found
    for each in found:
        check(each, profile)
        assert each.prompt_tokens + each.output_tokens <= 256
    assert found[0].concurrency == 1
    assert max(each.concurrency or 0 for each in found) == 8
    assert len({each.name for each in found}) == len(found)


WRONG = {
    "no requests": replace(SINGLE, requests=0),
    "more than anybody": replace(SINGLE, requests=10**9),
    "no prompt": replace(SINGLE, prompt_tokens=0),
    "nobody at once": replace(SINGLE, concurrency=0),
    "absurd rate": replace(SINGLE, concurrency=None, rate=1e9),
    "no rate": replace(SINGLE, concurrency=None, rate=0.0),
    "too long": replace(SINGLE, prompt_tokens=250),
}


@pytest.mark.parametrize("workload", WRONG.values(), ids=WRONG)
def test_a_load_that_cannot_be_is_refused(profile: Profile, workload: Workload) -> None:
    with pytest.raises(BadInput, match="single stream"):
        check(workload, profile)


def test_the_key_is_on_no_command_line(profile: Profile) -> None:
    argv = command(profile, SINGLE, "http://x:1", repeats=3, seed=7, targets_ms={"ttft": 500})
    assert "KEY=" not in " ".join(argv) and "read -r OPENAI_API_KEY" in argv[2]
    assert argv[argv.index("--num-prompts") + 1] == "12"
    assert argv[argv.index("--goodput") + 1] == "ttft:500"
    assert f"{argv[argv.index('--result-dir') + 1]}/{argv[-1]}" == RESULT


def result(starts: list[float], errors: dict[int, str] | None = None) -> str:
    """As `vllm bench serve --save-detailed` writes it: first token 0.1 s, then 3 gaps of 20 ms."""
    return json.dumps(
        {
            "start_times": starts,
            "ttfts": [0.1] * len(starts),
            "itls": [[0.02] * 3] * len(starts),
            "errors": [(errors or {}).get(number, "") for number in range(len(starts))],
        }
    )


def test_a_result_is_told_apart_into_repeats() -> None:
    found = load.measured(result([0.0, 1.0, 10.0, 11.0]), SINGLE, 2, 1000.0, {}, {"ttft": 50})
    assert found.ttft_s == Spread(0.1, 0.1, 0.1, 2)
    assert found.tpot_s.median == pytest.approx(0.02)
    assert found.windows[0].start == 1000.0
    assert found.windows[1].end == pytest.approx(1011.16)
    # Four tokens each, two requests in 1.16 s.
    assert found.output_tokens_per_s.median == pytest.approx(8 / 1.16)
    assert found.goodput_per_s == Spread(0.0, 0.0, 0.0, 2)  # none within 50 ms


def test_failed_requests_are_counted_and_none_answered_is_no_figure() -> None:
    found = load.measured(result([0.0, 1.0, 2.0], {1: "HTTP 500"}), SINGLE, 2, 0.0, {}, {})
    assert (found.completed, found.failed) == (2, 1)
    with pytest.raises(ValueError, match="0 of 1 requests were answered"):
        load.measured(result([0.0], {0: "refused"}), SINGLE, 1, 0.0, {}, {})


def test_counters_are_added_over_engines_and_differences_taken() -> None:
    page = (
        "# HELP vllm:prompt_tokens_total x\n"
        'vllm:prompt_tokens_total{engine="0"} 5.0\nvllm:prompt_tokens_total{engine="1"} 2.0\n'
        'vllm:request_queue_time_seconds_sum{engine="0"} 0.5\nvllm:num_requests_running 3.0\n'
        "python_gc_objects_collected_total 9.0\n"
    )
    found = counters(page)
    assert found == {"prompt_tokens_total": 7.0, "request_queue_time_seconds_sum": 0.5}
    assert differences({"prompt_tokens_total": 3.0}, found) == {
        "prompt_tokens_total": 4.0, "request_queue_time_seconds_sum": 0.5,
    }  # fmt: skip


def test_metrics_are_read_with_and_without_labels_and_bars_are_left_out() -> None:
    page = (
        "# HELP vllm:num_requests_running n\n"
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        'vllm:e2e_bucket{le="1"} 4\nvllm:e2e_sum 2.5\nprocess_cpu_seconds_total 7\n'
    )
    assert metrics.values(page) == {"num_requests_running": 3.0, "e2e_sum": 2.5}


def test_rates_are_shares_of_the_most_that_was_served() -> None:
    swept = [replace(made(n, n), workload=Workload(f"{n} at once", 8, 8, 4, n)) for n in (2, 4)]
    best = swept[1].requests_per_s.median
    assert [each.rate for each in load.rate_workloads(swept)] == pytest.approx(
        [best * share for share in load.RATE_SHARES], rel=1e-3
    )
    assert load.rate_workloads([]) == []


OWN = """bench:
  targets: { ttft_ms: 500, tpot_ms: 50 }
  workloads:
    chat: { prompt_tokens: 100, output_tokens: 20, requests: 8, rate: 2 }
    single stream: { prompt_tokens: 10, output_tokens: 10, requests: 2, concurrency: 1 }
"""


def with_bench(home: Path, text: str) -> Profile:
    file = home / "own.yml"
    file.write_text((PROJECT / "profiles/sim.yml").read_text() + text)
    return load_profile(file)


def test_a_profile_has_loads_and_targets_of_its_own(tmp_path: Path) -> None:
    profile = with_bench(tmp_path, OWN.replace("single stream", "decode-heavy"))
    found = {each.name: each for each in workloads(profile)}
    assert found["chat"] == Workload("chat", 100, 20, 8, None, 2)
    assert found["decode-heavy"].prompt_tokens == 10  # in place of the one of that name
    assert load.targets(profile) == {"ttft": 500, "tpot": 50}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("rate: 2", "rate: 2, concurrency: 2"), "needs either concurrency or rate"),
        ((", rate: 2", ""), "needs either concurrency or rate"),
        (("output_tokens: 20", "output_tokens: 200"), "100 + 200 tokens do not fit"),
        (("requests: 8", "requests: 0"), "requests"),
        (("ttft_ms: 500", "ttft_ms: -1"), "ttft_ms"),
    ],
)
def test_a_load_of_a_profile_that_cannot_be_is_refused(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    with pytest.raises(BadInput, match=r"own\.yml") as refused:
        with_bench(tmp_path, OWN.replace("single stream", "decode-heavy").replace(*change))
    assert said in str(refused.value)


def test_the_engines_own_times_are_means_over_requests() -> None:
    counted = {"request_decode_time_seconds_sum": 6.0, "request_decode_time_seconds_count": 4.0}
    assert load.engine_times(counted) == {"decode": 1.5}


# Samples.


def test_a_sampler_says_a_line_and_ends_with_its_input() -> None:
    program = PROJECT / "orchestrator/performance/bench/sampler.py"
    done = subprocess.run(
        [sys.executable, "-I", "-S", program, "", "nosuch.service"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    (said,) = map(json.loads, done.stdout.splitlines())
    assert said["cpu"]["all"] > said["cpu"]["busy"] > 0 and said["memory"] > 0
    assert said["gauges"] == {} and "lo" not in said["net"]


def test_energy_is_told_as_power_and_idle_time_as_work() -> None:
    energies, idle = (50.0, 350.0), (9.0, 9.5)
    lines = [
        line(100.0 + 2 * number, 0, 0, counters={"J of card": energy, "s GPU idle of card": rest})
        for number, (energy, rest) in enumerate(zip(energies, idle, strict=True))
    ]
    found = {(each.name, each.unit): each.values for each in series({"a": lines}, {})}
    assert found["card", "W"] == pytest.approx((150.0,))
    assert found["card", "% GPU busy"] == pytest.approx((75.0,))


def test_a_quota_is_told_by_the_periods_that_it_cut() -> None:
    counted = [{"used": 0.0, "nr_periods": n, "nr_throttled": cut} for n, cut in ((10, 0), (20, 4))]
    lines = [line(100.0 + n, 0, 0, group=each) for n, each in enumerate(counted)]
    found = {each.name: each.values for each in series({"a": lines}, {})}
    assert found["quota"] == pytest.approx((40.0,)) and "own processors" not in found


def test_a_clock_that_moved_meanwhile_is_said() -> None:
    (said,) = moved({"a": 0.1, "b": 0.0}, {"a": 0.2, "b": -2.0})
    assert said == "the clock of b moved by -2.00 s: its series may be off by that"


def line(time: float, busy: float, sent: int, **more: object) -> dict[str, object]:
    return {
        "time": time, "at": time, "cpu": {"busy": busy, "all": 2 * time}, "group": {},
        "stalled": 0.0, "net": {"eth0": [sent, 0]}, "memory": 1.0, "hardware": {}, "counters": {},
        "gauges": {}, **more,
    }  # fmt: skip


def test_samples_become_series_on_the_control_nodes_clock() -> None:
    lines = {"a": [line(100.0, 10.0, 0), line(101.0, 11.0, 500), line(102.0, 11.0, 500)]}
    found = {each.name: each for each in series(lines, {"a": 5.0})}
    assert found["processors"].times == (96.0, 97.0)
    assert found["processors"].values == pytest.approx((50.0, 0.0))
    assert found["eth0 sent"].values == pytest.approx((500.0, 0.0))
    assert series({"a": [line(1.0, 0.0, 0)]}, {}) == ()


def test_evidence_is_of_the_loads_own_seconds() -> None:
    """What a node did before and after is not its cause."""
    load_ = replace(made(1, 1), windows=(Window(10.0, 20.0),))
    found = evidence(
        load_,
        (
            Series("compute0", "processors", "%", (5.0, 15.0, 25.0), (0.0, 80.0, 0.0)),
            Series("compute0", "vLLM num_requests_running", "", (15.0,), (3.0,)),
            Series("compute0", "cluster0 sent", "", (15.0,), (117e6 / 2,)),
        ),
        Limits(sequences=8),
        story().probes,  # type: ignore[arg-type]
    )
    assert [node.busy for node in found.nodes] == [0.8]
    assert found.running == 3.0 and found.max_running == 8
    assert found.links and found.links["compute0 cluster0"] == pytest.approx(0.5)


# History.


def test_runs_are_kept_found_and_named(run: Run) -> None:
    history.store(run)
    history.store(replace(run, id="20261127T070000Z"))
    assert history.load("demo", "last").id == "20261127T070000Z"
    assert history.load("demo", "20261126") == run
    for name in ("2026", "x"):
        with pytest.raises(BadInput):
            history.load("demo", name)


def slower(run: Run, factor: float, **changed: Any) -> Run:
    """The same run a day later, each token so much slower."""
    first = run.measured[0]
    values = Spread(0.02 * factor, 0.019 * factor, 0.0205 * factor, 4)
    return replace(
        run,
        id="20261127T070000Z",
        provenance=replace(run.provenance, **changed),
        measured=(replace(first, tpot_s=values),),
    )


def test_a_regression_is_named_with_what_came_with_it(run: Run) -> None:
    before = replace(slower(run, 1.0), id=run.id)
    after = slower(run, 1.5, image_id="ef" * 32, profile_text="name: demo\nray: {port: 1}\n")
    told = history.regressions(before, after)
    assert "time per output token" in told[0] and "50% worse, significant" in told[0]
    assert "image cdcdcdcdcdcd to efefefefefef" in told[1] and "ray: {port: 1}" in told[1]
    assert history.regressions(after, before) == []


def test_two_repeats_show_nothing_and_small_changes_are_no_news(run: Run) -> None:
    few = [replace(slower(run, f), measured=(replace(run.measured[0], tpot_s=Spread(f, f, f, 2)),))
           for f in (1.0, 2.0)]  # fmt: skip
    near = (slower(run, 1.0), slower(run, 1.02))
    for two in (few, near):
        compared = history.changes(*two)
        assert compared and not any(each.significant for each in compared)


def test_repeats_that_overlap_are_no_regression(run: Run) -> None:
    def at(median: float, low: float, high: float) -> Run:
        values = Spread(median, low, high, 4)
        return replace(run, measured=(replace(run.measured[0], tpot_s=values),))

    before, noisy, apart = at(0.02, 0.018, 0.025), at(0.03, 0.024, 0.035), at(0.03, 0.026, 0.035)
    assert history.regressions(before, noisy) == []
    assert "50% worse, significant" in history.regressions(before, apart)[0]


def test_only_good_runs_of_the_same_layout_are_compared_with(run: Run) -> None:
    history.store(replace(run, id="1", state=RunState.COMPLETE))
    history.store(replace(run, id="2", state=RunState.MARKED))
    history.store(replace(run, id="3", provenance=replace(run.provenance, layout="tensor 1")))
    found = history.earlier("demo", replace(run, id="9")).good
    assert found is not None and found.id == "1"


def test_only_a_run_that_was_interrupted_goes_on_and_only_on_the_same_cluster(run: Run) -> None:
    begun = replace(run, state=RunState.INTERRUPTED, note="it was interrupted")
    assert history.goes_on(begun, begun).measured == run.measured
    with pytest.raises(BadInput, match="is complete"):
        history.goes_on(replace(run, state=RunState.COMPLETE), begun)
    other = replace(begun, provenance=replace(run.provenance, image_id="ef" * 32))
    with pytest.raises(BadInput, match="cannot be resumed: image"):
        history.goes_on(begun, other)


def test_a_report_begins_with_whether_clustering_helps(run: Run, profile: Profile) -> None:
    one = replace(run.provenance, layout="tensor 1, pipeline 1")
    alone = replace(run, id="1", state=RunState.COMPLETE, provenance=one)
    history.store(alone)
    history.store(replace(alone, id="2", provenance=replace(one, image_id="ef" * 32)))
    now = replace(run, id="3", provenance=replace(one, layout="tensor 2, pipeline 1"))
    found = history.earlier("demo", now)
    assert found.on_one_node == alone and history.earlier("demo", alone).on_one_node is None
    told = explained(now, profile, {}, Parallelism(2), None, (), found)
    assert told.verdict[0].startswith("Does clustering help? ")
    assert "tokens a second on one node" in told.verdict[0]


def test_does_clustering_help_is_answered_also_when_not(run: Run) -> None:
    def at(speed: float, repeats: int = 4) -> Run:
        values = Spread(speed, speed * 0.99, speed * 1.01, repeats)
        return replace(run, measured=(replace(run.measured[0], output_tokens_per_s=values),))

    (line_,) = history.clusters_help(at(60), at(40))
    assert "does not help" in line_ and "60" in line_ and "40" in line_
    assert "it helps" in history.clusters_help(at(40), at(60))[0]
    assert "no measurable difference" in history.clusters_help(at(40), at(40.1))[0]
    # A few repeats prove nothing, and five times less is not "no difference".
    (unsure,) = history.clusters_help(at(300, 2), at(60, 2))
    assert "it does not help, not significant with 2 and 2 repeats: 300" in unsure


def test_the_client_is_told_what_the_load_is(profile: Profile) -> None:
    argv = command(profile, SINGLE, "http://x:1", repeats=3, seed=7, targets_ms={})
    told = {word: argv[number + 1] for number, word in enumerate(argv[:-1])}
    wanted = {
        "--random-input-len": "64", "--random-output-len": "32", "--max-concurrency": "1",
        # Of all repeats, none of which has a prompt that was there before.
        "--num-prompts": "12", "--seed": "7", "--num-warmups": "1", "--request-rate": "inf",
    }  # fmt: skip
    assert {key: told.get(key) for key in wanted} == wanted
    assert "--ignore-eos" in argv and "--goodput" not in argv
    often = replace(SINGLE, concurrency=None, rate=2.5)
    argv = command(profile, often, "http://x:1", repeats=3, seed=8, targets_ms={})
    assert argv[argv.index("--request-rate") + 1] == "2.5" and "--max-concurrency" not in argv
    assert argv[argv.index("--num-warmups") + 1] == "2"


def test_one_slow_request_shifts_no_median_and_is_the_slowest_percent() -> None:
    ttfts = [0.1, 0.1, 0.1, 0.1, 0.9]
    text = json.dumps(
        {
            "start_times": [0.0, 1.0, 2.0, 3.0, 4.0],
            "ttfts": ttfts,
            "itls": [[0.02] * 3] * 4 + [[0.5] * 3],
            "errors": [""] * 5,
        }
    )
    found = load.measured(text, SINGLE, 1, 0.0, {}, {"ttft": 200, "tpot": 30})
    assert (found.ttft_s.median, found.ttft_p99_s.median) == (0.1, 0.9)
    assert found.tpot_s.median == pytest.approx(0.02)
    assert found.tpot_p99_s.median == pytest.approx(0.5)
    seconds = 4.0 + 0.9 + 1.5
    assert found.goodput_per_s is not None
    assert found.goodput_per_s.median == pytest.approx(4 / seconds)


def test_a_clock_that_was_set_forward_is_said_too() -> None:
    assert len(moved({"a": 0.0}, {"a": 2.0})) == 1 == len(moved({"a": 0.0}, {"a": -2.0}))
