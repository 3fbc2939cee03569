"""Runs on a node with the image's Python: one step of the first run (verify.first_run).

    python first_run_steps.py STEP JSON

Standard library, torch, Triton and vLLM. Prints one JSON line last: {"ok", "seen", "expected",
"seconds", "offered"}; ``offered`` is false where the device has no such thing, which is no fault.
Whoever starts it sets the limit in seconds (node.guard): each step may hang in a driver.

JSON for all steps: {"device": "xpu"|"cuda"|"cpu"|"auto"}; what else a step takes is said there.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

GIB = 1 << 30
#: Bytes of one chunk that fills memory; the most that is filled on a processor, where filling all
#: would make the kernel end other processes.
CHUNK, MOST_ON_CPU = 256 << 20, 256 << 20
#: Bytes that stay free beside the chunks: the results of cat and stack need room.
ROOM = 256 << 20
#: Bytes of a message: one token's, a few tokens', a prompt's.
MESSAGES = (8 << 10, 256 << 10, 4 << 20)

#: A file of its own: Triton reads the source of what it compiles.
TRITON = """
import triton
import triton.language as tl

@triton.jit
def add(left, right, total, count, BLOCK: tl.constexpr):
    places = tl.program_id(axis=0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    sums = tl.load(left + places, mask=inside) + tl.load(right + places, mask=inside)
    tl.store(total + places, sums, mask=inside)
"""


class Found(NamedTuple):
    """What a step saw."""

    ok: bool
    seen: str
    expected: str
    offered: bool = True


def not_offered(seen: str) -> Found:
    return Found(True, seen, "", offered=False)


def torch() -> Any:
    """Imported by the steps: a missing library is then what one of them sees."""
    import torch as library  # type: ignore[import-not-found, unused-ignore]

    return library


def device(asked: dict[str, Any]) -> str:
    """The device's type as torch names it; "auto" is the accelerator, or the processor."""
    if asked["device"] != "auto":
        return str(asked["device"])
    if torch().accelerator.is_available():
        return str(torch().accelerator.current_accelerator().type)
    return "cpu"


def settle(on: str) -> None:
    """Wait until what was begun is done."""
    if not on.startswith("cpu"):
        torch().accelerator.synchronize()


def count_of(on: str) -> int:
    return 1 if on == "cpu" else int(getattr(torch(), on).device_count())


def devices(asked: dict[str, Any]) -> Found:
    """What torch sees. ``count``: how many there have to be; None: at least one."""
    on, wanted = device(asked), asked.get("count")
    names = ["cpu"]
    if on != "cpu":
        names = [getattr(torch(), on).get_device_name(each) for each in range(count_of(on))]
    ok = len(names) == wanted if wanted else bool(names)
    seen = f"{on}, torch {torch().__version__}: {', '.join(names) or 'no device'}"
    return Found(ok, seen, f"{wanted or 'at least 1'} device(s)")


def memory_info(on: str, index: int) -> tuple[int, int, str]:
    """Bytes free and in all by the call that vLLM makes, and its name."""
    if on == "cpu":
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[key].split()[0]) << 10 for key in ("MemAvailable", "MemTotal"))
        return free, total, "/proc/meminfo"
    if on == "xpu" and importlib.util.find_spec("vllm_xpu_kernels"):
        import vllm_xpu_kernels._C  # type: ignore[import-not-found, unused-ignore] # noqa: F401

        if hasattr(torch().ops._C_cache_ops, "getMemoryInfo"):
            free, total = torch().ops._C_cache_ops.getMemoryInfo(index)
            return int(free), int(total), "vllm_xpu_kernels' getMemoryInfo"
    free, total = getattr(torch(), on).mem_get_info(index)
    return int(free), int(total), f"torch.{on}.mem_get_info"


def free_memory(asked: dict[str, Any]) -> Found:
    """Free memory above 0, and above what vLLM asks for. ``share``: vLLM's part of each device's
    memory (gpu-memory-utilization), None where that is not to be compared."""
    on, share = device(asked), asked.get("share") or 0.0
    each = [memory_info(on, index) for index in range(count_of(on))]
    ok = bool(each) and all(free > 0 and free >= share * total for free, total, _ in each)
    seen = ", ".join(f"{free / GIB:.1f} of {total / GIB:.1f} GiB free" for free, total, _ in each)
    call = each[0][2] if each else "no device"
    return Found(ok, f"{seen} ({call})", f"more than {share * 100:.0f} % free")


