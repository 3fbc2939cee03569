"""Which of Ray's nodes count: those whose raylet is there, whatever the store believes."""

from __future__ import annotations

import socket

from orchestrator.verify.probe_ray import answers


def test_a_raylet_that_has_ended_does_not_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": raylet.getsockname()[1]}
        assert answers(node)
    assert not answers(node)
