"""Runs in the engine's Python on a node: vLLM with dummy weights, from a config.json alone.

What is asked is GIVEN (``attach/engine.py``). It prints lines that begin with its mark, and ends
when its standard input does, on a signal, or after its time. By then everything that it started has
ended, and its directory is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.performance.probe.node_rounds import EngineServer, Unanswered, measured, room

#: prctl: what a child leaves behind becomes ours.
SUBREAPER = 36
#: Seconds for the engine to end when asked to, and when killed.
ENDING, GOING = 15.0, 10.0
#: The engine's Python before it runs the engine. Where this program is killed, nobody holds the
#: other end of the pipe any more: then the engine's session is ended, and its directory removed.
FOLLOW = f"""
import os, shutil, signal, sys, time
pipe, own, engine = int(sys.argv[1]), sys.argv[2], os.getpid()
if os.fork() == 0:
    os.setsid()
    os.read(pipe, 1)
    try:
        os.killpg(engine, signal.SIGTERM)
        time.sleep({ENDING})
        os.killpg(engine, signal.SIGKILL)
    except OSError:
        pass
    shutil.rmtree(own, ignore_errors=True)
    os._exit(0)
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
#: Seconds between two looks at an engine that starts.
LOOK = 1.0
#: The name by which the model is asked for.
MODEL = "probed"
#: Fewest seconds to measure, however long the start took; fewer only if asked for.
LEAST = 120.0
#: Tokens that are no prompt's: marks come first.
MARKS = 16
#: Lines of the log that say why, those that say nothing, and how many of them are shown.
WHY = re.compile(r"\b\w*(?:Error|Exception|Interrupt)\b: .+")
NOT_WHY = re.compile(r"Engine core initialization failed|WorkerProc initialization failed")
SHOWN, TAIL = 3, 15
#: What the log says of memory.
WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
PREFIX = re.compile(r"^(?:\([^)]*\) )*(?:[A-Z]+ [\d-]+ [\d:]+ )?(?:\[[^\]]*\] )*")


class Over(SystemExit):
    """It has to end now; asyncio lets only this kind through."""


class EngineEnded(Exception):
    """The engine did not do what it was started for."""


def children() -> list[int]:
    """All processes below this one, the deepest last."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, last = [], {os.getpid()}
    while last := {pid for pid, parent in parents.items() if parent in last}:
        found += sorted(last)
    return found


def reaped() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_all(engine: subprocess.Popen[bytes] | None) -> None:
    """End the engine, which ends its own processes; then kill what is left."""
    if engine is not None and engine.poll() is None:
        engine.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            engine.wait(ENDING)
    until = time.monotonic() + GOING
    while (left := children()) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        reaped()


def over_when_the_input_is() -> None:
    """Whoever asked is gone when this program's input ends."""

    def watch() -> None:
        ends = select.poll()
        ends.register(0, select.POLLIN)
        while ends.poll():
            if not os.read(0, 1024):
                break
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class DummyEngine:
    """vLLM, started from a directory of its own."""

    def __init__(self, asked: dict[str, Any], own: Path) -> None:
        self.asked, self.own, self.port = asked, own, free_port()
        self.log = own / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        model = self.own / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(self.asked["config"]))
        pipe, self.lifeline = os.pipe()
        argv = [sys.executable, "-c", FOLLOW, str(pipe), str(self.own)]
        argv += [*self.asked["program"], "serve", str(model)]
        argv += ["--served-model-name", MODEL, *self.asked["flags"]]
        if self.asked["head"]:
            argv += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"}
        environment |= {"TMPDIR": str(self.own), "PYTHONUNBUFFERED": "1", **self.asked["env"]}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True, cwd=self.own, pass_fds=(pipe,),
            )  # fmt: skip
        os.close(pipe)

    def said(self) -> list[str]:
        """The lines of its log, without the times and places in front."""
        text = self.log.read_bytes()[-(4 << 20) :].decode(errors="replace")
        lines = (PREFIX.sub("", line).strip() for line in re.split(r"[\r\n]+", text))
        return [line for line in lines if line]

    def ended(self) -> str:
        """Why it ended; empty while it runs."""
        if self.process is None or self.process.poll() is None:
            return ""
        why = [line for line in self.said() if WHY.search(line) and not NOT_WHY.search(line)]
        return "; ".join(dict.fromkeys(why[-SHOWN:])) or f"exit code {self.process.returncode}"

    def alive(self) -> None:
        """Raises EngineEnded where it has ended."""
        if why := self.ended():
            raise EngineEnded(f"the engine ended: {why}")


