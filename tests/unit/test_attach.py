"""What `attach` makes of what a cluster says: flags, ranks, accelerators, and the profile."""

from __future__ import annotations

import ast
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some
from support.recorded import ACCELERATORS, laid_out

from orchestrator.attach import collectives, compose, node_facts, node_hardware, node_log
from orchestrator.attach.endpoint import EndpointFacts
from orchestrator.attach.facts import (
    Address,
    EngineLog,
    EngineProcess,
    MachineFacts,
    RdmaPort,
    apart,
    of_model,
    of_ranks,
)
from orchestrator.attach.find import ClusterFound, NodeFound
from orchestrator.attach.flags import flags
from orchestrator.attach.reach import own_text, source
from orchestrator.core.document import DocumentError
from orchestrator.core.visible import visible
from orchestrator.performance.bench.accelerators import TABLES
from orchestrator.profile.existing import AttachedNode, Endpoint
from orchestrator.profile.load import NotOurs, load, load_attached

PROCESSES = sorted(Path("tests/data/recorded/processes").absolute().glob("*.yml"))
PYTHON = "/opt/vllm/bin/python3"


@pytest.mark.parametrize(
    ("words", "model", "given"),
    [
        ("/opt/bin/vllm serve a/b -tp 2", "a/b", {"tensor-parallel-size": 2}),
        (
            "python3 -m vllm.entrypoints.openai.api_server --model m --pipeline_parallel_size=2",
            "m",
            {"model": "m", "pipeline-parallel-size": 2},
        ),
        ("vllm serve --enforce-eager m", "m", {"enforce-eager": True}),
        (
            "vllm serve m --no-enable-prefix-caching --seed -1",
            "m",
            {"enable-prefix-caching": False, "seed": -1},
        ),
        (
            "vllm serve m --served-model-name a b --gpu-memory-utilization 0.85",
            "m",
            {"served-model-name": "a b", "gpu-memory-utilization": 0.85},
        ),
        (
            'vllm serve m -sc {"method":"ngram"} --headless',
            "m",
            {"speculative-config": '{"method":"ngram"}', "headless": True},
        ),
        ("vllm serve", "", {}),
    ],
)
def test_flags_of_a_server(words: str, model: str, given: dict[str, Any]) -> None:
    found = flags([PYTHON, *words.split()] if words.startswith("/") else words.split())
    assert found is not None
    assert (found.model, found.given) == (model, given)


@pytest.mark.parametrize("words", ["vllm bench serve --model m", "vim serve", "VLLM::EngineCore"])
def test_what_is_no_server(words: str) -> None:
    assert flags(words.split()) is None


def test_what_says_where_and_for_whom_is_not_in_a_profile() -> None:
    words = (
        "vllm serve m --host 0.0.0.0 --port 1 --api-key *** --ssl-keyfile k --dtype half "
        "--tensor-parallel-size 2 --master-addr a --node-rank 1"
    )
    found = flags(words.split())
    assert found is not None and found.speed == {"dtype": "half"}


def engine(*argv: str, pid: int = 1, parents: list[int] | None = None) -> EngineProcess:
    return EngineProcess(pid, parents or [], "u", list(argv), "", {}, None, PYTHON)


def node_facts_of(*engines: EngineProcess, **more: Any) -> MachineFacts:
    return MachineFacts(0.0, "host", "u", "6.1", "3.11", 8, 1 << 34, [], [], [], list(engines), [],
                     **more)  # fmt: skip


