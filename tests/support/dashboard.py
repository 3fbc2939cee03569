"""A document with something of everything, names with markup in them, for the dashboard's page."""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from orchestrator.dashboard.web import HOST, Server

#: Would break a page that reads it, in each way that a page can read text.
MARKUP = '<img src=x onerror="document.body.dataset.broken=1"></script><b>\'&amp;'
STEPS = (
    ("power", 0.0, 1.2, 0), ("dhcp", 1.2, 3.1, 0), ("loader", 4.3, 2.0, 1_048_576),
    ("kernel", 6.3, 1.4, 9_100_000), ("layer:base", 9.0, 14.5, 412_000_000),
    ("layer:python", 9.0, 31.0, 1_600_000_000), ("sshd", 41.0, 2.2, 0), ("ready", 43.2, 21.0, 0),
)  # fmt: skip


def node(name: str, state: str = "up", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "role": "compute", "address": "10.77.0.10", "state": state, "power": "on",
        "heard_s": 0.8, "system": "running", "ray": "1 accelerators", "lines": ["7 active"],
        "boot": "ready, 64 s", "memory_bytes": 11.2 * 2**30,
        "steps": [
            {"step": step, "status": "done", "at_s": at, "seconds": took, "bytes": size, "text": ""}
            for step, at, took, size in STEPS
        ],
        "busy": [round(55 + 30 * math.sin(each / 3)) for each in range(30)],
        "sensors": [
            {"name": "NVIDIA 0", "unit": "% GPU busy", "value": 93.0},
            {"name": "NVIDIA 0", "unit": "GPU bytes", "value": 71 * 2**30},
            {"name": "NVIDIA 0", "unit": "W", "value": 412.5},
        ],
        **more,
    }  # fmt: skip


def link(a: str, b: str, share: float, rate: float = 117.5e6) -> dict[str, Any]:
    ends = [{"node": each, "card": "lan0", "sent": share * rate, "received": share * rate / 2}
            for each in (a, b)]  # fmt: skip
    return {"network": "lan", "ends": ends, "bytes_per_s": rate, "latency_s": 58e-6,
            "now_bytes_per_s": share * rate, "share": share}  # fmt: skip


def check(name: str, *, ok: bool, severity: str = "failure") -> dict[str, Any]:
    return {"name": name, "node": "compute1", "ok": ok, "expected": "active", "seen": "failed",
            "look": "on {node}: journalctl -b", "severity": severity, "ran": True}  # fmt: skip


def document(**more: Any) -> dict[str, Any]:
    phase = {
        "phase": "decode", "measured_s": 0.0172, "low_s": 0.0125, "high_s": 0.0153,
        "parts": {"memory": 0.006, "link latency": 0.0045, "host": 0.002, "engine": 0.0014},
        "unexplained_s": 0.0033, "cause": "link latency", "basis": "modelled",
        "why": "32% of the predicted time",
    }  # fmt: skip
    first = {**phase, "phase": "prefill", "measured_s": 0.21, "low_s": 0.15, "high_s": 0.26,
             "parts": {"compute": 0.14, "link bandwidth": 0.06}, "unexplained_s": -0.01,
             "cause": "compute", "why": "70% of the predicted time"}  # fmt: skip
    run = {"id": "20261130T101500Z", "state": "complete", "note": "", "model": "m",
           "layout": "tensor 2, pipeline 1", "tpot_s": 0.0171, "tokens_per_s": 412.0,
           "load": "32 at once", "forecasts": 18, "off": 0.07}  # fmt: skip
    forecast = {"workload": "single stream", "load": "1 at once, 1024 + 896 tokens",
                "tokens_per_s": [58.0, 51.0, 66.0], "ttft_s": [0.11, 0.1, 0.13],
                "tpot_s": [0.0171, 0.0155, 0.019], "origin": "measured here",
                "measured_tokens_per_s": 56.2}  # fmt: skip
    made = {
        "time": time.time(), "form": 1, "name": "lab", "machines": "real",
        "model": "Mistral-Small", "layout": "tensor 2, pipeline 1, on 2 of 2 accelerators",
        "endpoint": "http://10.77.0.1:8080/v1", "image": "pxe-0.1 069170ce9230",
        "state": "degraded", "text": "It serves Mistral-Small. No answer: compute1.", "next": "",
        "warnings": [["unknown machine", f"add it to compute_nodes:\n- name: {MARKUP}"]],
        "load": {
            "running": 8, "waiting": 3, "cache": 0.41, "tokens_per_s": 388.2,
            "prompt_tokens_per_s": 2210.0, "requests_per_s": 1.75, "ttft_s": 0.213,
            "tpot_s": 0.0172, "tokens": [380 + 40 * math.sin(each) for each in range(30)],
            "at_once": [8 - (each % 3) for each in range(30)],
        },
        "limits": {"text": "", "phases": [first, phase], "load": "8 at once, 512 + 128 tokens"},
        "nodes": [
            node("control", role="control", sensors=[], ray="head"),
            node("compute0"),
            node("compute1", "no answer", heard_s=14.0, lines=["SSH does not answer"]),
            node(MARKUP, "starting", lines=[MARKUP], busy=[], sensors=[]),
        ],
        "links": [link("control", "compute0", 0.02), link("compute0", "compute1", 0.71),
                  link(MARKUP, "compute1", 0.2)],
        "checks": {
            "ok": False, "summary": "22 of 24 checks passed, 1 warning", "failed": 1,
            "list": [check("units", ok=False), check(MARKUP, ok=False, severity="warning"),
                     *(check(f"check {each}", ok=True) for each in range(8))],
            "all": "orchestrate verify",
        },
        "forecasts": [forecast, {**forecast, "workload": MARKUP, "measured_tokens_per_s": None}],
        "runs": [run, {**run, "id": "20261129T090000Z", "state": "marked", "note": MARKUP}],
        "events": [{"time": time.time() - 14, "what": "compute1", "state": "no answer"}],
        "sources": [
            {"name": "power", "age_s": 1.2, "problem": "", "every_s": 5},
            {"name": "compute1", "age_s": 74.0, "problem": f"no answer: {MARKUP}", "every_s": 60},
        ],
        "bench": "orchestrate bench run",
    }  # fmt: skip
    return {**made, **more}


@contextmanager
def served(document: Any, port: int = 0, secret: str = "") -> Iterator[Server]:
    """The real server of a document, or of a function that returns it."""
    server = Server(document if callable(document) else lambda: document, port, secret)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request as it is written, path and all: status, headers, body."""
    client = http.client.HTTPConnection(HOST, server.server_address[1], timeout=30)
    try:
        client.request(method, path, headers=headers)
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        client.close()


def data(server: Server) -> Any:
    return json.loads(asked(server, f"/{server.secret}/data")[2])
