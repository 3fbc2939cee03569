"""The dashboard: who is let in, when anything is looked at, and what is made of it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support import PROJECT
from support.dashboard import asked, data, document, served
from support.predict import link, probes

from orchestrator.core.errors import UserError
from orchestrator.dashboard import view, web
from orchestrator.dashboard.gather import Feed, Polled, Tail
from orchestrator.dashboard.minute import NAMES, PERIOD, Minute, by_node
from orchestrator.performance.bench.sample import sampler


def until(seen: Callable[[], Any]) -> Any:
    """What is seen once it is true, in at most a minute."""
    end = time.monotonic() + 60
    while not (found := seen()):
        assert time.monotonic() < end, "never"
        time.sleep(0.02)
    return found


# Who is let in.


def test_only_the_whole_address_opens_it() -> None:
    with served(document()) as server:
        right = f"/{server.secret}/"
        assert len(server.secret) >= 43  # 32 bytes
        assert asked(server, right)[0] == asked(server, f"{right}data")[0] == 200
        for wrong in (
            "/", "//", "/data", f"/{server.secret[:-1]}/", f"/{server.secret}x/data",
            f"/{server.secret.swapcase()}/data", f"{right}../{server.secret}/data",
            f"/x/..{right}data", f"{right}../../etc/passwd", f"{right}%2e%2e/data",
            f"{right}page.html", f"{right}data?x", f"/{server.secret}", "*", "/%C3%A9/",
        ):  # fmt: skip
            status, _, body = asked(server, wrong)
            assert status == 404, wrong
            assert server.secret.encode() not in body
        with served(document()) as other:
            assert other.secret != server.secret
            assert asked(server, f"/{other.secret}/data")[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:PORT", 200),
        ("localhost:PORT", 200),
        ("localhost:9", 200),  # behind a forwarding
        ("evil.example:PORT", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:PORT", 421),
        ("evil@127.0.0.1", 421),
        ("", 421),
    ],
)
def test_another_sites_name_for_this_machine_opens_nothing(host: str, status: int) -> None:
    with served(document()) as server:
        name = host.replace("PORT", str(server.server_address[1]))
        assert asked(server, f"/{server.secret}/data", Host=name)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_nothing_acts(method: str) -> None:
    looked: list[int] = []
    with served(lambda: looked.append(1) or document()) as server:  # type: ignore[func-returns-value]
        status, headers, _ = asked(server, f"/{server.secret}/data", method)
        assert status == (501 if method == "TRACE" else 405)
        assert "Access-Control-Allow-Origin" not in headers
    assert looked == []


def test_it_listens_on_this_machine_alone_and_is_kept_nowhere() -> None:
    with served(document()) as server:
        assert server.server_address[0] == "127.0.0.1"
        for path in (f"/{server.secret}/", f"/{server.secret}/data", "/wrong"):
            _, headers, _ = asked(server, path, Origin="https://evil.example")
            assert headers["Cache-Control"] == "no-store"
            assert headers["Referrer-Policy"] == "no-referrer"
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'sha256-")
            assert "unsafe" not in policy
            assert "Access-Control-Allow-Origin" not in headers


def test_a_busy_port_is_one_message() -> None:
    with served(document()) as server:
        port = str(server.server_address[1])
        words = ("dashboard", "--profile", "sim", "--port", port)
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            capture_output=True, text=True, cwd=PROJECT, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"error: port {port} cannot be used" in done.stderr


# When anything is looked at.


class Counting:
    """Something that has a document, and counts how often it was started."""

    def __init__(self) -> None:
        self.started = self.stopped = 0

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1

    def document(self) -> dict[str, Any]:
        return {"started": self.started}


def test_nothing_is_looked_at_while_nobody_looks() -> None:
    live = Counting()
    watched = web.OnDemand(lambda: live, idle=0.2)
    with served(watched.document) as server:
        asked(server, f"/{server.secret}/")  # the page alone
        asked(server, "/wrong/data")
        assert live.started == 0
        assert data(server) == data(server) == {"started": 1}  # two browsers, one look
        until(lambda: live.stopped == 1)
        assert data(server) == {"started": 2}
    watched.close()
    assert live.stopped == 2
    watched.document()
    assert live.started == 2  # a request that comes late starts nothing


class Looked:
    """A view of given sources and programs."""

    def __init__(self, *sources: Polled, tails: tuple[Tail, ...] = ()) -> None:
        self.sources, self.tails = sources, tails
        self.network = nullcontext

    def document(self) -> dict[str, Any]:
        return {"sources": [each.document() for each in self.sources]}


def test_a_source_that_does_not_answer_holds_no_other_up_and_keeps_its_value() -> None:
    gone, released = Event(), Event()

    def dies() -> int:
        if gone.is_set():
            released.wait(60)
        return 1

    def refuses() -> None:
        raise UserError("no SSH", "Look at its console.")

    counted: list[int] = []
    dead = Polled("dead", dies, 0.0, patience=0.1)
    bad = Polled("bad", refuses, 0.0)
    alive = Polled("alive", lambda: counted.append(1), 0.0)
    later = Polled("later", lambda: 2, 60.0, after=bad)
    feed = Feed(Looked(dead, bad, alive, later))
    feed.start()
    try:
        until(lambda: dead.came and later.value == 2)
        gone.set()
        until(lambda: dead.late)
        count = len(counted)
        until(lambda: len(counted) > count + 1)
        told = {each["name"]: each for each in feed.document()["sources"]}
        assert re.fullmatch(r"no answer for \d+ s", told["dead"]["problem"])
        assert told["dead"]["age_s"] > 0
        assert dead.value == 1
        assert told["bad"]["problem"] == "no SSH\nLook at its console."
        assert told["alive"]["problem"] == ""
    finally:
        released.set()
        feed.stop()
    count = len(counted)
    time.sleep(1.2)
    assert len(counted) == count


def test_a_bug_in_what_is_shown_is_shown_and_ends_nothing() -> None:
    class Broken(Looked):
        def document(self) -> dict[str, Any]:
            raise KeyError("x")

    assert "bug in orchestrate: KeyError" in Feed(Broken()).document()["text"]


def test_a_program_that_ends_is_started_again_and_gone_afterwards(tmp_path: Path) -> None:
    said: list[str] = []
    started = tmp_path / "started"
    script = f"echo $$ >>{started}; echo line; read -r _ || :; echo $$ >>{tmp_path}/ended"
    tail = Tail("node", lambda: ["sh", "-c", script], said.append)
    silent = Tail("off", lambda: None, said.append)
    feed = Feed(Looked(tails=(tail, silent)))
    feed.start()
    until(lambda: said)
    first = int(started.read_text())
    os.kill(first, signal.SIGKILL)
    until(lambda: len(said) == 2)
    assert (tail.wanted, silent.wanted) == (True, False)
    feed.stop()
    second = int(started.read_text().split()[1])
    assert (tmp_path / "ended").read_text().split() == [str(second)]  # by itself, as its input did
    assert not Path(f"/proc/{second}").exists()


def test_a_line_without_end_is_left_out() -> None:
    said: list[str] = []
    script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end; read -r _"
    feed = Feed(Looked(tails=(Tail("node", lambda: ["sh", "-c", script], said.append),)))
    feed.start()
    until(lambda: said)
    feed.stop()
    assert said == ["end"]


# What is made of it.


def line(at: float, **more: Any) -> str:
    """A sampler's line."""
    return json.dumps({
        "time": 0, "at": at, "cpu": {"busy": at / 2, "all": at}, "group": {}, "stalled": 0.0,
        "net": {"lan0": [int(at * 1000), int(at * 500)]}, "memory": 2.0**30, "hardware": {},
        "counters": {}, "gauges": {}, **more,
    })  # fmt: skip