@pytest.mark.parametrize("path", PROCESSES, ids=lambda path: path.stem)
def test_recorded_processes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks by kind of parallelism, from /proc as the very program reads it."""
    case = yaml.safe_load(path.read_text())
    monkeypatch.setattr(node_facts, "ROOT", tmp_path)
    for pid, parent, words in case["processes"]:
        place = tmp_path / f"proc/{pid}"
        place.mkdir(parents=True)
        # A title that a process gave itself is one word.
        argv = [words] if "::" in words else words.split()
        (place / "cmdline").write_text("\0".join(argv) + "\0")
        (place / "stat").write_text(f"{pid} (a) b) S {parent} 1 1")
    engines, _ = node_facts.processes()
    facts = of_model(node_facts_of(*(EngineProcess(**each) for each in engines)), "m", case["port"])
    assert facts.ranks == case["ranks"]
    (made, *_) = [each.flags for each in facts.servers if each.flags]
    assert [made.tensor, made.pipeline, made.data] == case["layout"]


def test_ranks_are_workers_or_the_engine_alone() -> None:
    server, core = engine("vllm", "serve", "m"), engine("VLLM::EngineCore")
    assert node_facts_of(server, core).ranks == ["VLLM::EngineCore"]
    workers = [engine(f"VLLM::Worker_TP{rank}") for rank in range(2)]
    assert node_facts_of(server, core, *workers).ranks == ["VLLM::Worker_TP0", "VLLM::Worker_TP1"]
    assert node_facts_of(engine("ray::RayWorkerWrapper.execute_method")).ranks
    assert node_facts_of(engine("vllm", "bench")).ranks == []


def test_ranks_of_another_model_on_the_same_machine_do_not_count() -> None:
    mine = engine("vllm", "serve", "a", pid=10)
    facts = node_facts_of(
        mine,
        engine("VLLM::Worker_TP0", pid=12, parents=[11, 10]),
        engine("vllm", "serve", "b", pid=20),
        engine("VLLM::Worker_TP0", pid=22, parents=[20]),
        engine("ray::RayWorkerProc.run", pid=30),
    )
    assert [each.pid for each in of_model(facts, "a", 8000).engines] == [10, 12]
    again = replace(
        facts, engines=[*facts.engines, engine("vllm", "serve", "a", "--port", "9", pid=40)]
    )
    assert [each.pid for each in of_model(again, "a", 9).engines] == [40, 30]
    assert [each.pid for each in of_model(again, "a", 80).engines] == [10, 12, 40]
    assert of_model(facts, "c", 8000) == facts  # on a node without its server: Ray's, or all
    by_ray = node_facts_of(mine, engine("ray::RayWorkerProc.run", pid=30))
    assert of_model(by_ray, "a", 80) == by_ray


def test_the_ranks_address_is_what_the_engine_was_told_else_the_fastest() -> None:
    slow = Address("eth0", "10.0.0.1", 1000, 1500, "")
    fast = Address("eth1", "10.1.0.1", 10000, 1500, "")
    none = node_facts_of(engine("vllm", "serve", "m"))
    links = replace(none, addresses=[slow, fast])

    def told(**env: str) -> str:
        return of_ranks(replace(links, engines=[replace(engine("vllm"), env=env)]))

    assert (of_ranks(none), of_ranks(links)) == ("", "10.1.0.1")
    assert told(VLLM_HOST_IP="10.0.0.1") == "10.0.0.1"
    assert told(NCCL_SOCKET_IFNAME="=eth0") == "10.0.0.1"
    assert told(GLOO_SOCKET_IFNAME="eth9") == "10.1.0.1"


def test_versions_that_differ_are_told_with_their_nodes() -> None:
    same = {"a": {"vllm": "1", "torch": "2"}, "b": {"vllm": "1", "torch": "2", "ray": "3"}}
    assert apart(same) == []
    differ = {"a": {"torch": "2.9"}, "b": {"torch": "2.8"}, "c": {}}
    assert apart(differ) == ["torch: 2.9 (a), 2.8 (b)"]


def found(model: str = "m", *nodes: NodeFound, said: EndpointFacts | None = None) -> ClusterFound:
    told = said or EndpointFacts((model,), 4096, {}, "0.30.0", True, {}, 401)
    return ClusterFound(Endpoint(url="http://x:1"), model, told, nodes)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "it.yml"
    path.write_text(text)
    return path


def test_the_profile_is_one_that_can_be_read_again(tmp_path: Path) -> None:
    node = AttachedNode(name="box", host="me@box", enter=("docker", "exec", "-i", "vllm"))
    facts = node_facts_of(engine("vllm", "serve", "m", "-tp", "1", "--dtype", "half"))
    profile = load_attached(
        written(tmp_path, compose.text(found("m", NodeFound(node, facts)), "it"))
    )
    assert profile.nodes == (node,)
    assert profile.serving.args == {"dtype": "half", "max-model-len": 4096}


@given(some.lists(some.text(), max_size=6), some.text())
def test_nothing_that_a_node_says_makes_another_profile(words: list[str], noise: str) -> None:
    """Flags, hostnames and errors are a stranger's: they stay values and comments."""
    facts = node_facts_of(engine("vllm", "serve", "m", *words))
    silent = NodeFound(AttachedNode(name="b", host="b"), error=noise or "none")
    node = NodeFound(AttachedNode(name="a", host="a"), facts)
    text = compose.text(replace(found("m", node, silent), unknown=(noise,)), "it")
    document = yaml.safe_load(text)
    assert list(document) == ["name", "machines", "endpoint", "nodes", "serving", "verification"]
    assert [each["host"] for each in document["nodes"]] == ["a", "b"]
    assert visible(text) == text


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://LLM.example:8443/v", "llm.example-8443"),
        ("http://[::1]:8000", "1-8000"),
        ("http://10.0.0.1", "10.0.0.1"),
    ],
)
def test_names_of_clusters(url: str, name: str) -> None:
    assert compose.name_of(url) == name


