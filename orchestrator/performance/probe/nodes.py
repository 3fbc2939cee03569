"""Nodes of our own, as probes see them: programs (node_*.py) that run there, and print JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.cluster import Cluster
from orchestrator.core.errors import UserError
from orchestrator.node.guard import LATE
from orchestrator.node.paths import WITH_ENVIRONMENT
from orchestrator.node.programs import PYTHON, environment, guarded
from orchestrator.profile import Node

#: The node kills a hanging program so many seconds before this side's timeout.
GRACE = 10.0


@dataclass(frozen=True)
class OurNode:
    """A `ProbedNode`. Whatever is run there raises UserError if it fails, prints no JSON, or takes
    longer than its seconds; then it has been killed with all its descendants."""

    cluster: Cluster
    node: Node

    @property
    def name(self) -> str:
        return self.node.name

    def address(self, network: str) -> str:
        return str(self.node.links[network].address)

    def plain(self, program: str, words: Sequence[str], seconds: float) -> Any:
        return self._run([PYTHON, "-I", "-", *words], program, seconds, source(program))

    def with_torch(self, program: str, asked: Mapping[str, Any], seconds: float) -> Any:
        variables = environment(self.cluster.profile, self.node).items()
        argv = ["env", *(f"{k}={v}" for k, v in variables), WITH_ENVIRONMENT, PYTHON, "-"]
        return self._run([*argv, json.dumps(asked)], program, seconds, source(program))

    def given(self, program: str, text: str, seconds: float) -> Any:
        """Run a program's whole ``text``, which holds what it is given."""
        return self._run([PYTHON, "-I", "-"], program, seconds, text)

    def _run(self, argv: Sequence[str], program: str, seconds: float, text: str) -> Any:
        """Run a program from standard input; return the JSON in its last line of output."""
        limit = seconds - GRACE
        with self.cluster.driver.network():
            result = self.cluster.remote(self.node).run(
                guarded(limit, argv),
                what=f"the probe {program}",
                stdin=text,
                timeout=seconds + GRACE,
                ok=None,
            )
        if result.code == LATE:
            raise UserError(
                f"{self.name}: {program}: timed out after {limit:g} s; killed",
                f"By hand, there: {shlex.join(argv)} <{program}.py",
            )
        if result.code != 0:
            last = (result.err.strip() or f"exit code {result.code}, no output").splitlines()[-1]
            raise UserError(f"{self.name}: {last}")
        try:
            # Libraries may print other lines before.
            return json.loads(result.out.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise UserError(
                f"{self.name}: {program} printed no figures: {result.out[-200:]!r}"
            ) from None


def source(program: str) -> str:
    return Path(__file__).with_name(f"{program}.py").read_text(encoding="utf-8")
