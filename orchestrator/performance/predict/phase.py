"""The duration of one engine step, by parts.

Reading weights and computing overlap, so the larger of the two counts (Williams, Waterman,
Patterson, "Roofline", 2009). All other parts are added. The messages are those of vLLM 0.30.0. With
tensor parallelism: two all-reduces per layer (after attention and after the MLP: models/llama.py),
one for the embedding (layers/vocab_parallel_embedding.py), one all-gather of logits
(layers/logits_processor.py). Per border between stages: one message with metadata and two tensors,
hidden states and residual (v1/worker/gpu_worker.py), and the sampled tokens back.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from orchestrator.performance.predict.layout import Parallelism
from orchestrator.performance.predict.links import Cost, LinkRate, all_gather, all_reduce, send
from orchestrator.performance.predict.rates import Rates
from orchestrator.performance.predict.shape import ModelShape

#: Messages per border between stages: two tensors, metadata of each, and the sampled tokens.
BORDER_OPERATIONS = 5
#: Bytes of a sampled token.
TOKEN_BYTES = 8


class Cause(StrEnum):
    """What a time is spent on."""

    COMPUTE = "compute"
    MEMORY = "memory"
    LINK_LATENCY = "link latency"
    LINK_BANDWIDTH = "link bandwidth"
    SCHEDULING = "scheduling"
    HOST = "host"
    ENGINE = "engine"
    LONG_PREFILL = "long prefill"
    BATCH_LIMIT = "batch limit"
    SLOW_NODE = "slow node"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Parts:
    """Seconds by cause. ``compute_s`` and ``memory_s`` overlap.

    ``host_s``: host work that the device waits for, communication library included. ``prefill_s``:
    other requests' prompts, and for a whole request its own prompt too. ``queue_s``: waiting until
    fewer than ``max-num-seqs`` requests run. ``engine_s``: measured with the engine itself, beyond
    all that formulas say.
    """

    compute_s: float = 0.0
    memory_s: float = 0.0
    link_latency_s: float = 0.0
    link_bandwidth_s: float = 0.0
    scheduling_s: float = 0.0
    host_s: float = 0.0
    prefill_s: float = 0.0
    queue_s: float = 0.0
    engine_s: float = 0.0

    @property
    def device_s(self) -> float:
        """The device's seconds: the larger of the two that overlap."""
        return max(self.compute_s, self.memory_s)

    @property
    def seconds(self) -> float:
        return self.device_s + sum(self.added().values())

    def added(self) -> dict[Cause, float]:
        """The parts that are added to the device's time, by cause."""
        return {
            Cause.LINK_LATENCY: self.link_latency_s,
            Cause.LINK_BANDWIDTH: self.link_bandwidth_s,
            Cause.SCHEDULING: self.scheduling_s,
            Cause.HOST: self.host_s,
            Cause.LONG_PREFILL: self.prefill_s,
            Cause.BATCH_LIMIT: self.queue_s,
            Cause.ENGINE: self.engine_s,
        }

    def shares(self) -> dict[Cause, float]:
        """The parts that add up to ``seconds``, by cause; of the two that overlap, the larger."""
        bound = Cause.COMPUTE if self.compute_s > self.memory_s else Cause.MEMORY
        return {bound: self.device_s, **self.added()}

    @property
    def bound(self) -> Cause:
        shares = self.shares()
        return max(shares, key=lambda cause: shares[cause])

    def times(self, factor: float) -> Parts:
        return Parts(*(getattr(self, each.name) * factor for each in fields(self)))

    def plus(self, **more: float) -> Parts:
        """A copy with seconds added to some parts."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Parts(**{name: value + more.get(name, 0.0) for name, value in values.items()})


@dataclass(frozen=True)
class Work:
    """A step's work: ``tokens`` new tokens in all, ``sequences`` sampled ones. A new token has
    ``context`` tokens before it on average. ``prompts``: whether the tokens are prompts'."""

    tokens: float
    sequences: float
    context: float
    prompts: bool = False


