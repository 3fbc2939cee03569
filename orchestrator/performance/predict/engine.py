"""The cost of one step of vLLM beside the device's work.

Scheduling, handing work to workers and returning tokens are Python on the host. Their times depend
on the host and on vLLM's version: they are assumed, until the engine itself was measured
(``measured``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Engine:
    """The engine's constants, in seconds but for the two numbers of operations.

    ``step_s``: per step. ``per_sequence_s``: per step, for each sequence in it. ``request_s``: per
    request (HTTP, tokenizer, first answer). ``per_layer_operations``: device operations per layer;
    for a Llama layer in vLLM 0.30 two norms, four linear layers, rotation, cache write, attention,
    activation, and two to four for buffers. ``per_message_operations``: so many operations take as
    long as launching one collective between nodes.
    """

    step_s: float = 4e-3
    per_sequence_s: float = 1e-4
    request_s: float = 1e-2
    per_layer_operations: float = 14.0
    per_message_operations: float = 0.0


def assumed(*, synchronous: bool, eager: bool) -> Engine:
    """The constants where nothing was measured. ``synchronous``: the device is a processor;
    ``eager``: the host launches each operation, without graphs.

    On a card vLLM's Python costs more than the probe's bare operation: as much as 30 of them a
    layer, and 8 a collective (vLLM 0.26 on an H200; docs/explanation/performance-model.md).
    """
    if synchronous:
        return Engine()
    layer, message = (30.0, 8.0) if eager else (2.0, 1.0)
    return replace(Engine(), per_layer_operations=layer, per_message_operations=message)
