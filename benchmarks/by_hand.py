"""A cluster brought up by hand: what a person would type on machines that have only booted.

The words and variables of each command are those of the units that `orchestrate up` writes, but
for tokens: by hand there are none, and everything runs as root. One command after the other.
"""

from __future__ import annotations

import re
import shlex
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
from measure import ORCHESTRATE, Stage, timed

from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.readiness import POLL, SERVE_TIMEOUT
from orchestrator.cluster.targets import publish_models, targets
from orchestrator.cluster.vllm import SERVER_UNIT, model_directory
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import Result, run
from orchestrator.models.flags import MANAGED_VARIABLES
from orchestrator.node.resources import Step
from orchestrator.node.state import NodeState
from orchestrator.profile import Node

#: Variables of the units that are not set by hand.
TOKENS = MANAGED_VARIABLES - {"RAY_ADDRESS"}
#: What systemd says of itself once a machine has booted.
BOOTED = ("running", "degraded")
#: What the command that was started last says.
LOG = "/root/log"
#: The step that does not count: how a person brings the model to the nodes is anybody's choice.
COPY = "copy the model"


class ByHand:
    """One way up, from power to the first answer. The profile's machines have to be off."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.profile = cluster.profile
        files = publish_models(cluster, lambda line: None)
        self.states = {name: target.state for name, target in targets(cluster, files).items()}

    def stages(self) -> list[Stage]:
        """Bring the cluster up, step by step."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("power and boot", self.power_on),
            ("boot", self.wait_for_boot),
            (COPY, self.copy_model),
            *((f"ray start, {node.name}", partial(self.ray, node)) for node in self.profile.nodes),
            ("vllm serve", self.serve),
        ]
        stages = []
        for name, step in steps:
            with timed(name) as stage:
                step()
            stages.append(stage)
        return stages

    def power_on(self) -> None:
        argv: list[str | Path] = [ORCHESTRATE, "up", "--until", "ssh"]
        argv += ["--profile", self.profile.path]
        run(argv, what="orchestrate up --until ssh")

    def wait_for_boot(self) -> None:
        limit = self.cluster.driver.boot_timeout
        deadline = time.monotonic() + limit
        for node in self.profile.nodes:
            while (
                self.shell(node, "systemctl is-system-running", ok=None).out.strip() not in BOOTED
            ):
                if time.monotonic() > deadline:
                    raise UserError(f"{node.name} has not booted in {limit:g} s")
                time.sleep(0.1)

    def copy_model(self) -> None:
        source = paths.served(self.profile.name) / "models" / self.profile.serving.model
        for node in self.profile.compute_nodes:
            root = Path("/proc", str(self.cluster.driver.leader(node)), "root")
            shutil.copytree(source, root / model_directory(self.profile).lstrip("/"))

    def ray(self, node: Node) -> None:
        """Start Ray in the background; the command returns when it runs."""
        state = self.states[node.name]
        (unit,) = state.only(Step.RAY).units
        words = [word for word in words_of(state, unit.name) if word != "--block"]
        # Its daemons would hold on to this command's output.
        command = f"{shlex.join(words)} >{LOG} 2>&1 </dev/null || {{ cat {LOG}; exit 1; }}"
        self.shell(node, f"{setting(state, unit.name)}\n{command}")

    def serve(self) -> None:
        """Start vLLM and wait until it is healthy. Raises UserError where it ends before."""
        node = self.profile.server
        state = self.states[node.name]
        words = words_of(state, SERVER_UNIT)
        program = next(number for number, word in enumerate(words) if word.endswith("/bin/vllm"))
        # Without the unit's own wait for Ray, a script of ours: whoever types has waited.
        words = [words[0], *words[program:]]
        command = f"{shlex.join(words)} >{LOG} 2>&1 </dev/null & echo $!"
        pid = self.shell(node, f"{setting(state, SERVER_UNIT)}\n{command}").out.strip()
        address = f"http://{self.profile.ray_address(node)}:{self.profile.serving.port}/health"
        deadline = time.monotonic() + SERVE_TIMEOUT
        with self.cluster.driver.network():
            while not healthy(address):
                alive = self.shell(node, f"kill -0 {pid}", ok=None).code == 0
                if not alive or time.monotonic() > deadline:
                    end = self.shell(node, f"tail -n 20 {LOG}", ok=None).out
                    raise UserError(f"vLLM does not serve on {node.name}; its log ends:\n{end}")
                time.sleep(POLL)

    def shell(self, node: Node, script: str, *, ok: tuple[int, ...] | None = (0,)) -> Result:
        """Run a script in a machine, as root, with nothing of this process's environment."""
        inside = ["nsenter", "--target", self.cluster.driver.leader(node), "--all", "--"]
        clean = ["env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        argv = [*map(str, inside), *clean, "bash", "-c", script]
        return run(argv, what=f"by hand on {node.name}", ok=ok)


def healthy(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def text_of(state: NodeState, path: str) -> str:
    """What a file of a node's desired state holds."""
    (file,) = (file for file in state.files if file.path == path)
    return file.content or ""


def unit_text(state: NodeState, unit: str) -> str:
    """A unit's file, with continued lines joined."""
    return text_of(state, f"/etc/systemd/system/{unit}").replace("\\\n", " ")


def words_of(state: NodeState, unit: str) -> list[str]:
    """The words of a unit's command, as the program gets them."""
    (line,) = re.findall(r"^ExecStart=(.+)$", unit_text(state, unit), re.MULTILINE)
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def setting(state: NodeState, unit: str) -> str:
    """Shell lines that set a unit's variables, without tokens."""
    text = unit_text(state, unit)
    named = re.findall(r"^EnvironmentFile=(.+)$", text, re.MULTILINE)
    lines = [line for path in named for line in text_of(state, path).splitlines()]
    lines += re.findall(r"^Environment=(.+)$", text, re.MULTILINE)
    return "\n".join(f"export {line}" for line in lines if line.partition("=")[0] not in TOKENS)