def test_names_of_nodes_are_unique() -> None:
    hosts = ["me@box.example", "box", "box_1", "10.0.0.1"]
    assert compose.node_names(hosts) == ["box", "box-2", "box-1", "10-0-0-1"]


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("http://x:1", "x:1", "endpoint.url: 'x:1' is invalid; allowed: http://HOST:PORT"),
        ("http://x:1", "http://u:p@x", "with no user, password"),
        ("machines: existing", "machines: existing\nimage: x", "image: unknown key"),
        ("machines: existing", "machines: existing\npower: {}", "power: unknown key"),
        ("nodes: []", 'nodes: [{name: a, host: "-o x"}]', "allowed: HOST or USER@HOST"),
        ("nodes: []", "nodes: [{name: a, host: a}, {name: a, host: b}]", "names must be unique"),
        ('url: "http://x:1"', "url: http://x:1\n  key_env: A\n  key_file: b", "keep one"),
    ],
)
def test_what_is_wrong_with_such_a_profile(tmp_path: Path, old: str, new: str, wrong: str) -> None:
    text = compose.text(found(), "it")
    assert old in text
    with pytest.raises(DocumentError) as raised:
        load_attached(written(tmp_path, text.replace(old, new)))
    assert wrong in raised.value.message


def test_a_command_for_our_clusters_says_that_this_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, compose.text(found(), "it"))
    with pytest.raises(NotOurs, match="this cluster is not ours") as raised:
        load(path)
    assert len(raised.value.message.splitlines()) == 1


