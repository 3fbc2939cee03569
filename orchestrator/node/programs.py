"""Programs that are sent to nodes: each has a limit, and what it leaves is JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.node import guard
from orchestrator.node.paths import VENV
from orchestrator.profile import Node, Profile
from orchestrator.profile.services import of_node

#: The Python that has torch and vLLM.
PYTHON = f"{VENV}/bin/python"


def guarded(seconds: float, argv: Sequence[str], python: str = PYTHON) -> list[str]:
    """``argv`` with an end: killed with all that it started after ``seconds``, or when nobody
    listens any more. The exit code is then ``guard.LATE``."""
    source = Path(guard.__file__).read_text(encoding="utf-8")
    return [python, "-I", "-S", "-c", source, f"{seconds:g}", *argv]


def environment(profile: Profile, node: Node) -> dict[str, str]:
    """The variables of vLLM's process on a node: the server's, and on other nodes those of their
    own Ray first, since vLLM gives the server's to its workers where they have none."""
    link = node.links[profile.ray.network]
    own = {"GLOO_SOCKET_IFNAME": link.interface, "VLLM_HOST_IP": str(link.address)}
    profile = of_node(profile, node) or profile
    if node.name == profile.server.name:
        return own | profile.serving_env()
    return profile.serving_env() | own | profile.ray_env(node)
