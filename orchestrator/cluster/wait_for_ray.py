"""Runs on the model server's node: wait until Ray has enough accelerators, then run the server.

ADDRESS ACCELERATORS NODES COMMAND...: when Ray at ADDRESS has so many accelerators on NODES (their
addresses, with commas: one copy's), this process executes COMMAND. There is no deadline: the server
starts whenever its nodes are there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

#: Seconds for an answer of Ray, and between two questions.
TIMEOUT, PAUSE = 60.0, 3.0
#: Asked in a separate process: Ray's client exits if the head is gone.
QUESTION = """
import sys
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions
state = GlobalState()
state._initialize_global_state(GcsClientOptions.create(
    sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False))
print(sum(each["Resources"].get("GPU", 0) for each in state.node_table()
    if each["Alive"] and each["NodeManagerAddress"] in sys.argv[2].split(",")))
"""


def accelerators(address: str, nodes: str) -> float:
    """The number of accelerators of the nodes in Ray; 0 if it does not answer."""
    argv = [sys.executable, "-c", QUESTION, address, nodes]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        return float(done.stdout.split()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return 0.0


def main(address: str, wanted: float, nodes: str, command: list[str]) -> None:
    before = None
    while (found := accelerators(address, nodes)) < wanted:
        if found != before:
            print(f"waiting for Ray: {found:g} of {wanted:g} accelerators", flush=True)
        before = found
        time.sleep(PAUSE)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4:])
