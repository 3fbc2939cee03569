"""What the probes' programs make of the times that they took; test_probe.py runs them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from orchestrator.performance.probe import node_link


def test_latency_is_half_of_a_round_trip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = SimpleNamespace(sendall=lambda _: None)
    monkeypatch.setattr(node_link, "connected", lambda *_: nullcontext(connection))
    monkeypatch.setattr(node_link, "prepare", lambda _: None)
    monkeypatch.setattr(node_link, "exchanges", lambda *_: iter([0.010]))
    monkeypatch.setattr(node_link, "stream", lambda _: 1e9)
    node_link.ask("there", 1, "here", [256])
    found = json.loads(capsys.readouterr().out)
    assert set(found["latency_s"]) == {0.005}
    assert found["by_size_s"] == {"256": [0.005]}  # without the answer's way back
