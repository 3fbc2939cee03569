"""A cluster that others run, with the image's own vLLM on the processor: two ranks, as an ordinary
user, asked without anything of ours on its side."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import PROJECT
from support.flake import built

from orchestrator.core.waiting import as_long_as
from orchestrator.models import catalog

pytestmark = pytest.mark.nix

MODEL, SECRET = "known-answers", "sk-very-secret"
VENV = "/opt/venvs/orchestrate"
UID = 1000
#: As in profiles/sim.yml: no compiler in the image, little memory, cores that are shared.
ENV = {
    "PATH": f"{VENV}/bin:/usr/sbin:/usr/bin",
    "HOME": "/home/owner",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_API_KEY": SECRET,
}
FLAGS = (
    *("--tensor-parallel-size", "2", "--dtype", "bfloat16", "--max-model-len", "256"),
    *("--max-num-seqs", "8", "--enforce-eager"),
)
#: Seconds for vLLM to load, on few and busy cores.
PATIENCE = 900.0
BRIEF = """
bench:
  repeats: 2
  workloads:
    brief: { prompt_tokens: 32, output_tokens: 16, requests: 4, concurrency: 2 }
    endless: { prompt_tokens: 32, output_tokens: 200, requests: 500, concurrency: 2 }
"""


@dataclass
class Cluster:
    """The server's URL and process, and where ``orchestrate`` keeps things."""

    url: str
    server: subprocess.Popen[bytes]
    home: Path
    root: Path

    def argv(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "orchestrator", *map(str, words)]

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"ORCHESTRATE_STATE": str(self.home / "state"), "K": SECRET}

    def ask(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), env=self.env, cwd=PROJECT, capture_output=True, text=True,
            timeout=900, check=False,
        )  # fmt: skip

    def json(self, *words: str | Path) -> dict[str, Any]:
        done = self.ask(*words, "--json")
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def attach(self, name: str, *more: str) -> tuple[dict[str, Any], Path]:
        """What was found, and the profile with the brief loads."""
        path = self.home / f"{name}.yml"
        words = ("--name", name, "--node", "localhost", "--key-env", "K", *more)
        found = self.json("attach", self.url, *words, "--out", path)
        path.write_text(path.read_text() + BRIEF)
        return found, path


