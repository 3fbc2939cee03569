"""Run this directory's programs (node_*.py) on nodes. Each has a timeout and prints JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import UserError
from orchestrator.node.guard import LATE
from orchestrator.node.paths import WITH_ENVIRONMENT
from orchestrator.node.programs import PYTHON, environment, guarded

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.profile import Node

#: The node kills a hanging program so many seconds before this side's timeout.
GRACE = 10.0


def state(cluster: Cluster, node: Node, *words: str) -> Any:
    """The output of `node_state.py` on a node. Raises UserError as `_run` does."""
    return _run(cluster, node, [PYTHON, "-I", "-", *words], "node_state", 30.0)


def plain(cluster: Cluster, node: Node, program: str, words: Sequence[str], timeout: float) -> Any:
    """Run a program that needs the standard library only; return its output."""
    return _run(cluster, node, [PYTHON, "-I", "-", *words], program, timeout)


def with_torch(
    cluster: Cluster, node: Node, program: str, asked: Mapping[str, Any], timeout: float
) -> Any:
    """Run a program in vLLM's environment on that node; return its output."""
    variables = (f"{k}={v}" for k, v in environment(cluster.profile, node).items())
    argv = ["env", *variables, WITH_ENVIRONMENT, PYTHON, "-", json.dumps(asked)]
    return _run(cluster, node, argv, program, timeout)


def as_service(
    cluster: Cluster, node: Node, program: str, asked: Mapping[str, Any], timeout: float
) -> Any:
    """The same as the account that vLLM has there, with its groups and no further rights."""
    user = cluster.profile.users.service
    variables = (f"{k}={v}" for k, v in environment(cluster.profile, node).items())
    argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs"]
    argv += ["env", "-C", "/", *variables, WITH_ENVIRONMENT, PYTHON, "-", json.dumps(asked)]
    with cluster.driver.network():
        return _run(cluster, node, argv, program, timeout)


def given(cluster: Cluster, node: Node, program: str, text: str, timeout: float) -> Any:
    """Run a program's whole ``text``, which holds what it is given; return its output."""
    return _run(cluster, node, [PYTHON, "-I", "-"], program, timeout, text)


def _run(
    cluster: Cluster,
    node: Node,
    argv: Sequence[str],
    program: str,
    timeout: float,
    text: str | None = None,
) -> Any:
    """Run a program from standard input; return the JSON in its last line of output.

    Raises UserError if it fails, prints no JSON, or exceeds the timeout. Then it has been killed
    with all its descendants.
    """
    limit = timeout - GRACE
    result = cluster.remote(node).run(
        guarded(limit, argv),
        what=f"the probe {program}",
        stdin=text or source(program),
        timeout=timeout + GRACE,
        ok=None,
    )
    if result.code == LATE:
        raise UserError(
            f"{node.name}: {program}: timed out after {limit:g} s; killed",
            f"By hand, there: {shlex.join(argv)} <{program}.py",
        )
    if result.code != 0:
        last = (result.err.strip() or f"exit code {result.code}, no output").splitlines()[-1]
        raise UserError(f"{node.name}: {last}")
    try:
        # Libraries may print other lines before.
        return json.loads(result.out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise UserError(
            f"{node.name}: {program} printed no figures: {result.out[-200:]!r}"
        ) from None


def source(program: str) -> str:
    """The text of a program of this directory."""
    return Path(__file__).with_name(f"{program}.py").read_text(encoding="utf-8")
