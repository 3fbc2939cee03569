"""Runs on a node of somebody's cluster: print what Ray knows as JSON (ray.RayCluster).

    PYTHON node_ray.py ADDRESS...     ADDRESS: of Ray's head, as its processes say

PYTHON is vLLM's own, since Ray answers its own version only. The tables of the head are read: no
driver is started, nothing is written. Python 3.9 or later. The token is read where Ray's processes
have it, if this user may; it stays here. The program is sent within reach.AROUND.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

#: How much of anything is told.
MOST, MOST_TEXT = 512, 300
#: Processes of Ray, and their variables that let in: the first one that says them counts.
OF_RAY = re.compile(r"raylet|gcs_server")
AUTH = re.compile(r"(RAY_AUTH_\w+)=(.*)", re.DOTALL)
#: Resources that say nothing of accelerators.
PLAIN = re.compile(r"(object_store_)?memory$|node:")
#: Actors that hold a rank of vLLM, and its engines, which hold one where they have no workers.
RANK = re.compile(r"RayWorker|EngineCoreActor")

Facts = dict[str, Any]


def let_in() -> None:
    """Take what lets Ray's own processes in."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if not OF_RAY.search(process.joinpath("cmdline").read_text(errors="replace")):
                continue
            words = process.joinpath("environ").read_text(errors="replace").split("\0")
        except OSError:
            continue
        for found in filter(None, map(AUTH.fullmatch, words)):
            os.environ.setdefault(found[1], found[2])


def connected(address: str) -> Any:
    """Ray's tables, by the classes that `ray status` and `ray.nodes()` use themselves."""
    from ray._private.state import GlobalState  # type: ignore[import-not-found]
    from ray._raylet import GcsClientOptions  # type: ignore[import-not-found]

    state = GlobalState()
    if hasattr(GcsClientOptions, "create"):
        options = GcsClientOptions.create(
            address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True
        )
    else:  # before 2.10
        options = GcsClientOptions.from_gcs_address(address)
    state._initialize_global_state(options)
    return state


def facts(address: str) -> Facts:
    import ray  # type: ignore[import-not-found]

    state = connected(address)
    actors = [each for each in state.actor_table(None).values() if each["State"] == "ALIVE"]
    ranks = [each for each in actors if RANK.search(str(each.get("ActorClassName", "")))]
    return {
        "address": address,
        "version": str(ray.__version__)[:MOST_TEXT],
        "nodes": [node(each) for each in state.node_table()][:MOST],
        "ranks": [rank(each) for each in ranks][:MOST],
        "drivers": {
            str(each["JobID"]): [str(each["DriverIPAddress"]), int(each["DriverPid"])]
            for each in state.job_table()
            if not each.get("IsDead")
        },
    }


def node(each: Facts) -> Facts:
    resources = {str(k): float(v) for k, v in (each.get("Resources") or {}).items()}
    return {
        "id": str(each["NodeID"]),
        "address": str(each["NodeManagerAddress"])[:MOST_TEXT],
        "hostname": str(each.get("NodeManagerHostname", ""))[:MOST_TEXT],
        "alive": bool(each.get("Alive", each.get("alive"))),
        "head": "node:__internal_head__" in resources,
        "resources": {k[:MOST_TEXT]: v for k, v in resources.items() if not PLAIN.match(k)},
        "reason": str(each.get("DeathReasonMessage") or "")[:MOST_TEXT],
    }


def rank(each: Facts) -> Facts:
    where = each.get("Address") or {}
    return {
        "what": str(each["ActorClassName"])[:MOST_TEXT],
        "node": str(where.get("NodeID", "")),
        "address": str(where.get("IPAddress", ""))[:MOST_TEXT],
        "pid": int(each.get("Pid") or 0),
        "job": str(each.get("JobID", ""))[:MOST_TEXT],
    }


def why(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"[:MOST_TEXT]


def main(addresses: list[str]) -> None:
    let_in()
    found = []
    for address in addresses:
        try:
            found.append(facts(address))
        except Exception as error:
            found.append({"address": address, "error": why(error)})
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
