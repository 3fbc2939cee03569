"""`orchestrate support-bundle`: one archive with what somebody else needs to see what is wrong.

Nothing of it is a condition for the rest: what cannot be had is in the manifest, with the reason.
No file with a secret is read for it; all texts, names too, go through a redactor.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from orchestrator.cluster import known_secrets
from orchestrator.cluster.cluster import Cluster
from orchestrator.cluster.down import end_children
from orchestrator.cluster.status import status
from orchestrator.cluster.support_here import Reach, here, opened, reached
from orchestrator.cluster.targets import published_models, targets, verify_context
from orchestrator.core.errors import UserError
from orchestrator.core.files import NEW
from orchestrator.core.progress import CLUSTER, Board
from orchestrator.core.redact import Redactor
from orchestrator.node.paths import PYTHON, VENV
from orchestrator.node.remote import Remote
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState
from orchestrator.verify.everything import verify

#: Bytes of one file (its end), of one node's files, and of what a node may send for them.
FILE_BYTES, NODE_BYTES = 4 << 20, 48 << 20
SENT_BYTES = 4 * NODE_BYTES
#: Seconds for a node to collect, for all of it to come, and for everything that is asked over SSH.
NODE_S, SENT_S, ALL_S = 90.0, 120.0, 420.0
#: Logs that programs of a node write by themselves, name -> pattern.
LOGS = {
    "ray": "/tmp/ray/session_latest/logs/*.*",
}
MANIFEST = "manifest.json"
NOTE = (
    "Secrets that the cluster has, and what looks like one, were replaced by ***. Look through the"
    " files before you give them away: logs may name machines, accounts, addresses and prompts."
)


@dataclass(frozen=True)
class Made:
    """The archive. ``missing``: what could not be had, and why."""

    path: str
    size: int
    files: int
    redacted: int
    missing: Mapping[str, str]


@dataclass
class Bundle:
    """The archive while it is written: by several threads, until it is closed."""

    tar: tarfile.TarFile
    redactor: Redactor
    files: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, text: str, source: str, cut: bool = False) -> None:
        """A file of the archive; ``source`` says where it is from."""
        with self.lock:
            if self.closed:
                return  # it came after the time for it
            before = self.redactor.count
            self._file(name, self.redactor.clean(text), source, cut, before)

    def document(self, name: str, document: Any, source: str) -> None:
        """A file of the archive, of what can be written as JSON."""
        with self.lock:
            if self.closed:
                return
            before = self.redactor.count
            self._file(name, self._json(document), source, False, before)

    def _json(self, document: Any) -> str:
        plain = json.loads(json.dumps(document, default=_plain))
        return json.dumps(self.redactor.document(plain), indent=1) + "\n"

    def _file(self, name: str, text: str, source: str, cut: bool, before: int) -> None:
        data = text.encode(errors="replace")
        if len(data) > FILE_BYTES:
            data, cut = data[-FILE_BYTES:].partition(b"\n")[2], True
        name = self.redactor.clean(safe(name))
        self._write(name, data)
        entry = {"name": name, "bytes": len(data), "source": source, "cut": cut}
        self.files.append(entry | {"redacted": self.redactor.count - before})

    def lacks(self, name: str, why: str) -> None:
        with self.lock:
            if not self.closed:
                self.missing[self.redactor.clean(name)] = self.redactor.clean(why)

    def close(self, profile: Profile) -> None:
        """Write the manifest; nothing comes after it."""
        with self.lock:
            self.closed = True
            document = {
                "cluster": profile.name,
                "made": time.strftime("%FT%TZ", time.gmtime()),
                "note": NOTE,
                "files": self.files,
                "missing": self.missing,
            }
            self._write(MANIFEST, self._json(document).encode())

    def _write(self, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(f"support/{name}")
        entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
        self.tar.addfile(entry, BytesIO(data))


def make(profile: Profile, path: Path, board: Board) -> Made:
    """Write the archive at ``path``: whole or not at all, for its owner only.

    Raises UserError where it cannot be written.
    """
    redactor = Redactor(known_secrets.known(profile), known_secrets.programs(profile))
    try:
        with _whole_or_nothing(path) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            bundle = Bundle(tar, redactor)
            with board.step(CLUSTER, "here"):
                here(profile, bundle)
            cluster = opened(profile, bundle)
            if reach := cluster or reached(profile, bundle):
                _ask(reach, cluster, bundle, board)
            bundle.close(profile)
    except OSError as error:
        raise UserError(
            f"the bundle cannot be written: {path}: {error.strerror}",
            "Name another place with --out.",
        ) from None
    size = path.stat().st_size
    return Made(str(path), size, len(bundle.files), redactor.count, bundle.missing)


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when the body has ended well."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=NEW, dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:  # mkstemp: 0600
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def safe(name: str) -> str:
    """A name that a node gave, as a path that stays inside the archive's directory."""
    parts = [re.sub(r"[^A-Za-z0-9._@+-]", "_", part)[:120] for part in name.split("/")]
    return "/".join(part for part in parts if part.strip("."))