def step(
    shape: ModelShape,
    layout: Parallelism,
    rates: Rates,
    work: Work,
    in_flight: float = 1.0,
    launched: float = 1.0,
) -> Parts:
    """One step of one batch through all stages.

    ``in_flight``: the number of batches that share the engine. If scheduling all of them takes
    longer than one batch's way through the stages, the scheduling time counts. ``launched``: how
    many steps the host launches until this one's result is back.
    """
    compute_s, memory_s = device(shape, layout, rates, work)
    messages = traffic(shape, layout, rates, work)
    operations = shape.layers * rates.engine.per_layer_operations
    if rates.tensor_nodes > 1:
        operations += all_reduces(shape) * rates.engine.per_message_operations
    launches = (operations + rates.borders * BORDER_OPERATIONS) * rates.operation_s * launched
    if not rates.synchronous:
        # The host runs ahead of the device and its messages, which are in the same queue: they wait
        # only for the excess over their own time.
        launches = max(0.0, launches - max(compute_s, memory_s) - messages.seconds)
    scheduling = rates.engine.step_s + rates.engine.per_sequence_s * work.sequences
    parts = Parts(
        compute_s=compute_s,
        memory_s=memory_s,
        link_latency_s=messages.latency_s,
        link_bandwidth_s=messages.bandwidth_s,
        scheduling_s=scheduling,
        host_s=launches + messages.library_s,
    )
    return parts.plus(scheduling_s=max(0.0, in_flight * scheduling - parts.seconds))


def device(shape: ModelShape, layout: Parallelism, rates: Rates, work: Work) -> tuple[float, float]:
    """Seconds of computing and of reading memory, which overlap.

    For dense models that are not quantized, the time of matrix products was measured, and the
    roofline only says which of the two it counts as. Attention's share is added then, since it is a
    separate operation.
    """
    flops, read = rates.flops(shape.dtype), rates.memory_bytes_per_s
    compute_s = shape.flops(work.tokens, work.context, work.sequences) / layout.tensor / flops
    weights = shape.bytes_read(work.tokens, layout.tensor)
    cache_s = work.sequences * shape.cache_read(work.context, layout.tensor) / read
    head = shape.head_weights * shape.dtype_bytes / layout.tensor
    layers_s = rates.product_s(weights - head, work.tokens)
    head_s = rates.product_s(head, work.sequences)
    if not shape.plain or layers_s is None or head_s is None:
        return compute_s, weights / read + cache_s
    measured = layers_s + head_s
    products_s = shape.flops(work.tokens, 0, work.sequences) / layout.tensor / flops
    slower = measured / max(products_s, weights / read)
    attention_s = compute_s - products_s
    if products_s > weights / read:
        return products_s * slower + attention_s + cache_s, weights / read + cache_s
    return compute_s, weights / read * slower + cache_s + attention_s


def traffic(shape: ModelShape, layout: Parallelism, rates: Rates, work: Work) -> Cost:
    """The cost of all messages of a step that are on its critical path."""
    if rates.link is None:
        return Cost()
    hidden = work.tokens * shape.hidden * shape.dtype_bytes
    cost = _to_workers(rates.link)
    if rates.tensor_nodes > 1:
        nodes = rates.tensor_nodes
        each = all_reduce(nodes, hidden, rates.link, rates.all_reduce)
        logits = work.sequences * shape.vocabulary * shape.dtype_bytes
        cost = cost.plus(each.times(all_reduces(shape)))
        cost = cost.plus(all_gather(nodes, logits, rates.link, rates.all_reduce))
    if rates.borders:
        # With tensor parallelism, each rank sends its slice over the same link, so the bytes are
        # the same. Only the last of a border's messages is waited for: latency counts once.
        border = send(2 * hidden, rates.link, rates.send)
        cost = cost.plus(border.times(rates.borders))
        cost = cost.plus(send(work.sequences * TOKEN_BYTES, rates.link, rates.send))
    return cost


def all_reduces(shape: ModelShape) -> int:
    """The number of all-reduces in a step with tensor parallelism."""
    return 2 * shape.layers + 1


def _to_workers(link: LinkRate) -> Cost:
    """The cost of the engine's message to workers on other nodes, once per step."""
    return Cost(latency_s=link.latency_s)