def metrics(count: float) -> dict[str, float]:
    """vLLM's metrics after so many requests of 100 and 20 tokens."""
    return {
        "num_requests_running": 4.0, "num_requests_waiting": 1.0, "kv_cache_usage_perc": 0.5,
        "prompt_tokens_total": 100 * count, "generation_tokens_total": 20 * count,
        "request_success_total": count,
        "time_to_first_token_seconds_sum": 0.3 * count, "time_to_first_token_seconds_count": count,
        "inter_token_latency_seconds_sum": 0.38 * count,
        "inter_token_latency_seconds_count": 19 * count,
        "request_generation_tokens_sum": 20 * count, "request_generation_tokens_count": count,
    }  # fmt: skip


def a_minute(counts: list[float], **more: Any) -> Minute:
    minute = Minute("node")
    for number, count in enumerate(counts):
        minute.take("node", line(PERIOD * (number + 1), gauges=metrics(count), **more))
    # As if they had come when they say.
    now = time.time()
    for number, each in enumerate(reversed(minute.lines["node"])):
        each["time"] = now - PERIOD * number
    minute.metrics = type(minute.metrics)(
        (now - PERIOD * (len(counts) - 1 - number), values)
        for number, (_, values) in enumerate(minute.metrics)
    )
    return minute


