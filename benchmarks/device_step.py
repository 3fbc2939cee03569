"""What a device reaches, and steps of Llama's layers on it, for benchmarks/device_model.py.

python benchmarks/device_step.py [JSON] >card.json
torchrun --nproc-per-node 2 benchmarks/device_step.py [JSON] >cards.json

On the machine with the devices, with any Python that has torch; nothing else is needed. JSON: a
list of models as their config.json names sizes. Random weights; torch's own operations one by one,
as vLLM has them without graphs. With several ranks the layers are spread over them, as by vLLM's
tensor parallelism.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
import torch.distributed as ranks  # type: ignore[import-not-found, unused-ignore]
from torch.nn import functional  # type: ignore[import-not-found, unused-ignore]
from torch.utils._python_dispatch import (  # type: ignore[import-not-found, unused-ignore]
    TorchDispatchMode,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "orchestrator/performance/probe"))
import node_collective  # type: ignore[import-not-found, unused-ignore]
import node_device  # type: ignore[import-not-found, unused-ignore]

#: Layers as Llama 3 has them, 8 B and 70 B; few, since all are alike.
SHAPES = [
    {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32},
    {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64},
]
COMMON = {"num_hidden_layers": 8, "num_key_value_heads": 8, "vocab_size": 32768}
#: Sequences, tokens of each that are new, and those that were before.
STEPS = (
    (1, 1, 512), (4, 1, 512), (16, 1, 512), (32, 1, 2048),
    (1, 128, 0), (1, 512, 0), (1, 2048, 0),
)  # fmt: skip
FIGURE_S = 2.0
#: Bytes of weights between two messages: as much as the probe takes at most.
BETWEEN = 64 << 20
TIMEOUT_S = 60
REPEATS = 20
#: As torchrun says.
os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # its ranks meet there only; ours by address
RANKS, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


class Llama:
    """Its layers and head, and a cache of keys and values that is full of other tokens."""

    def __init__(self, config: dict[str, int], on: str, dtype: torch.dtype) -> None:
        self.on, self.dtype, self.hidden = on, dtype, config["hidden_size"]
        self.size = self.hidden // config["num_attention_heads"]
        self.heads, self.kv_heads, wide = (
            config[name] // RANKS
            for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        )
        own, shared = self.heads * self.size, self.kv_heads * self.size

        def weights(rows: int, columns: int) -> torch.Tensor:
            drawn = torch.randn(128, columns, device=on).to(dtype) * 0.02
            return drawn.repeat(rows // 128, 1)

        self.layers = [
            (
                weights(own + 2 * shared, self.hidden),
                weights(self.hidden, own),
                weights(2 * wide, self.hidden),
                weights(self.hidden, wide),
            )
            for _ in range(config["num_hidden_layers"])
        ]
        self.head = weights(config["vocab_size"] // RANKS, self.hidden)
        self.norm = torch.ones(self.hidden, device=on, dtype=dtype)

    def cache(self, sequences: int, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shape = (sequences, self.kv_heads, tokens, self.size)
        one = torch.randn(shape, device=self.on).to(self.dtype)
        return [(one.clone(), one.clone()) for _ in self.layers]

    def step(
        self, inputs: torch.Tensor, cache: list[tuple[torch.Tensor, torch.Tensor]], before: int
    ) -> torch.Tensor:
        """Logits of each sequence's last token; inputs: [sequences, new tokens, hidden]."""
        sequences, new, _ = inputs.shape
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        angles = torch.arange(before, before + new, device=self.on).to(self.dtype)
        turn = torch.ones(self.size, device=self.on, dtype=self.dtype)
        cosine, sine = torch.cos(angles[:, None] * turn), torch.sin(angles[:, None] * turn)
        x = self.summed(inputs.clone())  # as an embedding's parts are
        for (in_w, out_w, up_w, down_w), (keys, values) in zip(self.layers, cache, strict=True):
            h = functional.rms_norm(x, (self.hidden,), self.norm)
            parts = functional.linear(h, in_w).view(sequences, new, -1, self.size).transpose(1, 2)
            q, k, v = parts.split(sizes, dim=1)
            q, k = (each * cosine + each.roll(self.size // 2, -1) * sine for each in (q, k))
            keys[:, :, before : before + new] = k
            values[:, :, before : before + new] = v
            seen = functional.scaled_dot_product_attention(
                q,
                keys[:, :, : before + new],
                values[:, :, : before + new],
                is_causal=new > 1,
                enable_gqa=True,
            )
            own = functional.linear(seen.transpose(1, 2).reshape(sequences, new, -1), out_w)
            x = x + self.summed(own)
            h = functional.rms_norm(x, (self.hidden,), self.norm)
            gate, up = functional.linear(h, up_w).chunk(2, dim=-1)
            x = x + self.summed(functional.linear(functional.silu(gate) * up, down_w))
        last = functional.rms_norm(x[:, -1], (self.hidden,), self.norm)
        logits = functional.linear(last, self.head)
        if RANKS == 1:
            return logits
        found = torch.empty(RANKS, *logits.shape, dtype=self.dtype, device=self.on)
        ranks.all_gather_into_tensor(found, logits[None])
        return found

    def summed(self, part: torch.Tensor) -> torch.Tensor:
        """Over all ranks, in place."""
        if RANKS > 1:
            ranks.all_reduce(part)
        return part


class Counted(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    """Operations that the device is given; those that only look at memory otherwise are not."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func.namespace != "c10d"  # messages have their own time
        return func(*args, **(kwargs or {}))


def seconds(on: str, action: Callable[[], object]) -> list[float]:
    """Of one step at a time, each waited for, as an engine waits for its tokens."""
    action()
    found = []
    for _ in range(REPEATS):
        node_device.settle(on)
        begun = time.perf_counter()
        action()
        node_device.settle(on)
        found.append(time.perf_counter() - begun)
    return found


def steps(config: dict[str, int], on: str) -> list[dict[str, Any]]:
    dtype = torch.float16 if on != "cpu" else torch.bfloat16
    model = Llama(config, on, dtype)
    found = []
    for sequences, new, before in STEPS:
        cache = model.cache(sequences, before + new)
        inputs = torch.randn(sequences, new, model.hidden, device=on).to(dtype)

        def step(inputs: Any = inputs, cache: Any = cache, before: int = before) -> object:
            return model.step(inputs, cache, before)

        with Counted() as counted:
            step()
        work = {"sequences": sequences, "new": new, "before": before}
        found.append(work | {"operations": counted.count, "seconds": seconds(on, step)})
    return found


def collectives(shapes: list[dict[str, int]], asked: dict[str, Any]) -> dict[str, Any]:
    """What the probe says of messages as large as these models' steps have them."""
    tokens = {sequences * new for sequences, new, _ in STEPS}
    sizes = {count * shape["hidden_size"] * 2 for count in tokens for shape in shapes}
    found: dict[str, Any] = node_collective.rates(
        asked | {"sizes": sorted(sizes), "between": BETWEEN, "timeout_s": TIMEOUT_S}
    )
    return found


def main() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(RANK)
    on = node_device.device().partition(":")[0]
    shapes = json.loads(sys.argv[1]) if len(sys.argv) > 1 else SHAPES
    probed = node_device.rates(FIGURE_S)
    between: dict[str, Any] = {}
    if RANKS > 1:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        asked = {"rank": RANK, "world": RANKS, "address": address, "port": port + 1}
        between = collectives(shapes, asked)
        ranks.init_process_group(
            node_collective.backend(on),
            init_method=f"tcp://{address}:{port + 2}",
            rank=RANK,
            world_size=RANKS,
        )
    models = []
    with torch.inference_mode():
        for shape in shapes:
            config = COMMON | shape
            models.append({"config": config, "steps": steps(config, on)})
    if RANKS > 1:
        ranks.destroy_process_group()
    if RANK == 0:
        said = {"torch": torch.__version__, "ranks": RANKS, "probe": probed, "models": models}
        print(json.dumps(said | {"collectives": between}))


if __name__ == "__main__":
    main()
