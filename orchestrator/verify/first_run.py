"""The first run: from the bottom up, and no further than the first layer that fails.

Each step runs on all chosen nodes at once, in a process of its own that has an end (node.guard). A
step passes when it does on all of them. What a step sees comes from `first_run_steps.py`, or from
the looks of `hardware`; what its failure means is in `layers`.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.models.reading.shorter import shorter
from orchestrator.models.serving import flags
from orchestrator.node.guard import LATE
from orchestrator.node.paths import PYTHON, WITH_ENVIRONMENT
from orchestrator.node.programs import PYTHON as TORCH_PYTHON
from orchestrator.node.programs import environment, guarded
from orchestrator.profile import Node, Profile
from orchestrator.profile.first_run import FirstRun
from orchestrator.verify import gather, hardware
from orchestrator.verify.facts import HardwareFacts
from orchestrator.verify.gather import RunOn
from orchestrator.verify.judge import Rule, Verdict
from orchestrator.verify.layers import LAYERS, Layer
from orchestrator.verify.report import Check, Report

#: Seconds for a node to end a step by itself, before this end gives up.
GRACE = 30.0
#: Where ranks of a collective meet: below what Linux gives to outgoing connections.
PORTS = range(20000, 30000)
PREFIX = "first run: "
#: What progress calls all steps of a node.
STEP = "first run"


@dataclass(frozen=True)
class FirstModel:
    """A small model that nodes load: its files as they are handed out, and its known answers."""

    files: Sequence[Mapping[str, str]]
    answers: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class FirstRunContext:
    """What the first run is given: ways to reach the nodes, and what the steps use."""

    run_on: RunOn
    #: Entered first in every thread: the network that the cluster is reached over.
    network: Callable[[], AbstractContextManager[object]]
    #: config.json of the profile's model; empty where it is not on this machine.
    config: Mapping[str, Any]
    #: Or why there is none.
    first_model: FirstModel | str
    #: Nodes whose devices a served model holds.
    served: Collection[str] = ()
    #: Whether the endpoint answers; None: that is not asked.
    endpoint: Callable[[], Verdict] | None = None


@dataclass
class Ascent:
    """One first run of some nodes."""

    profile: Profile
    context: FirstRunContext
    nodes: Sequence[Node]
    board: Board
    forced: bool = False
    stopped: str = ""
    checks: list[Check] = field(default_factory=list)

    def go(self) -> Report:
        for layer in LAYERS:
            if layer.name == "serving":
                self.checks += self.serving(layer)
            else:
                self.checks += self.made(layer)
            failed = [check.node for check in self.checks if not check.ok]
            if failed and not self.stopped:
                self.stopped = f"'{layer.title}' failed on {', '.join(failed)}"
        return Report(tuple(self.checks))

    def made(self, layer: Layer) -> list[Check]:
        """A layer's check on every node, side by side."""
        whys = {node.name: self.why_not(layer, node) for node in self.nodes}
        asked = [node for node in self.nodes if not whys[node.name]]
        if layer.name == "collective":
            ranks = [(node, card) for node in asked for card in range(node.accelerators)]
            if len(ranks) < 2 and asked:
                whys |= {node.name: "there is one device only" for node in asked}
                asked = []
            looks = self.collective(layer, ranks)
        else:
            looks = {node.name: partial(self.look, layer, node) for node in asked}
        with ThreadPoolExecutor(max(1, len(asked))) as pool:
            jobs = {
                node.name: pool.submit(self.one, layer, node, looks[node.name]) for node in asked
            }
            return [
                jobs[node.name].result()
                if node.name in jobs
                else self.rule(layer, node.name).check(node.name, _not_run(whys[node.name]))
                for node in self.nodes
            ]

    def one(self, layer: Layer, node: Node, look: Callable[[], Verdict]) -> Check:
        # One column for all steps: a terminal has no room for twelve.
        with self.board.step(node.name, STEP) as done, self.context.network():
            self.board.note(node.name, f"{layer.name}: {layer.title}")
            try:
                verdict = look()
            except UserError as error:
                verdict = Verdict(False, "an answer from the node", error.message)
            except Exception as error:  # what a node says may be anything
                seen = f"{type(error).__name__}: {error}"
                verdict = Verdict(False, "an answer that can be read", seen)
            done.failed = not verdict.ok
            done.detail = f"{layer.name}: {verdict.seen}".partition("\n")[0]
        return self.rule(layer, node.name).check(node.name, verdict)

    def why_not(self, layer: Layer, node: Node) -> str:
        """Why a step is not made on a node; empty where it is."""
        if self.stopped:
            return self.stopped
        if layer.name in first_run_of(self.profile, node).skip:
            return "the profile skips it"
        held = self.context.served
        taken = bool(held) if layer.name == "collective" else node.name in held
        if layer.disturbs and taken and not self.forced:
            return "the model is being served"
        if layer.name in hardware.LAYERS and layer.name != hardware.TORCH:
            return "" if _looks(self.profile, node, layer) else "the profile names nothing of it"
        if layer.name == "layer" and not self.context.config:
            return f"the config.json of {self.profile.serving.model} is not on this machine"
        first = self.context.first_model
        return first if layer.name == "model" and isinstance(first, str) else ""

    def look(self, layer: Layer, node: Node) -> Verdict:
        if layer.name in hardware.LAYERS and layer.name != hardware.TORCH:
            return self.hardware(layer, node)
        return self.ask(layer, node, self.want(layer, node))

    def want(self, layer: Layer, node: Node) -> dict[str, Any]:
        """What the step's program is told."""
        kind = self.profile.hardware.get(node.hardware or "")
        own, args = first_run_of(self.profile, node), self.profile.serving.args
        limit = limit_of(self.profile, node, layer)
        device = kind.torch if kind else None
        share = args.get("gpu-memory-utilization")
        asked: dict[str, Any] = {
            "device": device.device if device else "auto",
            "dtype": args.get("dtype"),
        }
        match layer.name:
            case "torch":
                asked["count"] = device.count if device else None
            case "memory":
                asked["share"] = None if node.name in self.context.served else share
            case "int4":
                quantized = self.context.config.get("quantization_config") or {}
                asked["group"] = quantized.get("group_size")
            case "pressure":
                asked |= {"share": own.pressure, "most": own.pressure_limit, "seconds": limit / 3}
            case "layer":
                asked |= {"config": shorter(self.context.config, 1), "argv": flags(args)}
            case "model":
                assert isinstance(self.context.first_model, FirstModel)
                asked |= {
                    "answers": self.context.first_model.answers,
                    "argv": flags(args),
                    "max_tokens": self.profile.verification.max_tokens,
                }
        return asked

    def ask(self, layer: Layer, node: Node, asked: Mapping[str, Any]) -> Verdict:
        """Run the step's program in vLLM's environment, as the account that vLLM has."""
        user = self.profile.users.service
        program = [TORCH_PYTHON, "-", layer.name, json.dumps(asked)]
        variables = {"HOME": f"/home/{user}"} | environment(self.profile, node)
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "env", "-C", "/"]
        if layer.name == "model" and isinstance(self.context.first_model, FirstModel):
            files = json.dumps(self.context.first_model.files)
            argv = [PYTHON, "-I", "-c", source("node_files"), files, *argv]
        argv += [*(f"{name}={value}" for name, value in variables.items()), WITH_ENVIRONMENT]
        code, out, said = self.run(layer, node, [*argv, *program], source("first_run_steps"))
        return answer(code, out, said, limit_of(self.profile, node, layer))

    def run(
        self, layer: Layer, node: Node, argv: Sequence[str], stdin: str
    ) -> tuple[int, str, str]:
        limit = limit_of(self.profile, node, layer)
        ended = self.context.run_on(node, guarded(limit, argv, PYTHON), stdin, limit + GRACE)
        return ended.code, ended.out, ended.err

    def hardware(self, layer: Layer, node: Node) -> Verdict:
        """The looks of a layer in one: those that fail, with their own advice."""
        looks = _looks(self.profile, node, layer)
        want = json.dumps(gather.hardware_of(self.profile, node, layer.name))
        argv = [WITH_ENVIRONMENT, TORCH_PYTHON, "-", want]
        code, out, said = self.run(layer, node, argv, source("probe_hardware"))
        if code != 0:
            return answer(code, out, said, limit_of(self.profile, node, layer))
        facts = TypeAdapter(HardwareFacts).validate_json(out)
        found = [look.rule.check(node.name, look.judge(facts)) for look in looks]
        failed = [check for check in found if check.failed]
        if not failed:
            warned = "; ".join(f"{c.name}: {c.seen} ({c.look})" for c in found if c.warns)
            passed = f"{len([check for check in found if check.ok])} checks passed"
            return Verdict(True, "", f"{passed}; warning: {warned}" if warned else passed)
        name = [check.name.partition(": ")[2] for check in failed]
        return Verdict(
            False,
            "; ".join(f"{n}: {check.expected}" for n, check in zip(name, failed, strict=True)),
            "\n".join(
                f"{n}: {check.seen} ({check.look})" for n, check in zip(name, failed, strict=True)
            ),
        )

    def collective(
        self, layer: Layer, ranks: Sequence[tuple[Node, int]]
    ) -> dict[str, Callable[[], Verdict]]:
        """By node, its ranks at once, one on each of its devices."""
        if not ranks:
            return {}
        first, port = ranks[0][0], random.choice(PORTS)

        def asked(rank: int, node: Node, card: int) -> dict[str, Any]:
            return self.want(layer, node) | {
                "rank": rank,
                "world": len(ranks),
                "local": card,
                "address": self.profile.ray_address(first),
                "port": port,
                "timeout_s": limit_of(self.profile, node, layer) / 3,
                "backend": first_run_of(self.profile, node).backend,
            }

        def of(node: Node) -> Callable[[], Verdict]:
            own = [
                partial(self.ask, layer, node, asked(rank, *each))
                for rank, each in enumerate(ranks)
                if each[0].name == node.name
            ]
            return lambda: worst(together(own, self.context.network))

        return {node.name: of(node) for node, _ in ranks}

    def serving(self, layer: Layer) -> list[Check]:
        """The last one: whether the endpoint answers, where the model is served."""
        if self.context.endpoint is None:
            return []
        control = self.profile.control
        why = self.stopped or ("" if self.context.served else "the model is not served")
        if why:
            return [self.rule(layer, control.name).check(control.name, _not_run(why))]
        return [self.one(layer, control, self.context.endpoint)]

    def rule(self, layer: Layer, node: str) -> Rule:
        own = next((each for each in self.profile.nodes if each.name == node), None)
        more = first_run_of(self.profile, own).advice.get(layer.name, "") if own else ""
        look = f"{layer.means}\ndo: {layer.advice} {more}".strip()
        return Rule(f"{PREFIX}{layer.title}", hardware.braces(look))