def test_rates_and_means_of_the_last_minute() -> None:
    minute = a_minute([10, 12, 14, 16])
    load = minute.load()
    assert load is not None
    assert load["tokens_per_s"] == pytest.approx(20, rel=0.05)  # 20 tokens of a request a second
    assert load["requests_per_s"] == pytest.approx(1, rel=0.05)
    assert (load["ttft_s"], load["tpot_s"]) == (pytest.approx(0.3), pytest.approx(0.02))
    found = minute.measured()
    assert found is not None
    assert (found.workload.prompt_tokens, found.workload.output_tokens) == (100, 20)
    assert (found.workload.concurrency, found.completed) == (4, 6)
    does = by_node(minute.series())["node"]
    assert does["busy"] == [50, 50, 50]
    assert does["cards"]["lan0"] == {"sent": pytest.approx(1000), "received": pytest.approx(500)}


def test_a_server_that_restarted_counts_from_nothing() -> None:
    grown, _ = a_minute([1000, 1002, 1, 3]).grown()
    assert grown["request_success_total"] == 2 + 1 + 2


def test_old_metrics_are_no_load() -> None:
    minute = a_minute([1, 2])
    minute.metrics = type(minute.metrics)((when - 30, values) for when, values in minute.metrics)
    assert minute.load() is None
    assert Minute().load() is None
    assert Minute().measured() is None


@pytest.mark.parametrize(
    "text",
    [
        "welcome", "[]", "3", "null", '{"cpu": 1}', line(3, cpu={"busy": "x", "all": None}),
        line(3, memory=math.nan), line(3).replace("1073741824.0", "1e999"),
        line(3, net={"lan0": [10**400, 1]}), line(3, net=[]), line(3, gauges={"a": "b"}),
        line(3, gauges=[1]), line(3, hardware={"W of x": None}),
        "[" * 60000,
    ],
)  # fmt: skip
def test_a_node_that_sends_anything_takes_nobody_along(text: str) -> None:
    minute = a_minute([1, 2])
    minute.take("evil", line(1))
    minute.take("evil", text)
    minute.take("evil", text)
    json.dumps([by_node(minute.series()), minute.load()], allow_nan=False)
    assert by_node(minute.series())["node"]["busy"] == [50]


def test_links_show_what_moves_beside_what_was_probed() -> None:
    probed = probes(links=(link("a", "b", 1e-4, 1e8),))
    one = probed.links[0]
    moving = {one.a: {"cards": {one.interfaces[0]: {"sent": one.bytes_per_s.median / 2,
                                                    "received": 1.0}}},
              "other": {"cards": {"x0": {"sent": 8.0, "received": 0.0},
                                  "y0": {"sent": 0.0, "received": 0.0}}}}  # fmt: skip
    found = view.links(probed, moving, {"other y0": 100.0})
    assert found[0]["share"] == pytest.approx(0.5)
    assert [(each["ends"][0]["card"], each["share"]) for each in found[1:]] == [
        ("x0", None),
        ("y0", 0.0),
    ]


def test_a_sampler_of_the_dashboard_reads_what_it_is_told() -> None:
    text = sampler(0.25, NAMES)
    argv = [sys.executable, "-I", "-S", "-c", text, ""]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.stdin.close()
    assert lines[2]["at"] - lines[0]["at"] < 5 * PERIOD
    space: dict[str, Any] = {"__name__": "sampler"}
    exec(compile(text, "sampler", "exec"), space)
    assert (space["PERIOD"], space["GAUGES"]) == (0.25, NAMES)


def test_changes_are_told_once() -> None:
    changes = view.Changes()
    assert changes.seen({"a": "up"})
    assert not changes.seen({"a": "up"})
    assert changes.seen({"a": "no answer", "b": "up"})
    assert [(each["what"], each["state"]) for each in changes.document()] == [("a", "no answer")]