@pytest.mark.parametrize("path", ACCELERATORS, ids=lambda path: path.stem)
def test_recorded_accelerators(path: Path, tmp_path: Path) -> None:
    """The very program, with a recorded /proc and /sys, and what programs printed there."""
    case = laid_out(path, tmp_path)
    env = {
        "ORCHESTRATE_ROOT": str(tmp_path / "root"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    program = source("node_facts", "node_hardware", "node_log")
    ran = subprocess.run(
        [sys.executable, "-I", "-", "mark", "60", json.dumps(TABLES)],
        input=program, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.split("\n")[2])
    assert told["rdma"] == case.get("rdma", [])
    cards = told["accelerators"]
    assert len(cards) == len(case["told"])
    for card, wanted in zip(cards, case["told"], strict=True):
        assert {key: card.get(key) for key in wanted} == wanted
    assert case.get("unknown", "") in "\n".join(told["unknown"])


def test_energy_and_idle_time_become_power_and_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their counters grow between the two looks."""
    device = tmp_path / "sys/bus/pci/devices/0000:03:00.0"
    energy, idle = device / "hwmon/hwmon2/energy1_input", device / "drm/card0/gt/gt0"
    for path in (energy.parent, idle):
        path.mkdir(parents=True)
    (device / "vendor").write_text("0x8086")
    (idle / "rc6_residency_ms").write_text("5000")
    energy.write_text("1000000")
    (tmp_path / "sys/class/drm/card0").mkdir(parents=True)
    (tmp_path / "sys/class/drm/card0/device").symlink_to(device)
    monkeypatch.setattr(node_hardware, "ROOT", tmp_path)

    class Clock:
        """One in which as much is done as is slept."""

        now = 100.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds
            energy.write_text(str(1000000 + int(150e6 * seconds)))  # 150 W
            (idle / "rc6_residency_ms").write_text(str(5000 + int(250 * seconds)))  # a quarter

    monkeypatch.setattr(node_hardware, "time", Clock())
    (card,) = node_hardware.accelerators(TABLES)
    assert card["power_w"] == pytest.approx(150)
    assert card["busy_percent"] == pytest.approx(75)


def test_a_firmwares_counters_name_what_slows_a_card_down() -> None:
    table = TABLES["sysfs"]["0x1002"]["metrics"]
    before = bytearray(struct.pack("<HBB", 264, 3, 0) + bytes(260))
    now = bytearray(before)
    assert node_hardware.slowed(table, bytes(before), bytes(now)) == []
    struct.pack_into("<I", now, 236, 7)
    struct.pack_into("<I", now, 252, 9)
    grown = node_hardware.slowed(table, bytes(before), bytes(now))
    assert grown == ["power limit", "thermal limit"]
    assert node_hardware.slowed(table, b"", bytes(now)) == []
    # A firmware that tells no reason has all bits on.
    assert node_hardware.slowed(table, b"", struct.pack("<HBB", 120, 1, 3) + b"\xff" * 116) == []
    for cut in range(len(now)):  # a table that is shorter than it says
        node_hardware.slowed(table, bytes(before), bytes(now[:cut]))


#: Lines of real logs, and what they say.
NCCL_IB = "box:7:9 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/RoCE [RO]; OOB eth0:10.0.4.7<0>"
NCCL_NET = "(Worker_TP0 pid=7) box:7:9 [0] NCCL INFO Using network IB"
NCCL_SOCKET = "box:7:9 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.123.96<0>"
NCCL_P2P = "box:7:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read"
ONECCL = "2026:11:30-10:00:00:( 77) |CCL_INFO| atl-ofi: provider: tcp;ofi_rxm"
ONECCL_WARN = "2026:11:30-10:00:00:( 77) |CCL_WARN| fallback to 'sockets' transport"


def machine(tmp_path: Path, *lines: str) -> dict[str, Any]:
    """What is read of a server whose output goes to a file."""
    log = tmp_path / "vllm.log"
    log.write_text("\n".join(["A prompt, which nobody else may see", *lines, *lines, ""]))
    fds = tmp_path / "proc/7/fd"
    fds.mkdir(parents=True, exist_ok=True)
    (fds / "1").unlink(missing_ok=True)
    (fds / "1").symlink_to(log)
    return node_log.log([{"pid": 7, "env": None}])


@pytest.mark.parametrize(
    ("lines", "network", "shown"),
    [
        ([NCCL_IB, NCCL_SOCKET, NCCL_NET, NCCL_P2P], "RDMA", "RDMA between nodes, P2P/CUMEM/read"),
        ([NCCL_SOCKET], "sockets", "sockets between nodes"),
        ([NCCL_P2P], "", "collectives: P2P/CUMEM/read"),
        ([ONECCL, ONECCL_WARN], "sockets", "warns: |CCL_WARN| fallback to 'sockets'"),
        (["vLLM is using nccl==2.28.9"], "", ""),
    ],
)
def test_the_engines_log_says_what_carries_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], network: str, shown: str
) -> None:
    monkeypatch.setattr(node_log, "ROOT", tmp_path)
    found = machine(tmp_path, *lines)
    assert "prompt" not in str(found)
    assert len(found["lines"]) == len(lines) if shown else found == {"of": "", "lines": []}
    facts = node_facts_of(engine("VLLM::EngineCore"), log=EngineLog(**found))
    assert collectives.network(facts) == network
    assert shown in "\n".join(collectives.told(facts))
    port = RdmaPort("mlx5_0", 1, "Ethernet", "ACTIVE", 100.0, "eth0")
    missing = list(collectives.missing([replace(facts, rdma=[port])]))
    assert bool(missing) == (not network)
    assert not list(collectives.missing([replace(facts, rdma=[replace(port, state="DOWN")])]))


def test_only_the_ends_of_a_huge_log_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_log, "ROOT", tmp_path)
    monkeypatch.setattr(node_log, "PART", 1000)
    noise = ["x" * 99] * 100
    assert machine(tmp_path, *noise, NCCL_SOCKET, *noise)["lines"] == []
    assert machine(tmp_path, NCCL_SOCKET, *noise)["lines"] == [NCCL_SOCKET.partition("] ")[2]]
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: it is not waited for
    (tmp_path / "proc/7/fd/2").symlink_to(tmp_path / "pipe")
    assert machine(tmp_path, *noise)["lines"] == []


@pytest.mark.parametrize("name", ["node_facts", "node_hardware", "node_log", "node_ray"])
def test_what_runs_on_a_node_is_python_3_9_and_of_the_standard_library(name: str) -> None:
    tree = ast.parse(own_text(name), feature_version=(3, 9))
    imported = {
        name.partition(".")[0]
        for each in ast.walk(tree)
        if isinstance(each, ast.Import | ast.ImportFrom)
        for name in (
            [each.module or ""]
            if isinstance(each, ast.ImportFrom)
            else [a.name for a in each.names]
        )
    }
    others = {"node_ray": {"ray"}, "node_facts": {"orchestrator"}, "node_log": {"orchestrator"}}
    assert imported <= sys.stdlib_module_names | others.get(name, set())