def first_run(
    profile: Profile,
    context: FirstRunContext,
    nodes: Sequence[Node],
    board: Board,
    *,
    forced: bool = False,
) -> Report:
    """Make the steps on these nodes; what fails is in the report. ``forced``: beside a served
    model too, which slows it and may end it."""
    return Ascent(profile, context, nodes, board, forced).go()


def first_run_of(profile: Profile, node: Node) -> FirstRun:
    kind = profile.hardware.get(node.hardware or "")
    return kind.first_run if kind else FirstRun()


def limit_of(profile: Profile, node: Node, layer: Layer) -> float:
    """Seconds that a step may take on a node; commands have limits of their own."""
    own = first_run_of(profile, node).limits_s.get(layer.name)
    kind = profile.hardware.get(node.hardware or "")
    named = sum(each.timeout_s for each in kind.commands) if kind else 0.0
    return own or (layer.limit_s + named if layer.name == hardware.COMMANDS else layer.limit_s)


def answer(code: int, out: str, said: str, limit: float) -> Verdict:
    """What a step's program left: its document, or how it ended without one."""
    lines = [line for line in out.splitlines() if line.startswith('{"ok"')]
    if code == 0 and lines:
        found = json.loads(lines[-1])
        took = f"{found['seconds']:.0f} s"
        if not found["offered"]:
            return Verdict(True, "", f"not offered here: {found['seen']}", ran=False)
        return Verdict(found["ok"], found["expected"], f"{found['seen']}, {took}")
    last = (said.strip() or out.strip()).splitlines()[-1:] or ["it said nothing"]
    expected = f"an end within {limit:g} s"
    if code == LATE:
        return Verdict(False, expected, f"timed out after {limit:g} s; killed. Last: {last[0]}")
    if code > 128:
        return Verdict(False, expected, f"ended by {_signal(code - 128)}. Last: {last[0]}")
    return Verdict(False, expected, f"exit code {code}: {last[0]}")


def together(
    looks: Sequence[Callable[[], Verdict]], network: Callable[[], AbstractContextManager[object]]
) -> list[Verdict]:
    """All at once, each in the cluster's network."""

    def one(look: Callable[[], Verdict]) -> Verdict:
        with network():
            return look()

    with ThreadPoolExecutor(len(looks)) as pool:
        return list(pool.map(one, looks))


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    return next((each for each in verdicts if not each.ok), verdicts[0])


def source(program: str) -> str:
    """The text of a program that runs on a node."""
    return Path(__file__).with_name(f"{program}.py").read_text(encoding="utf-8")


def _looks(profile: Profile, node: Node, layer: Layer) -> list[hardware.Look]:
    return hardware.looks(profile, node, (layer.name,))


def _not_run(why: str) -> Verdict:
    return Verdict(True, "", why, ran=False)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
