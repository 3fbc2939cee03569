"""Runs on the server's node, standard library only: small loads for the engine that serves there.

What is asked is GIVEN (``bench/served.py``): the API key is in no command line. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from orchestrator.performance.probe.node_rounds import EngineServer, Unanswered, measured, room


async def figures(asked: dict[str, Any]) -> dict[str, Any]:
    server = EngineServer(
        asked["address"], asked["port"], asked["model"], tuple(asked["known"]), asked["key"]
    )
    cells, notes = await measured(asked["loads"], server.wave, asked["seconds"], lambda _: None)
    return {
        "cells": [{"load": list(each.load), "rounds": each.rounds} for each in cells],
        "notes": notes,
        "kv_tokens": room(await server.page("/metrics")),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(figures(GIVEN))))  # type: ignore[name-defined]  # noqa: F821
    except Unanswered as error:
        sys.exit(f"the engine refused a load: {error}")