def _ask(reach: Cluster | Reach, cluster: Cluster | None, bundle: Bundle, board: Board) -> None:
    """Everything over the cluster's network, side by side, until the time is over."""
    tasks: dict[str, Callable[[], None]] = {}
    units: dict[str, list[str]] = {}
    if cluster:
        tasks["status.json"] = lambda: _status(cluster, bundle)
        tasks["checks/verify.json"] = lambda: _verify(cluster, bundle)
        for name, target in targets(cluster, {}).items():
            units[name] = [unit.name for unit in target.state.units]
    power: dict[str, str] = {}
    for node in reach.profile.nodes:
        task = _node_task(reach, node, units.get(node.name, []), power, bundle)
        tasks[f"nodes/{node.name}"] = task
    pool = ThreadPoolExecutor(len(tasks))
    try:
        running = {name: pool.submit(_step, board, name, task) for name, task in tasks.items()}
        wait(running.values(), timeout=ALL_S)
        for name, future in running.items():
            if why := _why_not(future):
                bundle.lacks(name, why)
        bundle.document("power.json", power, "the power drivers")
        if not all(future.done() for future in running.values()):
            end_children()
    except BaseException:
        end_children()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _step(board: Board, name: str, task: Callable[[], None]) -> None:
    with board.step(CLUSTER if "nodes/" not in name else name.partition("/")[2], "collect"):
        task()


def _why_not(future: Future[None]) -> str:
    """Why a part is not there; empty where it is."""
    if not future.done():
        return f"not done after {ALL_S:g} s"
    error = future.exception()
    if error is None:
        return ""
    return error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _node_task(
    reach: Cluster | Reach, node: Node, units: list[str], power: dict[str, str], bundle: Bundle
) -> Callable[[], None]:
    def collect() -> None:
        try:
            state = reach.driver.state(node)
        except UserError as error:
            power[node.name] = f"unknown: {error.message}"
        else:
            power[node.name] = str(state)
            if state == PowerState.OFF:
                raise UserError("it is off")
        with reach.driver.network():
            _logs(reach.remote(node), units, bundle)

    return collect


def _logs(node: Remote, units: list[str], bundle: Bundle) -> None:
    """What `support_node.py` prints there; its names and texts may be anything."""
    want = {"units": units, "logs": LOGS, "bytes": FILE_BYTES, "total": NODE_BYTES,
            "seconds": NODE_S, "venv": VENV}  # fmt: skip
    source = Path(__file__).with_name("support_node.py").read_text()
    with tempfile.TemporaryFile() as file:
        node.capture(
            [PYTHON, "-I", "-", json.dumps(want)],
            file,
            limit=SENT_BYTES,
            timeout=SENT_S,
            what="collecting logs",
            stdin=source,
        )
        file.seek(0)
        try:
            said = json.load(file)
            files, missing = dict(said["files"]), dict(said["missing"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError("what it sent cannot be read") from None
    for name, entry in files.items():
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            bundle.add(
                f"nodes/{node.name}/{name}", entry["text"], node.name, bool(entry.get("cut"))
            )
    for name, why in missing.items():
        bundle.lacks(f"nodes/{node.name}/{name}", str(why)[:500])


def _status(cluster: Cluster, bundle: Bundle) -> None:
    bundle.document("status.json", status(cluster).document(), "orchestrate status --json")


def _verify(cluster: Cluster, bundle: Bundle) -> None:
    profile = cluster.profile
    context = verify_context(cluster, published_models(cluster))
    report = verify(profile, context)
    bundle.document("checks/verify.json", report.document(), "orchestrate verify --json")


def _plain(value: object) -> object:
    """What JSON has no type for."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
