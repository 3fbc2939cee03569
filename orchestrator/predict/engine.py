"""What one step of vLLM costs beside the device's work, and how that is found on one node.

Scheduling, handing work to workers and bringing tokens out are Python on the host. Their times
depend on the host and on vLLM's version, so they are fitted to runs on one node where there are
any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace


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


@dataclass(frozen=True)
class Sample:
    """A run on one node, with one device: what was measured, beside what the device alone takes.

    ``device_ttft_s`` and ``device_tpot_s``: predicted with an engine that costs nothing.
    ``operations_s``: what the operations of all layers take.
    """

    prompt_tokens: int
    concurrency: float
    ttft_s: float
    tpot_s: float
    device_ttft_s: float
    device_tpot_s: float
    operations_s: float


def calibrate(samples: Sequence[Sample], start: Engine | None = None) -> Engine:
    """The engine that fits the samples best, by least squares; no constant is negative.

    Time per token beyond the device's and its operations: step_s + per_sequence_s * concurrency,
    the second only where concurrency differs. Time to the first token beyond that: request_s +
    per_token_s * prompt tokens, likewise. Where even the operations are more than was measured,
    fewer are taken. Without samples: ``start``.
    """
    engine = start or Engine()
    if not samples:
        return engine
    engine = replace(engine, per_layer_operations=_operations(samples, engine))
    share = engine.per_layer_operations / (start or Engine()).per_layer_operations
    names = {"step_s", "request_s"}
    beyond = [each.tpot_s - each.device_tpot_s - share * each.operations_s for each in samples]
    running = [float(each.concurrency) for each in samples]
    step, per_sequence = line(running, beyond)
    if len(set(running)) > 1:
        names.add("per_sequence_s")
    else:
        per_sequence = min(engine.per_sequence_s, beyond[0] / running[0]) if beyond[0] > 0 else 0.0
        step = max(step - per_sequence * running[0], 0.0)
    first = [
        each.ttft_s - each.device_ttft_s - share * each.operations_s - step - per_sequence * many
        for each, many in zip(samples, running, strict=True)
    ]
    prompts = [float(each.prompt_tokens) * each.concurrency for each in samples]
    request, per_token = line(prompts, first)
    if len(set(prompts)) > 1:
        names.add("per_token_s")
    return replace(
        engine,
        step_s=step,
        per_sequence_s=per_sequence,
        request_s=request,
        per_token_s=per_token,
        fitted=frozenset(names),
    )


def _operations(samples: Sequence[Sample], engine: Engine) -> float:
    """Operations a layer: as assumed, or as few as fit the quickest sample."""
    shares = [
        max(each.tpot_s - each.device_tpot_s, 0.0) / each.operations_s
        for each in samples
        if each.operations_s > 0
    ]
    return engine.per_layer_operations * min(1.0, *shares) if shares else 0.0


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The line a + b x with the least squares of its distances, of those with a, b >= 0.

    With equal ``x`` the slope is 0. (Non-negative least squares in two unknowns: if the free
    solution has a negative one, the best has a zero: Lawson and Hanson, 1974, chapter 23.)
    """
    count = len(x)
    mean_x, mean_y = sum(x) / count, sum(y) / count
    spread = sum((each - mean_x) ** 2 for each in x)
    level = (max(mean_y, 0.0), 0.0)
    if not spread:
        return level
    slope = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True)) / spread
    free = (mean_y - slope * mean_x, slope)
    if min(free) >= 0:
        return free
    through = max(sum(p * q for p, q in zip(x, y, strict=True)) / sum(p * p for p in x), 0.0)

    def squares(a: float, b: float) -> float:
        return sum((q - a - b * p) ** 2 for p, q in zip(x, y, strict=True))

    return min((level, (0.0, through)), key=lambda found: squares(*found))
