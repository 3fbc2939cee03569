"""What vLLM's own classes said of a model, where its Python was at hand (attach/classes.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EngineSays:
    """One vLLM's answer. ``experts``: of the parameters, those of experts. ``failed``: what it
    could not make, and ``why``; what it made before is known all the same."""

    where: str
    vllm: str
    platform: str
    parameters: int | None = None
    experts: int = 0
    weight_bytes: int | None = None
    growing: float | None = None
    windows: Mapping[int, float] = field(default_factory=dict)
    state: int = 0
    failed: str = ""
    why: str = ""

    @classmethod
    def of(cls, where: str, said: Mapping[str, Any]) -> EngineSays:
        """Raises TypeError, ValueError or AttributeError where it is no answer."""
        cache = dict(said.get("cache") or {})
        numbers = {name: int(said[name]) for name in ("parameters", "experts", "weight_bytes")
                   if said.get(name) is not None}  # fmt: skip
        return cls(
            where=where, vllm=str(said["vllm"]), platform=str(said["platform"]),
            growing=float(cache["growing"]) if cache else None,
            windows={int(size): float(each) for size, each in cache.get("windows", {}).items()},
            state=int(cache.get("state", 0)),
            failed=str(said.get("stage") or ""), why=str(said.get("why") or ""), **numbers,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """As an origin of figures."""
        return f"vLLM {self.vllm} ({self.where})"

    @property
    def as_processor(self) -> bool:
        """A build for accelerators that found none answers for the processor: what it refuses there
        it may serve on its own devices."""
        return self.platform == "cpu" and "cpu" not in self.vllm

    @property
    def refused(self) -> str:
        """Why it does not take the model; empty where it does, or where that is not known."""
        refuses = self.failed == "configuration" and not self.as_processor
        return f"{self.name} refuses it: {self.why}" if refuses else ""

    @property
    def unread(self) -> str:
        """What it could not tell."""
        if not self.failed or self.refused:
            return ""
        return f"{self.name}, on {self.platform}, could not make the {self.failed}: {self.why}"

    def document(self) -> dict[str, Any]:
        return {
            "where": self.where, "vllm": self.vllm, "platform": self.platform,
            "parameters": self.parameters, "weight_bytes": self.weight_bytes,
            "growing_bytes_per_token": self.growing,
            "windows": {str(size): each for size, each in self.windows.items()},
            "state_bytes_per_request": None if self.growing is None else self.state,
            "failed": self.failed or None, "why": self.why or None,
        }  # fmt: skip
