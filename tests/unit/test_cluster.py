"""What a cluster's verbs share: one of them at a time, and the way to the endpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster.cluster import Cluster
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.node.trust import Secret


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of a cluster as these need: the rest takes a built image."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    paths.cluster("small").mkdir(parents=True)
    return SimpleNamespace(
        profile=SimpleNamespace(name="small"),
        endpoint="http://10.0.0.1:8080",
        trust=SimpleNamespace(api_key=Secret("the key")),
    )


def test_a_second_verb_is_refused_with_the_first_ones_name(cluster: Any) -> None:
    with (
        Cluster.locked(cluster, "up"),
        pytest.raises(UserError, match="being changed by 'orchestrate up'"),
        Cluster.locked(cluster, "down"),
    ):
        pass
    with Cluster.locked(cluster, "down"):
        pass


def test_the_key_goes_to_the_endpoint_and_through_no_proxy(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    with Cluster.client(cluster) as one:
        for client in (one, Cluster.client_for_load(cluster)):
            assert client.headers["Authorization"] == "Bearer the key"
            assert not client.trust_env
