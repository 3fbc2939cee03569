"""An engine of its own on the nodes of a cluster that others run: started, measured, ended.

Programs come on standard input, which stays open: at its end all that they started ends.
"""

from __future__ import annotations

import json
import queue
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from orchestrator.attach.reach import NodeShell
from orchestrator.core.errors import UserError
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.run import streaming
from orchestrator.core.visible import one_line
from orchestrator.models.reading.facts import facts
from orchestrator.models.serving import flags
from orchestrator.performance.probe import engine
from orchestrator.performance.probe.cells import SmallLoad
from orchestrator.performance.probe.run import PORTS
from orchestrator.performance.results.engine import EngineRates
from orchestrator.profile.existing import Attached, AttachedNode

#: Flags of the served engine that are not those of one that is started to be measured.
NOT_OURS = {
    "load-format",
    "trust-remote-code",
    "distributed-executor-backend",
    "nnodes",
    "node-rank",
    "master-addr",
    "master-port",
    "headless",
    "served-model-name",
    "model",
    "tokenizer",
    "host",
    "port",
    "api-key",
}
#: The engine's own words for a start from a config.json alone.
PROGRAM = ("-m", "vllm.entrypoints.cli.main")
BARE = ("--load-format", "dummy", "--skip-tokenizer-init", "--generation-config", "vllm")
#: Models that also see or hear have a processor, which would need files that are not there.
TEXT_ONLY = "--language-model-only"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
#: Seconds on top of a program's own limit, and for it to end all that it started.
LATE, PATIENCE = 60.0, 45.0
#: The vocabulary where config.json names none.
VOCABULARY = 1000
#: Characters of a node's lines, and how many of its last ones are kept.
MOST_LINE, KEPT = 1 << 16, 15

#: A node's line; None at their end; or why there are none.
Heard = tuple[str, str | UserError | None]


class EngineFailed(UserError):
    """The engine that was to be measured did not start, or ended. ``memory``: it had too little."""

    def __init__(self, message: str, log: Sequence[str]) -> None:
        self.memory = "memory" in message.lower()
        lines = [f"  {one_line(line)[:300]}" for line in log]
        super().__init__("\n".join([one_line(message)[:1000], *lines]))


@dataclass(frozen=True)
class Begun:
    """What is measured, where, and in how many seconds from the engine's start on, where one is
    started."""

    nodes: tuple[AttachedNode, ...]
    loads: tuple[SmallLoad, ...]
    rates: EngineRates
    seconds: float = 0.0

    @property
    def limit_s(self) -> float:
        """Seconds until a node's program ends by itself."""
        return engine.START_S + self.seconds + LATE


def started(
    profile: Attached, begun: Begun, board: Board, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Start it on all its nodes, and have it measured on the first; by the return it has ended.

    Raises EngineFailed with the engine's own last lines, UserError where a node is lost.
    """
    mark, port = secrets.token_hex(8), random.choice(PORTS)
    heard: queue.Queue[Heard] = queue.Queue()
    over = threading.Event()

    def one(number: int) -> None:
        node = begun.nodes[number]
        given = asked(profile, begun, config, number, port) | {"mark": mark}
        text = engine.program("node_engine", given)
        variables = [f"{name}={value}" for name, value in profile.serving.env.items()]
        words = ["env", *variables, str(node.engine), "-c", engine.BOOT, str(len(text))]
        try:
            with streaming(
                NodeShell(node).argv(words),
                lambda line: heard.put((node.name, line[:MOST_LINE])),
                stdin=text,
                errors=True,
                ended=lambda: heard.put((node.name, None)),
                patience=PATIENCE,
            ):
                over.wait()
        except UserError as error:
            heard.put((node.name, error))

    with ThreadPoolExecutor(len(begun.nodes)) as pool:
        try:
            for number in range(len(begun.nodes)):
                pool.submit(one, number)
            return _figures(heard, mark, begun, board)
        finally:
            over.set()


def _figures(heard: queue.Queue[Heard], mark: str, begun: Begun, board: Board) -> dict[str, Any]:
    """What the first node measures. Raises as `started` does."""
    limit = begun.limit_s + LATE
    end = time.monotonic() + limit
    last: dict[str, list[str]] = {node.name: [] for node in begun.nodes}
    while True:
        try:
            name, told = heard.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise EngineFailed(f"no figures after {limit:.0f} s; ended", ()) from None
        if isinstance(told, UserError):
            raise told
        if told is None:
            raise EngineFailed(f"{name}: lost while its engine was measured", last[name])
        if not told.startswith(mark):
            last[name] = [*last[name], told][-KEPT:] if told.strip() else last[name]
            continue
        found = _document(name, told.removeprefix(mark))
        if "figures" in found and name == begun.nodes[0].name:
            return dict(found["figures"])
        if "failed" in found:
            raise EngineFailed(f"{name}: {found['failed']}", list(map(str, found["log"])))
        board.note(CLUSTER, f"{name}: {one_line(str(found.get('note', '')))[:120]}")


def _document(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        return dict(found)
    except (ValueError, TypeError):
        raise UserError(f"{name}: what it prints is not what was asked for") from None


def asked(
    profile: Attached, begun: Begun, config: Mapping[str, Any], rank: int, port: int
) -> dict[str, Any]:
    """What the program on a node is given: its part of one engine."""
    serving, nodes = profile.serving, begun.nodes
    words = [*BARE, *([TEXT_ONLY] if "text_config" in config else [])]
    words += ["--tensor-parallel-size", str(serving.tensor_parallel)]
    words += ["--pipeline-parallel-size", str(serving.pipeline_parallel)]
    if serving.data_parallel > 1:
        words += ["--data-parallel-size", str(serving.data_parallel)]
    words += ["--enable-expert-parallel"] if serving.expert_parallel else []
    environment = dict(OFFLINE)
    if len(nodes) > 1:
        words += ["--distributed-executor-backend", "mp", "--nnodes", str(len(nodes))]
        words += ["--node-rank", str(rank), "--master-addr", str(nodes[0].address)]
        words += ["--master-port", str(port), *(["--headless"] if rank else [])]
        environment["VLLM_HOST_IP"] = str(nodes[rank].address)
    args = {name.replace("_", "-"): value for name, value in serving.args.items()}
    words += flags({name: value for name, value in args.items() if name not in NOT_OURS})
    return {
        "config": dict(config),
        "program": PROGRAM,
        "flags": words,
        "env": environment,
        "head": rank == 0,
        "loads": words_of(begun.loads),
        "seconds": begun.seconds,
        "start_s": engine.START_S,
        "limit_s": begun.limit_s,
        "vocabulary": facts(config).whole("vocab_size") or VOCABULARY,
    }


def words_of(loads: Sequence[SmallLoad]) -> list[tuple[int, int, int]]:
    return [(each.prompt, each.output, each.concurrency) for each in loads]
