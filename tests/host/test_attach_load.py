"""Load on a cluster of strangers, and the verdict: an ordinary account, the wheel alone."""

from __future__ import annotations

import re

import pytest
from support.account import until
from support.strangers import FLAGS, Strangers, attach, left, loadable, names


def test_bench_of_it(cluster: Strangers, url: str) -> None:
    path = loadable(cluster, url, "--node", "box")
    words = ("--workload", "brief", "--workload", "steady")
    before = left(cluster)
    done = cluster.json("bench", "run", "--profile", path, *words)
    assert any(left(cluster) == before for _ in until(30)), (before, left(cluster))
    assert (done["state"], done["workloads"]) == ("complete", ["brief", "steady"])
    shown = cluster.json("bench", "show", "--profile", path)
    run = shown["run"]
    brief, steady = run["measured"]
    assert (brief["completed"], brief["failed"], steady["completed"]) == (6, 0, 6)
    # Two tokens came in each event; the endpoint's own count is what counts.
    seconds = sum(window["end"] - window["start"] for window in brief["windows"])
    assert 0.5 < brief["output_tokens_per_s"]["median"] * seconds / (6 * 41) < 2
    series = {(each["node"], each["name"]) for each in run["series"]}
    assert {("box", "processors"), ("endpoint", "vLLM num_requests_running")} <= series
    assert run["provenance"]["machine"] == "existing"
    assert run["warnings"] == []
    assert [each["workload"]["name"] for each in run["forecasts"]] == ["brief", "steady"]
    for each in run["forecasts"]:
        assert each["reason"] == "the engine was not measured. Run: orchestrate probe --only engine"
        assert re.fullmatch("[0-9a-f]{64}", each["seal"])
    none = cluster.ask("bench", "accuracy", "--profile", path)
    assert none.returncode == 0, none.stderr
    assert "can be scored yet. Run: orchestrate probe; orchestrate bench run" in none.stdout
    assert "brief, steady: the engine was not measured" in none.stderr
    again = cluster.json("bench", "run", "--profile", path, *words)
    compared = cluster.json("bench", "compare", "--profile", path, run["id"], again["id"])
    assert {each["workload"] for each in compared["changes"]} == {"brief", "steady"}
    assert len(cluster.json("bench", "ls", "--profile", path)) == 2
    report = cluster.ask("bench", "report", "--profile", path, "--out", "report.html")
    assert report.returncode == 0, report.stderr
    assert "KV cache is full" in cluster.run("cat", "report.html").stdout


#: What goes wrong while it is loaded, and what is said of it.
UNDER_LOAD = {
    "refuses": r"gave no figures: .*HTTP 404: .*\\x1b\[2J no such model",
    "endless": "gave no figures",
    "restarts": "this run is marked: vLLM restarted",
}


@pytest.mark.parametrize("fault", UNDER_LOAD)
def test_faults_under_load_are_one_message(cluster: Strangers, fault: str) -> None:
    with cluster.serving(*FLAGS, "--fault", fault) as url:
        path = loadable(cluster, url)
        done = cluster.ask("bench", "run", "--profile", path, "--workload", "brief")
    assert done.returncode == 1, done.stdout
    told = cluster.json("bench", "accuracy", "--profile", path)
    assert "\x1b" not in done.stdout + done.stderr
    assert re.search(UNDER_LOAD[fault], done.stderr), done.stderr
    assert told["phases"] == []
    assert [each["workload"] for each in told["not_scored"]] == ["brief"]  # counted, not scored


def test_a_router_without_tokenize_gets_tokens_that_nearly_all_models_have(
    cluster: Strangers,
) -> None:
    with cluster.serving(*FLAGS, "--fault", "router") as url:
        path = loadable(cluster, url)
        done = cluster.ask("bench", "run", "--profile", path, "--workload", "brief")
        run = cluster.json("bench", "show", "--profile", path)["run"]
    assert done.returncode == 0, done.stderr
    assert (run["warnings"], run["measured"][0]["engine"]) == ([], {})


