#!/usr/bin/env python3
"""Measure an engine on two real cards: what a forecast may know, and what it is scored on.

    benchmarks/real_cards.py PLAN OUT SECONDS [TOOLS [COMMAND...]]

PLAN: a file of real_cards/. Standard library only; wants `vllm` for this Python, two NVIDIA cards,
and root. No network: models by config.json alone, with dummy weights. Two cards of one
host stand for two hosts: a network namespace each, joined by a veth pair; NCCL has host ids of
their own, peer-to-peer and shared memory are off, so it goes over TCP; tc throttles. All servers
start at once, and one at a time is measured (two while each has a card alone).

TOOLS: a directory with `bin/ip`, `bin/tc`, their `lib/`, and any tokenizer's files in `tokenizer/`.
COMMAND runs once, when all servers are up, for as long as the plan says. OUT/measured.json is
written anew after each load: what was measured before the time was over is kept. Ends all that it
started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PLAN = json.loads(Path(sys.argv[1]).read_text())
MODELS = json.loads(Path(sys.argv[1]).with_name(PLAN["models"]).read_text())
OUT, SECONDS = Path(sys.argv[2]), float(sys.argv[3])
TOOLS = Path(sys.argv[4]) if len(sys.argv) > 4 else None
COMMAND = sys.argv[5:]
BEGUN = time.monotonic()
#: The namespaces, their addresses, and a link's interface.
SPACES, ADDRESSES, CARD = ("cards0", "cards1"), ("10.99.0.1", "10.99.0.2"), "eth0"
ENV = dict(
    os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1", VLLM_USE_FLASHINFER_SAMPLER="0", PYTHONUNBUFFERED="1",
)  # fmt: skip
TCP = {
    "NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_IB_DISABLE": "1",
    "NCCL_NVLS_ENABLE": "0", "NCCL_SOCKET_IFNAME": CARD, "GLOO_SOCKET_IFNAME": CARD,
    "TP_SOCKET_IFNAME": CARD,
}  # fmt: skip
#: Marks the processes of a server, whoever starts them.
MARK, RAY_PORT = "REAL_CARDS_SERVER", 26379
PROBES = HERE.parent / "orchestrator" / "performance" / "probe"
#: Bytes of all-reduces that are measured: tokens of the models' widths.
SIZES = sorted({2 * width * tokens for width in (4096, 6144) for tokens in (1, 8, 32, 512)})
CLIENT = r"""
import http.client, json, sys, threading, time
port, prompt, output, at_once, requests, seed, waves = map(int, sys.argv[1:])
found, left, lock = [], list(range(requests)), threading.Lock()
# The first connection imports codecs and parsers: not to be counted with the first request.
warm = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
warm.request("GET", "/health"); warm.getresponse().read()
def one(number):
    tokens = [5 + (seed * 131 + number * 7 + k * k) % 200 for k in range(prompt)]
    body = {"model": "m", "prompt": tokens, "max_tokens": output, "temperature": 0,
            "ignore_eos": True, "stream": True}
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun, times = time.perf_counter(), []
    asked.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = asked.getresponse()
    if answer.status != 200:
        raise SystemExit(answer.read(300))
    while line := answer.readline():
        if line.startswith(b"data: ") and b"[DONE]" not in line:
            times.append(time.perf_counter())
    found.append([begun, times[0] - begun, (times[-1] - times[0]) / (output - 1), len(times)])
def work():
    while True:
        with lock:
            if not left: return
            number = left.pop()
        one(number)
for wave in range(waves):
    if wave == 1: found.clear()  # of several in a row the first does not count
    left[:] = range(wave * requests, (wave + 1) * requests)
    threads = [threading.Thread(target=work) for _ in range(at_once)]
    [each.start() for each in threads]; [each.join() for each in threads]