def apart(seen: Any, right: Any, most: float) -> str:
    """How far numbers are from those that they should be; empty where that is near enough."""
    off = (seen.float().cpu() - right).abs()
    wrong = int((~(off <= most)).sum())  # what is no number is not near either
    if not wrong:
        return ""
    return f"{wrong} of {off.numel()} numbers are off, by {float(off.max()):.3g} at most"


def tolerance(dtype: Any) -> float:
    """For results near 1: a few times the last digit of a type, or of what cards multiply with."""
    return max(16 * float(torch().finfo(dtype).eps), 2e-3)


def half(asked: dict[str, Any]) -> Any:
    """``dtype``: the model's; two names of vLLM's mean torch's float16."""
    name = asked.get("dtype") or "float16"
    return getattr(
        torch(), {"half": "float16", "auto": "float16", "float": "float32"}.get(name, name)
    )


def product(asked: dict[str, Any]) -> Found:
    """Products of one row and of many, against float32 on the processor."""
    on, dtype = device(asked), half(asked)
    torch().manual_seed(0)
    width = 1024
    weights = (torch().randn(512, width) / math.sqrt(width)).to(dtype)
    linear = torch().nn.functional.linear
    for index in range(count_of(on)):
        place = "cpu" if on == "cpu" else f"{on}:{index}"
        for rows in (1, 512):
            left = torch().randn(rows, width).to(dtype)
            seen = linear(left.to(place), weights.to(place))
            wrong = apart(seen, linear(left.float(), weights.float()), tolerance(dtype))
            if wrong:
                return Found(
                    False, f"{place}, {rows} row(s): {wrong}", "as float32 on the processor"
                )
    return Found(True, f"{dtype}: right on {count_of(on)} device(s)", "as float32 on the processor")