def test_probe_of_links_and_what_it_cannot(cluster: Strangers, url: str) -> None:
    """One machine under two names: one by SSH, one without."""
    found, text = attach(cluster, url, "--node", "box", "--node", "localhost")
    path = str(found["profile"])
    lines = [line for line in text.splitlines() if not line.strip().startswith("address:")]
    text = "\n".join(lines).replace("    ranks:", "    address: 127.0.0.1\n    ranks:")
    cluster.machine.sh('printf %s "$2" >"$1"', path, text + "\n")
    before = left(cluster)
    done = cluster.json("probe", "--profile", path, "--force")
    assert any(left(cluster) == before for _ in until(30)), (before, left(cluster))
    (link,) = done["links"]
    assert link["bytes_per_s"]["median"] > 1e6
    failed = {(each["probe"], each["where"]): each["reason"] for each in done["failed"]}
    assert set(failed) == {("device", "box"), ("device", "localhost"), ("collective", "cluster")}
    assert failed["device", "box"] == "box: the Python of vLLM is not known"
    busy = cluster.ask("probe", "--profile", path)
    assert "the model is answering 13 requests" in busy.stderr
    storage = cluster.ask("probe", "--profile", path, "--only", "storage")
    assert "--only storage is for clusters that orchestrate runs" in storage.stderr


def test_a_cluster_that_fails_its_checks_is_not_measured(cluster: Strangers) -> None:
    with cluster.serving(*FLAGS, "--fault", "unsteady") as url:
        path = loadable(cluster, url)
        done = cluster.ask("bench", "run", "--profile", path, "--workload", "brief")
        refused = cluster.ask("bench", "run", "--profile", path, "--against-one-node")
    assert done.returncode == 1 and "same answer again" in done.stderr
    assert "--against-one-node is for clusters that orchestrate runs" in refused.stderr


def test_doctor_in_one_page(cluster: Strangers, url: str) -> None:
    name = next(names)
    done = cluster.ask("doctor", url, "--node", "box", "--name", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) < 60
    for text in ("served/it", "checks passed", "single stream", "the KV cache is full (sure)"):
        assert text in done.stdout, text
    path = re.findall(r"orchestrate verify --profile (\S+)", done.stdout)[0]
    assert cluster.run("stat", "-c", "%a", path.rpartition("/")[0]).stdout == "700\n"
    assert cluster.ask("verify", "--profile", path).returncode == 0
    found = cluster.json("doctor", url, "--node", "box", "--name", name)
    assert found["ok"] and "the KV cache is full" in {each["what"] for each in found["findings"]}


def test_doctor_of_a_cluster_that_is_wrong_says_what_and_still_measures(
    cluster: Strangers,
) -> None:
    with cluster.serving(*FLAGS, "--fault", "wrong") as url:
        done = cluster.ask("doctor", url)
    assert done.returncode == 1
    assert "FAILED: endpoint: answer: What is the capital of France?" in done.stdout
    assert "single stream" in done.stdout


def test_a_read_only_home_keeps_nothing_and_says_so(cluster: Strangers, url: str) -> None:
    done = cluster.ask("doctor", url, ORCHESTRATE_STATE="/proc/state")
    assert done.returncode == 0, done.stderr
    assert "warning: nothing is kept: /proc/state" in done.stderr
    assert "--profile" not in done.stdout
    assert cluster.machine.sh("ls -d /tmp/orchestrate-doctor-* 2>/dev/null || true") == ""


def test_a_run_after_the_engines_probe_has_forecasts_that_are_scored(cluster: Strangers) -> None:
    with cluster.serving(*FLAGS, "--max-num-seqs", "4") as url:
        path = loadable(cluster, url, "--node", "box")
        words = ("--only", "engine", "--force", "--seconds", "30")
        probed = cluster.ask("probe", "--profile", path, *words)
        assert probed.returncode == 0, probed.stderr
        loads = ("--workload", "brief", "--workload", "steady")
        run = cluster.json("bench", "run", "--profile", path, *loads)
    told = cluster.json("bench", "accuracy", "--profile", path)
    assert told["not_scored"] == []
    assert {(each["workload"], each["phase"]) for each in told["phases"]} == {
        (load, phase) for load in ("brief", "steady") for phase in ("first token", "further token")
    }
    assert {each["origin"] for each in told["phases"]} == {"measured here"}
    assert {each["run"] for each in told["phases"]} == {run["id"]}
    shown = cluster.ask("bench", "show", "--profile", path)
    assert "forecast before it was measured:" in shown.stdout