print(json.dumps(found))
"""
rows: list[dict[str, Any]] = []
running: dict[str, list[subprocess.Popen[bytes]]] = {}
lock = threading.Lock()


def left() -> float:
    return SECONDS - (time.monotonic() - BEGUN)


def said(*words: object) -> None:
    print(f"{time.monotonic() - BEGUN:5.0f} s", *words, flush=True)


def tool(name: str, *words: str, ok: bool = True) -> None:
    env = dict(os.environ)
    if TOOLS:
        name, env["LD_LIBRARY_PATH"] = str(TOOLS / "bin" / name), str(TOOLS / "lib")
    done = subprocess.run([name, *words], env=env, capture_output=True, text=True, check=False)
    if done.returncode and ok:
        said("failed:", name, *words, done.stderr.strip())


def inside(space: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{space}"]


def network() -> None:
    for space in SPACES:
        tool("ip", "netns", "add", space)
    tool("ip", "link", "add", CARD, "netns", SPACES[0], "type", "veth", "peer", "name", CARD,
         "netns", SPACES[1])  # fmt: skip
    for space, address in zip(SPACES, ADDRESSES, strict=True):
        tool("ip", "-n", space, "address", "add", f"{address}/24", "dev", CARD)
        for card in ("lo", CARD):
            tool("ip", "-n", space, "link", "set", card, "up")
        tool("ip", "-n", space, "route", "add", "default", "dev", CARD)


def throttle(rate: str) -> None:
    """``rate``: Mb/s, or "free"."""
    for space in SPACES:
        tc = ("-n", space, "qdisc")
        tool("tc", *tc, "delete", "dev", CARD, "root", ok=False)
        if rate != "free":
            burst = str(max(int(float(rate) * 1e6 / 8 * 0.002), 6000))
            tool("tc", *tc, "add", "dev", CARD, "root", "tbf", "rate", f"{rate}mbit",
                 "burst", burst, "latency", "100ms")  # fmt: skip


def start(server: dict[str, Any], number: int) -> None:
    home = OUT / "models" / str(server["model"])
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps(MODELS[server["model"]]))
    if TOOLS:
        shutil.copytree(TOOLS / "tokenizer", home, dirs_exist_ok=True)
    argv = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(home), *PLAN["flags"],
            "--served-model-name", "m", "--port", str(8000 + number)]  # fmt: skip
    argv += [] if server.get("graphs") else ["--enforce-eager"]
    server["port"] = 8000 + number
    ranks: list[tuple[list[str], list[str], dict[str, str]]] = []
    if "card" in server:
        ranks = [([], [], {"CUDA_VISIBLE_DEVICES": str(server["card"])})]
    if executor := server.get("executor"):
        more = ["--tensor-parallel-size", str(server["tensor"]), "--disable-custom-all-reduce",
                "--distributed-executor-backend", executor]  # fmt: skip
        own = TCP | dict.fromkeys((n for n in TCP if n.endswith("IFNAME")), "lo")
        own |= {MARK: str(server["tag"])}
        ranks = [([], more, own)]
        if executor == "ray":
            head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port",
                    str(RAY_PORT), "--num-gpus", "2", "--node-ip-address", "127.0.0.1",
                    "--include-dashboard", "false", "--disable-usage-stats"]  # fmt: skip
            with (OUT / "ray.log").open("wb") as log:
                subprocess.run(head, env=ENV | own, stdout=log, stderr=log, check=False)
            own["RAY_ADDRESS"] = f"127.0.0.1:{RAY_PORT}"
    for rank in () if ranks else (0, 1):
        more = ["--tensor-parallel-size", str(server.get("tensor", 1)),
                "--pipeline-parallel-size", str(server.get("pipeline", 1)),
                "--distributed-executor-backend", "mp", "--nnodes", "2", "--node-rank", str(rank),
                "--master-addr", ADDRESSES[0], "--master-port", str(29700 + number),
                "--disable-custom-all-reduce", *(["--headless"] if rank else [])]  # fmt: skip
        env = TCP | {"CUDA_VISIBLE_DEVICES": str(rank), "NCCL_HOSTID": f"host{rank}",
                     "VLLM_HOST_IP": ADDRESSES[rank]}  # fmt: skip
        ranks.append((inside(SPACES[rank]), more, env))
    for rank, (before, more, own) in enumerate(ranks):
        log = (OUT / f"{server['tag']}-{rank}.log").open("wb")
        env = ENV | own | {"VLLM_PORT": str(30000 + 100 * number)}
        running.setdefault(str(server["tag"]), []).append(
            subprocess.Popen(
                [*before, *argv, *more], env=env, stdout=log, stderr=log, start_new_session=True
            )
        )


def at(server: dict[str, Any]) -> list[str]:
    """Where its endpoint is: on this host, or in the first namespace."""
    return [] if "card" in server or "executor" in server else inside(SPACES[0])


def health(server: dict[str, Any]) -> bool:
    url = f"http://127.0.0.1:{server['port']}/health"
    ask = f"import urllib.request as u; u.urlopen('{url}', timeout=2)"
    return not subprocess.run(
        [*at(server), sys.executable, "-S", "-c", ask], capture_output=True, check=False
    ).returncode


def up(servers: list[dict[str, Any]], until: float) -> list[dict[str, Any]]:
    """Those that answer before so many seconds are left."""
    waiting, ready = list(servers), []
    while waiting and left() > until:
        for server in list(waiting):
            tag = str(server["tag"])
            if any(each.poll() is not None for each in running[tag]):
                log = (OUT / f"{tag}-0.log").read_text(errors="replace")
                said(
                    "ended:",
                    tag,
                    "|".join(line for line in log.splitlines() if "Error" in line)[-600:],
                )
                waiting.remove(server)
            elif health(server):
                said("up:", tag)
                ready.append(server)
                waiting.remove(server)
        time.sleep(0.5)
    said("not up:", [each["tag"] for each in waiting])
    return ready


def load(server: dict[str, Any], kind: str, link: str, shape: list[int], round_: int) -> None:
    if left() < 8:
        return
    argv = [
        *at(server),
        sys.executable,
        "-S",
        "-c",
        CLIENT,
        str(server["port"]),
        *map(str, shape),
        str(len(rows)),
        str(PLAN.get("in_a_row", 1) if kind == "cell" else 1),
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=min(90, left() - 4)
        )
        found = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        said(
            "no figures:",
            server["tag"],
            shape,
            done.stderr[-200:] if "done" in dir() else "time over",
        )
        return
    with lock:
        row = {"server": server["tag"], "kind": kind, "link": link, "load": shape}
        rows.append(row | {"round": round_, "requests": found})
        (OUT / "measured.json").write_text(json.dumps(rows))


def messages() -> None:
    """The link and the collective, as the product probes them: link.json, collective.json."""
    port = "27001"
    words = [["ask", ADDRESSES[1], port, ADDRESSES[0], ",".join(map(str, SIZES))]]
    together("link", [[str(PROBES / "node_link.py"), *each] for each in (
        *words, ["serve", ADDRESSES[1], port])])  # fmt: skip
    common = {"world": 2, "address": ADDRESSES[0], "port": 27002, "sizes": SIZES}
    asked = [common | {"rank": rank, "between": 64 << 20, "timeout_s": 20} for rank in (0, 1)]
    together("collective", [[str(PROBES / "node_collective.py"), json.dumps(a)] for a in asked])


def together(name: str, programs: list[list[str]]) -> None:
    ends = []
    for rank, words in enumerate(programs):
        env = ENV | TCP | {"CUDA_VISIBLE_DEVICES": str(rank), "NCCL_HOSTID": f"host{rank}"}
        output = (OUT / (f"{name}.json" if rank == 0 else f"{name}.other")).open("wb")
        with (OUT / f"{name}-{rank}.err").open("wb") as log:
            argv = [*inside(SPACES[rank]), sys.executable, *words]
            ends.append(subprocess.Popen(argv, env=env, stdout=output, stderr=log))
    for each in ends:
        try:
            each.wait(40)
        except subprocess.TimeoutExpired:
            said("no end:", name)
            each.kill()
    said("probed:", name)


def alone(servers: list[dict[str, Any]]) -> None:
    """Each on its card: cells in their rounds, the first one to warm up, then what is held out. Of
    all servers in turns, so that a round lies minutes from the next one."""
    for server in servers:
        load(server, "warm", "none", [128, 8, 8, 8], 0)
    measured = [each for each in servers if not each.get("for")]
    for kind, shapes, rounds in (
        ("cell", PLAN["cells"], PLAN["rounds"]),
        ("held out", PLAN["held_out"]["alone"], PLAN.get("rounds_held_out", 1)),
    ):
        for round_ in range(rounds):
            for server in measured:
                for shape in shapes:
                    load(server, kind, "none", shape, round_)
            said("measured:", kind, round_)


def over_links(servers: list[dict[str, Any]]) -> None:
    for server in servers:
        load(server, "warm", "free", [128, 8, 8, 8], 0)
    for round_ in range(PLAN["rounds_over_links"]):
        for shape in PLAN["cells_over_links"]:
            for server in servers:
                load(server, "cell", "free", shape, round_)
    for link in ("free", "2500", "1000", "10000"):
        if link not in PLAN["held_out"]:
            continue
        throttle(link)
        for shape in PLAN["held_out"][link]:
            for server in servers:
                load(server, "held out", link, shape, 0)
        said("measured:", link)
    throttle("free")


def copies(ready: list[dict[str, Any]]) -> None:
    """All copies of a model at once, each with its share of the load."""
    of = PLAN.get("copies")
    chosen = [each for each in ready if of and each["tag"] in of["servers"]]
    if not of or len(chosen) < len(of["servers"]):
        return
    for shape in of["loads"]:
        for round_ in range(of["rounds"]):
            with ThreadPoolExecutor(len(chosen)) as pool:
                for server in chosen:
                    pool.submit(load, server, "copy", "none", shape, round_)
    said("measured: copies")


def executors(servers: list[dict[str, Any]]) -> None:
    """In turns, the same layout by each; and the memory of all processes of each."""
    for round_ in range(PLAN.get("rounds_of_executors", 0)):
        for shape in PLAN["executors"]:
            for server in servers[:: 1 if round_ % 2 else -1]:
                load(server, "executor", "lo", shape, round_)
    for server in servers:
        mark = f"{MARK}={server['tag']}\0".encode()
        sizes = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    rollup = (process / "smaps_rollup").read_text()
                    sizes.append(int(rollup.split("Pss:")[1].split()[0]))
            except (OSError, IndexError):
                continue
        said("memory:", server["tag"], f"{sum(sizes) / 2**20:.2f} GiB, {len(sizes)} processes")


def end() -> None:
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"],
                   env=ENV, capture_output=True, check=False)  # fmt: skip
    every = [each for group in running.values() for each in group]
    for how in (signal.SIGTERM, signal.SIGKILL):
        for each in every:
            try:
                os.killpg(each.pid, how)
            except OSError:
                continue
        time.sleep(2)
    for each in every:
        each.wait()
    for space in SPACES:
        tool("ip", "netns", "delete", space, ok=False)


def medians(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its requests' medians for them."""
    first, further = (statistics.median(each[at] for each in row["requests"]) for at in (1, 2))
    told = {key: value for key, value in row.items() if key != "requests"}
    output = row["load"][1]
    ends = [begun + to + (output - 1) * each for begun, to, each, _ in row["requests"]]
    took = max(ends) - min(each[0] for each in row["requests"])
    rate = len(row["requests"]) * output / took
    return told | {
        "ttft_s": round(first, 5), "tpot_s": round(further, 6), "tokens_per_s": round(rate, 1)
    }  # fmt: skip


