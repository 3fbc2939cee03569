"""Proofs, kept beside their run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.core.files import write_json
from orchestrator.performance.results.proof import Judgement, Proof

PROOFS = "proofs"
_LIST: TypeAdapter[list[Proof]] = TypeAdapter(list[Proof])


def file(cluster: str, run: str) -> Path:
    return paths.measured(cluster) / PROOFS / f"{run}.json"


def load(cluster: str, run: str) -> list[Proof]:
    """The proofs of a run. Raises BadInput where the file does not hold any."""
    path = file(cluster, run)
    if not path.is_file():
        return []
    try:
        return _LIST.validate_json(path.read_bytes())
    except ValidationError:
        raise BadInput(f"{path}: does not hold proofs", "Remove it, or restore it.") from None


def store(cluster: str, new: Sequence[Proof]) -> None:
    """Keep proofs beside their run. One of the same cause and phase is replaced, but not by one
    that could not be tried."""
    for proof in new:
        path = file(cluster, proof.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        same = (proof.workload, proof.phase, proof.cause)
        old = load(cluster, proof.run)
        kept = [each for each in old if (each.workload, each.phase, each.cause) != same]
        if proof.verdict is Judgement.NOT_TRIED and any(
            each.verdict is not Judgement.NOT_TRIED for each in old if each not in kept
        ):
            continue
        write_json(path, _LIST.dump_python([*kept, proof], mode="json"))