def int4(asked: dict[str, Any]) -> Found:
    """The 4-bit product of vLLM's XPU kernels. ``group``: weights that share a scale, -1: all."""
    on = device(asked)
    name = "torch.ops._xpu_C.int4_gemm_w4a16"
    if on != "xpu" and not importlib.util.find_spec("vllm_xpu_kernels"):
        return not_offered(f"{name} is for xpu; this is {on}")
    import vllm_xpu_kernels._xpu_C  # type: ignore[import-not-found, unused-ignore] # noqa: F401

    if not hasattr(torch().ops._xpu_C, "int4_gemm_w4a16"):
        return not_offered(f"these kernels have no {name}")
    torch().manual_seed(0)
    deep, wide = 1024, 512
    group = asked.get("group") or 128
    group = deep if group < 0 or deep % group else group
    numbers = torch().randint(0, 16, (deep, wide))
    scales = (torch().rand(deep // group, wide) / math.sqrt(deep) / 4).half()
    weights = (numbers - 8).float() * scales.float().repeat_interleave(group, dim=0)
    for rows in (1, 32):
        left = torch().randn(rows, deep).half()
        seen = torch().ops._xpu_C.int4_gemm_w4a16(
            left.to(on),
            packed(numbers).t().contiguous().to(on).t(),  # as vLLM keeps it
            None,
            scales.to(on),
            torch().tensor([8], dtype=torch().int8, device=on),
            group,
            None,
        )
        wrong = apart(seen, left.float() @ weights, 2e-2)
        if wrong:
            return Found(False, f"{rows} row(s): {wrong}", "as float32 on the processor")
    return Found(True, f"{name}, groups of {group}: right", "as float32 on the processor")


def packed(numbers: Any) -> Any:
    """Eight numbers of 4 bits in an int32, down each column, the first in the lowest bits."""
    rows, columns = numbers.shape
    parts = numbers.reshape(rows // 8, 8, columns)
    shifts = torch().arange(0, 32, 4).reshape(1, 8, 1)
    words = (parts << shifts).sum(dim=1)
    return torch().where(words >= 1 << 31, words - (1 << 32), words).to(torch().int32)


def triton_add(asked: dict[str, Any]) -> Found:
    """A kernel that Triton compiles; sums that have to be exact."""
    on = device(asked)
    if on == "cpu":
        return not_offered("Triton is for accelerators; this is cpu")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "first_run_triton.py")
        file.write_text(TRITON)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        count, block = 1_000_003, 1024
        left, right = (
            torch().randint(-(2**20), 2**20, (count,), dtype=torch().int32) for _ in "ab"
        )
        total = torch().zeros(count, dtype=torch().int32, device=on)
        module.add[(-(-count // block),)](left.to(on), right.to(on), total, count, BLOCK=block)
        settle(on)
        off = int((total.cpu() != left + right).sum())
    version = importlib.import_module("triton").__version__
    seen = (
        f"{off} of {count} sums are wrong" if off else f"Triton {version}: {count} sums are right"
    )
    return Found(not off, seen, "every sum is right")


class Pressure:
    """Chunks that fill a device, and results of cat and stack that have to stay exact beside."""

    def __init__(self, on: str) -> None:
        self.on = on
        self.held: list[Any] = []
        torch().manual_seed(0)
        shapes = [(rows, 1021) for rows in (1, 7, 64, 257, 512, 3)]
        self.parts = [torch().randint(-(2**30), 2**30, s, dtype=torch().int32) for s in shapes]
        self.equal = [
            torch().randint(-(2**30), 2**30, (257, 509), dtype=torch().int32) for _ in "abcde"
        ]
        self.there = [part.to(on) for part in self.parts], [part.to(on) for part in self.equal]

    def fill(self, size: int) -> bool:
        """One chunk more; False where the device refuses it."""
        try:
            chunk = torch().full((size // 4,), len(self.held), dtype=torch().int32, device=self.on)
            settle(self.on)
        except RuntimeError:  # no memory: each library says it in its own words
            return False
        self.held.append(chunk)
        return True

    def wrong(self) -> str:
        """What is wrong now; empty for nothing. Chunks are used between: then they are resident,
        and what was not used for a while is not."""
        parts, equal = self.there
        for _ in range(2):
            for chunk in self.held:
                chunk.add_(1)
                chunk.sub_(1)
            seen = {
                "cat": (torch().cat(parts).cpu(), torch().cat(self.parts)),
                "stack": (torch().stack(equal).cpu(), torch().stack(self.equal)),
                "cat of columns": (torch().cat(equal, 1).cpu(), torch().cat(self.equal, 1)),
            }
            for name, (given, right) in seen.items():
                if off := int((given != right).sum()):
                    return f"{name}: {off} of {right.numel()} numbers are wrong"
        for number, chunk in enumerate(self.held):
            if off := int((chunk != number).sum()):
                return f"chunk {number}: {off} of {chunk.numel()} numbers changed"
        return ""


def pressure(asked: dict[str, Any]) -> Found:
    """cat and stack before, while and after memory is filled. ``share``: of the free memory;
    ``most``: bytes, None for no such limit; ``seconds``: then it fills no further."""
    on, expected = device(asked), "cat and stack are exact"
    until = time.monotonic() + asked.get("seconds", 30.0)
    place = Pressure(on)
    if wrong := place.wrong():
        return Found(False, f"with memory free: {wrong}", expected)
    free, _, _ = memory_info(on, 0)
    most = asked.get("most") or (MOST_ON_CPU if on == "cpu" else free)
    target = min(int(free * asked.get("share", 0.95)), max(0, free - ROOM), most)
    size = max(1 << 20, min(CHUNK, target // 8))
    ended, checked = "", 0
    while not ended and (len(place.held) + 1) * size <= target:
        if not place.fill(size):
            ended = ", the device took no more"
        elif time.monotonic() > until:
            ended = ", its time was over"
        if ended or len(place.held) * size >= target * (checked + 1) / 4:
            checked += 1
            if wrong := place.wrong():
                return Found(False, f"{said(place, size)} filled: {wrong}", expected)
    filled = said(place, size)
    place.held.clear()
    if on != "cpu":
        getattr(torch(), on).empty_cache()  # else torch keeps what it freed
    if wrong := place.wrong():
        return Found(False, f"after {filled} were filled: {wrong}", expected)
    return Found(True, f"exact with {filled} of {free / GIB:.1f} GiB filled{ended}", expected)


def said(place: Pressure, size: int) -> str:
    return f"{len(place.held) * size / GIB:.2f} GiB"


def collective(asked: dict[str, Any]) -> Found:
    """All-reduce between all ranks. ``rank``, ``world``, ``local`` (the device), ``address``,
    ``port``, ``timeout_s``; ``backend``: None for torch's own for the device."""
    import torch.distributed as ranks  # type: ignore[import-not-found, unused-ignore]

    on, world, rank = device(asked), asked["world"], asked["rank"]
    name = asked.get("backend") or str(ranks.Backend.default_device_backend_map[on])
    if name == "ccl":
        importlib.import_module("oneccl_bindings_for_pytorch")
    place = on
    if on != "cpu":
        place = f"{on}:{asked['local']}"
        torch().accelerator.set_device_index(asked["local"])
    ranks.init_process_group(
        name,
        init_method=f"tcp://{asked['address']}:{asked['port']}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=asked["timeout_s"]),
    )
    dtype, took = half(asked), []
    for size in MESSAGES:
        pattern = torch().arange(size // dtype.itemsize) % 3
        for _ in range(2):  # the first of a size also makes its connections
            data = (pattern * (rank + 1)).to(dtype).to(place)
            begun = time.perf_counter()
            ranks.all_reduce(data)
            settle(on)
        took.append(f"{size >> 10} KiB {1000 * (time.perf_counter() - begun):.1f} ms")
        off = int((data.float().cpu() != pattern * (world * (world + 1) // 2)).sum())
        if off:
            seen = f"{name}, {size} bytes: {off} of {data.numel()} sums are wrong"
            return Found(False, seen, f"every sum over {world} ranks is right")
    return Found(True, f"{name}, {world} ranks: {', '.join(took)}", f"sums over {world} ranks")


def engine(directory: str, asked: dict[str, Any], *more: str) -> Any:
    """vLLM's engine in this process, on one device, with the flags that the profile serves with.
    ``argv``: these; those of the server alone mean nothing here."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import LLM, EngineArgs  # type: ignore[import-not-found, unused-ignore]

    try:
        from vllm.utils.argparse_utils import (  # type: ignore[import-not-found, unused-ignore]
            FlexibleArgumentParser,
        )
    except ImportError:
        from vllm.utils import FlexibleArgumentParser  # type: ignore[no-redef, import-not-found, unused-ignore]

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    words, _ = parser.parse_known_args(["--model", directory, *asked["argv"], *more])
    arguments = EngineArgs.from_cli_args(words)
    arguments.disable_log_stats = True
    return LLM.from_engine_args(arguments)


def layer(asked: dict[str, Any]) -> Found:
    """One layer of the model with weights of no meaning, through vLLM. ``config``: its config.json
    with one layer."""
    from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(asked["config"]))
        llm = engine(directory, asked, "--load-format", "dummy", "--skip-tokenizer-init")
        wanted = 4
        how = SamplingParams(temperature=0, max_tokens=wanted, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        (answer,) = llm.generate([{"prompt_token_ids": list(range(1, 17))}], how, use_tqdm=False)
        tokens = answer.outputs[0].token_ids
    seen = f"{len(tokens)} tokens in {time.perf_counter() - begun:.1f} s"
    return Found(len(tokens) == wanted, seen, f"{wanted} tokens")


def model(asked: dict[str, Any]) -> Found:
    """A small model with its weights, in ``directory``. ``answers``: question, answer, whole; one
    right answer is enough, the first that is."""
    from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

    llm = engine(asked["directory"], asked)
    how = SamplingParams(temperature=0, max_tokens=asked["max_tokens"])
    heard = []
    for each in asked["answers"]:
        talk = [{"role": "user", "content": each["question"]}]
        (answer,) = llm.chat([talk], how, use_tqdm=False)
        text = answer.outputs[0].text
        heard.append(text)
        right = each["answer"]
        if text == right if each["whole"] else right.lower() in text.lower():
            return Found(True, f"{each['question']!r}: {text!r}", repr(right))
    return Found(False, f"no right answer: {heard}"[:300], "a right answer")


STEPS: dict[str, Callable[[dict[str, Any]], Found]] = {
    "torch": devices,
    "memory": free_memory,
    "product": product,
    "int4": int4,
    "triton": triton_add,
    "pressure": pressure,
    "collective": collective,
    "layer": layer,
    "model": model,
}


def taken(step: str, asked: dict[str, Any]) -> dict[str, object]:
    """The step's document; what a library throws is what was seen."""
    begun = time.perf_counter()
    try:
        found = STEPS[step](asked)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        found = Found(False, f"{type(error).__name__}: {first}"[:400], "no error")
        print(f"{step}:", file=sys.stderr)
        sys.excepthook(type(error), error, error.__traceback__)
    return {**found._asdict(), "seconds": round(time.perf_counter() - begun, 2)}


if __name__ == "__main__":
    print(f"\n{json.dumps(taken(sys.argv[1], json.loads(sys.argv[2])))}", flush=True)
    # What libraries do when they are unloaded is no matter of the step, and has hung.
    os._exit(0)
