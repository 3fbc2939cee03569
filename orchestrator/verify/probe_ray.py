"""Runs on the control node with Ray's environment: print Ray's facts as JSON (facts.RayFacts).

Asks the control store directly: under a second, where joining the cluster takes several and the
state API needs the dashboard. Its one argument is the store's ADDRESS:PORT.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

#: Classes of the actors that vLLM's two Ray executors start, one a rank.
WORKERS = ("RayWorkerProc", "RayWorkerWrapper")
HEAD = "node:__internal_head__"
#: Seconds for a node's raylet to answer.
TIMEOUT = 2.0


def summary(nodes: list[dict[str, Any]], actors: list[dict[str, Any]]) -> dict[str, object]:
    """What matters of Ray's node and actor tables."""
    return {
        "nodes": [
            {
                "id": node["NodeID"],
                "address": node["NodeManagerAddress"],
                "head": HEAD in node["Resources"],
                "accelerators": node["Resources"].get("GPU", 0),
            }
            for node in nodes
            if node["Alive"]
        ],
        "workers": [
            {"name": actor["Name"], "address": actor["Address"]["IPAddress"]}
            for actor in actors
            if actor["State"] == "ALIVE" and actor["ActorClassName"] in WORKERS
        ],
    }


def answers(node: dict[str, Any]) -> bool:
    """Whether a node's raylet is there. The store believes in one that has ended for some 20 s, and
    a head that restarts finds in its tables the one that it was."""
    try:
        where = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(where, TIMEOUT).close()
    except OSError:
        return False
    return True


def tables(address: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from ray._private.state import GlobalState  # type: ignore[import-not-found, unused-ignore]
    from ray._raylet import GcsClientOptions  # type: ignore[import-not-found, unused-ignore]

    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(
            address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
        )
    )
    nodes = [node for node in state.node_table() if node["Alive"] and answers(node)]
    return nodes, list(state.actor_table(None).values())


if __name__ == "__main__":
    print(json.dumps(summary(*tables(sys.argv[1]))))