def say(asked: dict[str, Any], **told: Any) -> None:
    print(f"\n{asked['mark']} {json.dumps(told)}", flush=True)


async def ready(engine: DummyEngine, server: EngineServer, seconds: float) -> None:
    """Until it answers. Raises EngineEnded where it ends, or takes too long."""
    end, last = time.monotonic() + seconds, ""
    while not await server.page("/version"):
        engine.alive()
        if time.monotonic() > end:
            raise EngineEnded(f"the engine did not start within {seconds:.0f} s")
        now = next(reversed(engine.said()), "")[:100]
        if now != last:
            last = now
            say(engine.asked, note=f"starts: {now}")
        await asyncio.sleep(LOOK)


async def figures(engine: DummyEngine) -> dict[str, Any]:
    """The engine's figures from its start on. Raises EngineEnded."""
    asked, begun = engine.asked, time.monotonic()
    known = (min(MARKS, asked["vocabulary"] - 1), asked["vocabulary"])
    server = EngineServer("127.0.0.1", engine.port, MODEL, known)
    await ready(engine, server, asked["start_s"])
    started = time.monotonic() - begun
    seconds = min(asked["seconds"], max(LEAST, asked["seconds"] - started))

    async def ends() -> None:
        while True:
            engine.alive()
            await asyncio.sleep(LOOK)

    work = asyncio.ensure_future(
        measured(asked["loads"], server.wave, seconds, lambda text: say(asked, note=text))
    )
    watch = asyncio.ensure_future(ends())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
        cells, notes = work.result()
    except Unanswered as error:
        engine.alive()
        raise EngineEnded(f"the engine refused the first load: {error}") from None
    finally:
        watch.cancel()
        work.cancel()
    weights = [found[1] for line in engine.said() if (found := WEIGHTS.search(line))]
    return {
        "cells": [{"load": list(each.load), "rounds": each.rounds} for each in cells],
        "notes": notes,
        "kv_tokens": room(await server.page("/metrics")),
        "weights_gib": float(weights[0]) if weights else None,
        "start_s": started,
    }


async def held(engine: DummyEngine) -> None:
    """A rank of another node's engine: it works until it is told to end. Raises EngineEnded."""
    say(engine.asked, note="serves its ranks")
    while True:
        engine.alive()
        await asyncio.sleep(LOOK)


def run(asked: dict[str, Any], engine: DummyEngine) -> dict[str, Any]:
    """What there is to tell at the end."""
    try:
        engine.start()
        work = figures(engine) if asked["head"] else held(engine)
        return {"figures": asyncio.run(work)}
    except (EngineEnded, Unanswered, OSError, Over) as error:
        log = engine.said()[-TAIL:] if engine.log.exists() else []
        return {"failed": str(error), "log": log}


def main(asked: dict[str, Any]) -> int:
    endings = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM, signal.SIGPIPE)

    def over(number: int, _frame: object) -> None:
        if number == signal.SIGALRM:
            raise Over(f"no end after {asked['limit_s']:.0f} s; ended")
        raise Over("told to end")

    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="orchestrate-engine-") as own:
        engine = DummyEngine(asked, Path(own))
        try:
            try:
                for each in endings:
                    signal.signal(each, over)
                # Neither waits for the wall clock, which may jump.
                signal.setitimer(signal.ITIMER_REAL, asked["limit_s"])
                over_when_the_input_is()
                told = run(asked, engine)
            finally:
                for each in endings:
                    signal.signal(each, signal.SIG_IGN)
        finally:
            for each in endings:
                signal.signal(each, signal.SIG_IGN)
            end_all(engine.process)
    with contextlib.suppress(OSError):
        say(asked, **told)
    return 0 if "figures" in told else 1


if __name__ == "__main__":
    sys.exit(main(GIVEN))  # type: ignore[name-defined]  # noqa: F821
