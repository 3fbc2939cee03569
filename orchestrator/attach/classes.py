"""vLLM's own classes, asked about a config.json where its Python is at hand: on a node of the
profile, or in the profile's built image on this computer.

One program (`node_classes.py`) makes the model without memory, weights or accelerator, as the user
who serves there, and ends after its time. What it said is kept: the same question to the same vLLM
is asked once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.attach.probe import TheirNode
from orchestrator.attach.reach import AROUND, NodeShell, NotReached
from orchestrator.cluster.cluster import open_cluster
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import write_json
from orchestrator.image import ident, store
from orchestrator.image.layers import layers_of
from orchestrator.models.reading.classes import EngineSays
from orchestrator.node.paths import VENV
from orchestrator.node.programs import guarded
from orchestrator.performance.probe import nodes as on_nodes
from orchestrator.performance.probe.run import STATE_TIMEOUT
from orchestrator.profile.existing import HERE, Attached, AttachedNode
from orchestrator.profile.model import Profile

PROGRAM = "node_classes"
#: Seconds for vLLM to be imported twice and to make the model, on a slow and busy processor.
SECONDS = 600
#: Seconds on top of it until the connection itself ends.
LATE = 10
#: The account that it runs as in an image: nobody's.
NOBODY = "65534"
#: Enters an image in namespaces that end with the program: its layers below what it may write, no
#: device but the ones that every program needs, no network but the loopback, where its one rank
#: meets itself. The arguments before "--" are the layers.
ENTER = (
    "ip link set lo up; mount -t tmpfs tmpfs /mnt; mkdir /mnt/root; below=; "
    'while [ "$1" != -- ]; do '
    'mkdir "/mnt/$#"; mount -t squashfs -o ro,loop "$1" "/mnt/$#"; below="/mnt/$#${below:+:$below}"'
    "; shift; done; shift; mkdir /mnt/upper /mnt/work; "
    'mount -t overlay -o "lowerdir=$below,upperdir=/mnt/upper,workdir=/mnt/work" image /mnt/root; '
    "cd /mnt/root; mount -t proc proc proc; mount -t tmpfs -o mode=1777 tmpfs tmp; "
    "mount -t tmpfs tmpfs dev; mkdir dev/shm; chmod 1777 dev/shm; "
    "for each in null zero random urandom; do "
    'touch "dev/$each"; mount --bind "/dev/$each" "dev/$each"; done; '
    f'exec chroot --userspec={NOBODY}:{NOBODY} . "$@"'
)
UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--net")
#: Variables in an image. A build for an accelerator finds none there: it says so as the processor.
IN_IMAGE = {"HOME": "/tmp", "PATH": f"{VENV}/bin:/usr/sbin:/usr/bin", "VLLM_TARGET_DEVICE": "cpu"}


@dataclass(frozen=True)
class EngineAt:
    """Where a Python with vLLM is. ``which``: what tells that vLLM from another one, None where
    nobody answers; ``ask`` raises UserError where there is no answer."""

    name: str
    which: Callable[[], object]
    ask: Callable[[Mapping[str, Any]], dict[str, Any]]


def answered(
    profile: Profile | Attached, config: Mapping[str, Any], formats: tuple[str, str],
    note: Callable[[str], None],
) -> tuple[EngineSays | None, list[str]]:  # fmt: skip
    """What the engine says of a model, and why others that are at hand were not asked."""
    asked = {"config": dict(config), "dtype": formats[0], "cache": formats[1]}
    reasons: list[str] = []
    for place in places(profile, reasons):
        try:
            file = _kept(place, asked)
            if not file.is_file():
                note(f"asking vLLM's classes: {place.name} (up to {SECONDS} s; --no-engine: not)")
                file.parent.mkdir(parents=True, exist_ok=True)
                said = place.ask(asked)
                if said.get("stage") == "import":
                    raise UserError(f"vLLM cannot be imported: {said.get('why')}")
                write_json(file, said)
            return EngineSays.of(place.name, json.loads(file.read_text())), reasons
        except UserError as error:
            reasons.append(f"{place.name}: {error.message.splitlines()[0]}")
        except (TypeError, ValueError, AttributeError) as error:
            file.unlink(missing_ok=True)
            reasons.append(f"{place.name}: its answer is not what was asked for: {error}")
    return None, reasons


def _kept(place: EngineAt, asked: Mapping[str, Any]) -> Path:
    program = on_nodes.source(PROGRAM)
    text = json.dumps([place.which(), asked, program], sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()
    return paths.cache() / "models" / "engine" / f"{name}.json"


def places(profile: Profile | Attached, reasons: list[str]) -> Iterator[EngineAt]:
    """Where it can be asked, the truest first; to ``reasons``: why not elsewhere."""
    if isinstance(profile, Attached):
        for node in sorted(profile.nodes, key=lambda each: not each.ranks):
            if node.engine:
                yield EngineAt(node.name, partial(_versions, profile, node),
                            partial(_on_attached, node, profile.serving.env))  # fmt: skip
        return
    if (paths.cluster(profile.name)).is_dir():
        try:
            cluster = open_cluster(profile)
        except UserError as error:
            reasons.append(f"{profile.server.name}: {error.message.splitlines()[0]}")
        else:
            server = on_nodes.OurNode(cluster, profile.server)
            yield EngineAt(profile.server.name, lambda: cluster.image_id,
                        partial(server.as_service, PROGRAM, seconds=SECONDS))  # fmt: skip
    image = store.built(profile.image)
    if image is None:
        reasons.append(f"image {profile.image}: not built on this computer")
    elif os.geteuid():
        reasons.append(f"image {profile.image}: only root can mount it")
    else:
        yield EngineAt(f"image {profile.image}", lambda: ident(image),
                    partial(_on_attached, _inside(image, profile.image),
                            profile.serving_env() | IN_IMAGE))  # fmt: skip


def _versions(profile: Attached, node: AttachedNode) -> object:
    """What its vLLM may differ by from another one."""
    found = TheirNode(profile, node).with_torch("node_state", 0.0, STATE_TIMEOUT)["versions"]
    if "vllm" not in found:
        raise UserError(f"{node.engine} has no vLLM")
    return [node.host, node.enter, node.engine, profile.serving.env, found]


def _inside(image: Path, name: str) -> AttachedNode:
    """An image of the Nix store as a node of this computer."""
    layers = [str((image / layer["file"]).resolve()) for layer in layers_of(image)]
    enter = (*UNSHARE, "sh", "-euc", ENTER, "sh", *layers, "--")
    python = f"{VENV}/bin/python"
    return AttachedNode(name="image", host=HERE, enter=enter, python=python, engine=python)


def _on_attached(
    node: AttachedNode, env: Mapping[str, str], asked: Mapping[str, Any]
) -> dict[str, Any]:
    assert node.engine is not None
    text = AROUND.format(text=on_nodes.source(PROGRAM))
    variables = [f"{name}={value}" for name, value in env.items()]
    start = guarded(SECONDS, ["env", *variables, node.engine], node.engine)
    begun = time.monotonic()
    try:
        return NodeShell(node).ask(text, dict[str, Any], json.dumps(asked),
                                   timeout=SECONDS + LATE, start=start)  # fmt: skip
    except NotReached:
        if time.monotonic() - begun < SECONDS:
            raise
        raise UserError(f"timed out after {SECONDS} s; killed") from None
