"""The agent's files as one text, which Python runs on a node that has nothing of this package."""

from __future__ import annotations

from pathlib import Path

from orchestrator.node import (
    agent,
    agent_accounts,
    agent_base,
    agent_fetch,
    agent_leaving,
    agent_system,
)

#: A part comes after those that it imports; the last one is the program.
PARTS = (agent_base, agent_accounts, agent_fetch, agent_system, agent_leaving, agent)

LOAD = """import sys, types
for name, text in {parts!r}:
    part = types.ModuleType(name)
    sys.modules[name] = part
    exec(compile(text, name, "exec"), vars(part))
exec(compile({program!r}, "agent.py", "exec"))
"""


def program() -> str:
    """The text; it is the same on every call."""
    texts = [(part.__name__, Path(str(part.__file__)).read_text()) for part in PARTS]
    return LOAD.format(parts=texts[:-1], program=texts[-1][1])
