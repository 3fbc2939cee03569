"""The cost of one step of vLLM beside the device's work.

Scheduling, handing work to workers and returning tokens are Python on the host. Their times depend
on the host and on vLLM's version, so they are fitted to runs on one node if there are any
(``calibration``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Engine:
    """The engine's constants, in seconds but for ``per_layer_operations``.

    ``step_s``: per step. ``per_sequence_s``: per step, for each sequence in it. ``request_s``: per
    request (HTTP, tokenizer, first answer). ``per_token_s``: per prompt token, beyond the device's
    rates. ``per_layer_operations``: device operations per layer; for a Llama layer in vLLM 0.30 two
    norms, four linear layers, rotation, cache write, attention, activation, and two to four for
    buffers. ``fitted``: names of the constants that were measured; the others are assumed.
    """

    step_s: float = 4e-3
    per_sequence_s: float = 1e-4
    request_s: float = 1e-2
    per_token_s: float = 0.0
    per_layer_operations: float = 14.0
    fitted: frozenset[str] = frozenset()

    @property
    def assumed(self) -> tuple[str, ...]:
        """The names of the constants that were not measured on this cluster."""
        names = (each.name for each in fields(self) if each.name != "fitted")
        return tuple(name for name in names if name not in self.fitted)