def told() -> None:
    """OUT/results.json: medians, with the link and the collective."""
    probed = {name: OUT / f"{name}.json" for name in ("link", "collective")}
    found = {name: json.loads(file.read_text()) for name, file in probed.items() if file.is_file()}
    lines = ",\n".join(json.dumps(medians(row)) for row in rows)
    text = f'{{"probed": {json.dumps(found)},\n"rows": [\n{lines}\n]}}\n'
    (OUT / "results.json").write_text(text)
    print(lines)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    servers = PLAN["servers"]
    network()
    try:
        for number, server in enumerate(servers):
            start(server, number)
        ready = up(servers, SECONDS * PLAN.get("left", 0.55))
        if COMMAND:
            with (OUT / "command.log").open("wb") as log:
                try:
                    most = min(PLAN.get("command_s", 60), left() - 10)
                    subprocess.run(COMMAND, stdout=log, stderr=log, timeout=most, check=False)
                except subprocess.TimeoutExpired:
                    said("the command took too long")
        groups = [[each for each in ready if each.get("card") == card] for card in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(alone, groups))
        copies(ready)
        executors([each for each in ready if "executor" in each])
        if apart := [each for each in ready if at(each)]:
            messages()
            over_links(apart)
    finally:
        end()
        told()


if __name__ == "__main__":
    main()