@contextmanager
def serving(root: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """vLLM, as a user of the image; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["vllm", "serve", "/home/model", "--served-model-name", MODEL, *FLAGS]
    words += ["--host", "127.0.0.1", "--port", port]
    argv = ["chroot", f"--userspec={UID}:{UID}", str(root), f"{VENV}/bin/python"]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*argv, f"{VENV}/bin/{words[0]}", *words[1:]], env=ENV, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def cluster(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("attach")
    for name in ("owner", "model"):
        (root / "home" / name).mkdir()
    os.chown(root / "home/owner", UID, UID)
    model = built(f"{PROJECT}#models.{MODEL}", home / "model")
    subprocess.run(["cp", "-rLT", model, root / "home/model"], check=True)
    with serving(root, home / "log") as (url, server):

        def loads() -> bool:
            assert server.poll() is None, (home / "log").read_text()[-4000:]
            address = (url.rpartition("/")[2].split(":")[0], int(url.rpartition(":")[2]))
            try:
                with socket.create_connection(address, 5):
                    return False
            except OSError:
                return True

        assert not as_long_as(loads, PATIENCE, 1.0), (home / "log").read_text()[-4000:]
        yield Cluster(url, server, home, root)


def test_attach_finds_the_ranks_the_flags_and_the_versions(cluster: Cluster) -> None:
    found, path = cluster.attach("found")
    profile = yaml.safe_load(path.read_text())
    assert profile["nodes"][0]["ranks"] == 2
    serving = profile["serving"]
    assert (serving["model"], serving["tensor_parallel"]) == (MODEL, 2)
    assert serving["args"] == {
        "dtype": "bfloat16", "max-model-len": 256, "max-num-seqs": 8, "enforce-eager": True,
    }  # fmt: skip
    (node,) = found["nodes"]
    assert [title.rpartition("_")[2] for title in node["ranks"]] == ["TP0", "TP1"]
    assert found["said"]["version"] == node["versions"]["vllm"].partition("+")[0]
    assert node["versions"]["torch"].endswith("+cpu")
    assert SECRET not in json.dumps(found) + path.read_text()
    assert [each for each in found["unknown"] if "hidepid" not in each] == []


def test_verify_by_known_answers(cluster: Cluster) -> None:
    _, path = cluster.attach("verified")
    text = path.read_text().partition("  # Questions")[0] + "  prompts:\n"
    for each in catalog.find(MODEL).answers:
        text += f"    - {json.dumps({'question': each.question, 'contains': each.answer})}\n"
    path.write_text(text)
    report = cluster.json("verify", "--profile", path)
    assert report["ok"], report
    assert sum(check["name"].startswith("answer: ") for check in report["checks"]) >= 5
    path.write_text(text.replace("Paris is", "Rome is"))
    report = cluster.json("verify", "--profile", path)
    failed = [check["name"] for check in report["checks"] if not check["ok"]]
    assert failed == ["answer: What is the capital of France?"]


def test_a_container_is_entered(cluster: Cluster) -> None:
    """Its own root, as a container has one; vLLM's own Python there runs what is asked."""
    enter = f"chroot {cluster.root}"
    found, path = cluster.attach("entered", "--enter", enter, "--python", f"{VENV}/bin/python")
    assert found["nodes"][0]["facts"]["python"]
    assert cluster.json("status", "--profile", path)["nodes"][0]["ranks"] == 2


def test_probe_measures_with_the_engines_torch(cluster: Cluster) -> None:
    """Two nodes, which are both this machine: the device, TCP, and the ranks' collective."""
    enter = f"chroot {cluster.root}"
    _, path = cluster.attach("probed", "--enter", enter, "--python", f"{VENV}/bin/python")
    document = yaml.safe_load(path.read_text())
    (node,) = document["nodes"]
    assert node["engine"] == f"{VENV}/bin/python3"
    document["nodes"] = [node | {"name": name, "address": "127.0.0.1"} for name in ("a", "b")]
    path.write_text(yaml.safe_dump(document))
    found = cluster.json("probe", "--profile", path)
    assert found["failed"] == []
    assert [each["node"] for each in found["devices"]] == ["a", "b"]
    assert found["devices"][0]["device"] == "cpu"
    assert found["devices"][0]["memory_bytes_per_s"]["median"] > 1e8
    (link,) = found["links"]
    assert link["bytes_per_s"]["median"] > 1e6 and 0 < link["latency_s"]["median"] < 1
    (group,) = found["collectives"]
    assert group["backend"] == "gloo" and group["all_reduce_s"]


def test_bench_measures_and_vllms_own_clocks_are_read(cluster: Cluster) -> None:
    _, path = cluster.attach("measured")
    done = cluster.json("bench", "run", "--profile", path, "--workload", "brief")
    assert done["state"] == "complete"
    shown = cluster.json("bench", "show", "--profile", path)
    (brief,) = shown["run"]["measured"]
    assert (brief["completed"], brief["failed"]) == (8, 0)
    assert brief["engine"]["generation_tokens_total"] >= 8 * 16
    assert set(shown["engine_s"]["brief"]) == {"queue", "prefill", "decode"}
    assert shown["run"]["warnings"] == []


def test_the_engine_that_serves_is_measured(cluster: Cluster) -> None:
    _, path = cluster.attach("served")
    words = ("probe", "--profile", path, "--only", "engine", "--force", "--seconds", "60")
    found = cluster.json(*words)
    assert (found["weights"], found["tensor"], found["known"]) == ("own", 2, False)
    assert found["kv_tokens"] > 256 and found["versions"]["vllm"]
    # How many loads fit into a minute is the machine's.
    assert 1 in {each["concurrency"] for each in found["cells"]} <= {1, 2, 4, 8}
    assert all(each["ttft_s"]["n"] >= 3 and each["tpot_s"]["low"] > 0 for each in found["cells"])
    again = cluster.json("probe", "--profile", path, "--only", "engine")
    assert again["known"] and again["cells"] == found["cells"]


def test_doctor_gives_a_verdict(cluster: Cluster) -> None:
    words = ("--node", "localhost", "--key-env", "K", "--name", "doctor")
    found = cluster.json("doctor", cluster.url, *words)
    assert found["ok"] and found["run"], found
    assert SECRET not in json.dumps(found)
    saved = cluster.home / "state/clusters/doctor"
    assert SECRET not in "".join(p.read_text() for p in saved.rglob("*") if p.is_file())


def test_a_server_that_ends_during_a_load_is_one_message(cluster: Cluster) -> None:
    """The last test: it ends the server."""
    _, path = cluster.attach("ended")
    argv = cluster.argv("bench", "run", "--profile", path, "--workload", "endless")
    run = subprocess.Popen(argv, env=cluster.env, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    begun = next(line for line in run.stderr if "endless" in line)
    cluster.server.terminate()
    said = run.stderr.read()
    run.stderr.close()
    assert run.wait(300) == 1, begun + said
    assert re.search("gave no figures|vLLM restarted", said), said
    assert "Traceback" not in said
