"""What one step of vLLM costs beside the device's work.

Scheduling, handing work to workers and bringing tokens out are Python on the host. Their times
depend on the host and on vLLM's version, so they are fitted to runs on one node where there are
any (``calibration``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Engine:
    """``step_s``: of a step, whatever is in it; ``per_sequence_s``: more of each sequence in it;
    ``request_s``: of a request: HTTP, tokens, the first answer; ``per_token_s``: more of each token
    of a prompt than the device's rates say. ``per_layer_operations``: how many operations of the
    device a layer needs: of vLLM 0.30's Llama layer two norms, four linear layers, rotation, the
    cache's write, attention, activation, and two to four for buffers. ``fitted``: those that were
    measured; the others are assumed."""

    step_s: float = 4e-3
    per_sequence_s: float = 1e-4
    request_s: float = 1e-2
    per_token_s: float = 0.0
    per_layer_operations: float = 14.0
    fitted: frozenset[str] = frozenset()

    @property
    def assumed(self) -> tuple[str, ...]:
        """The constants that nobody measured on this cluster."""
        names = (each.name for each in fields(self) if each.name != "fitted")
        return tuple(name for name in names if name not in self.fitted)
