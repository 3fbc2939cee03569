"""What a support bundle has of this machine: versions, profile, and the control side's logs."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from orchestrator.cluster import known_secrets
from orchestrator.cluster.cluster import Cluster, open_cluster
from orchestrator.cluster.kernels import stored
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.foreign import ForeignDirectory
from orchestrator.core.run import run
from orchestrator.image import MANIFEST, ident, lockfile, store
from orchestrator.node.remote import Remote
from orchestrator.node.trust import Trust, open_trust
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import driver
from orchestrator.provision.machines.composed import Driver
from orchestrator.provision.netboot import images
from orchestrator.provision.netboot.state import EVENTS

#: Bytes of one log, its end.
LOG_BYTES = 4 << 20
COMMAND_S = 20.0
#: Units of this machine, which a user may have made of these commands.
OWN_UNITS = ("orchestrate-watch.service",)
#: Name in the bundle -> words.
COMMANDS = {
    "kernel.txt": ("uname", "-a"),
    "disks.txt": ("df", "-hT"),
    "memory.txt": ("free", "-m"),
    "addresses.txt": ("ip", "address"),
    "namespaces.txt": ("ip", "netns"),
    "nix.txt": ("nix", "--version"),
    "systemd-nspawn.txt": ("systemd-nspawn", "--version"),
    "qemu.txt": ("qemu-system-x86_64", "--version"),
    "nginx.txt": ("nginx", "-v"),
}


class BundleFiles(Protocol):
    """A bundle that is being written."""

    def add(self, name: str, text: str, source: str, cut: bool = False) -> None: ...
    def document(self, name: str, document: Any, source: str) -> None: ...
    def lacks(self, name: str, why: str) -> None: ...


def here(profile: Profile, bundle: BundleFiles) -> None:
    """Add all of it; what there is not is said to be missing."""
    told = f"{profile.path.name}, with defaults, without what may be a secret"
    bundle.document("profile.json", known_secrets.shown(profile), told)  # JSON is YAML, too
    _document(bundle, "versions.json", lambda: versions(profile))
    _document(bundle, "image/packages.json", lambda: packages(profile.image))
    _document(bundle, "image/choice.json", lambda: vars(images.read(profile.name)))
    _document(bundle, "kernels.json", lambda: list(stored(profile.name)))
    built = store.built(profile.image)
    if built:
        _file(bundle, "image/manifest.json", built, MANIFEST)
    for name, argv in COMMANDS.items():
        _command(bundle, f"here/{name}", argv)
    for unit in OWN_UNITS:
        journal = ("journalctl", "--no-pager", "--boot", "--lines=5000", f"--unit={unit}")
        _command(bundle, f"here/{unit}.txt", journal)
    for name, root, inside in logs(profile.name):
        _file(bundle, name, root, inside)


@dataclass(frozen=True)
class Reach:
    """Nodes and the way to them: what is left of a cluster whose image or model is not as it
    should be."""

    profile: Profile
    driver: Driver
    trust: Trust

    def remote(self, node: Node) -> Remote:
        return Remote(node.name, str(self.profile.boot_link(node).address), self.trust)


def opened(profile: Profile, bundle: BundleFiles) -> Cluster | None:
    """The cluster as other commands see it, if it can be opened."""
    if not was_up(profile):
        return None
    try:
        return open_cluster(profile)
    except UserError as error:
        for name in ("status.json", "checks/verify.json"):
            bundle.lacks(name, error.message)
        return None


def reached(profile: Profile, bundle: BundleFiles) -> Reach | None:
    """Its nodes, if the cluster was ever up here: asking makes keys where there are none."""
    if not was_up(profile):
        bundle.lacks("nodes/", f"the cluster {profile.name!r} was never brought up on this machine")
        return None
    try:
        return Reach(profile, driver(profile), open_trust(profile.name))
    except UserError as error:
        bundle.lacks("nodes/", error.message)
        return None


def was_up(profile: Profile) -> bool:
    return (paths.cluster(profile.name) / "known_hosts").exists()


def versions(profile: Profile) -> dict[str, Any]:
    """Of orchestrate and the image."""
    built = store.built(profile.image)
    lock = lockfile.path_of(profile.image)
    return {
        "orchestrate": version("orchestrate"),
        "checkout": checkout(),
        "python": sys.version,
        "system": platform.platform(),
        "image": profile.image,
        "image_id": ident(built) if built else None,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "profile_sha256": profile.sha256,
    }


def checkout() -> dict[str, str]:
    """The commit that runs, or of a copy on a control host the digest of its files."""
    tree = paths.checkout()
    found = {}
    with suppress(UserError):
        for name, words in {"commit": ("rev-parse", "HEAD"), "changed": ("status", "-s")}.items():
            argv = ["git", "-C", str(tree), *words]
            found[name] = run(argv, ok=None, timeout=COMMAND_S).out.strip()
    with suppress(OSError):
        found["synced"] = Path(f"{tree}.sync", "tree").read_text().strip()
    return found


def packages(image: str) -> dict[str, Any]:
    """Names and versions of all that the image is locked to."""
    lock = lockfile.read(image)
    if lock is None:
        raise UserError(f"the image {image!r} is not locked")
    return {
        kind: {file.name: file.version for file in files}
        for kind, files in (("debs", lock.debs), ("wheels", lock.wheels), ("sources", lock.sources))
    }


def logs(cluster: str) -> Iterator[tuple[str, Path, str]]:
    """Logs of the control side: name in the bundle, directory, path in it. Not boots.json: it has
    nonces."""
    home, lasting = paths.cluster(cluster), paths.lasting(cluster)
    yield "control/timeline.jsonl", home, "timeline.jsonl"
    with suppress(OSError, UserError):
        for inside in ForeignDirectory(lasting).files(EVENTS):
            yield f"control/{inside}", lasting, inside
    # Consoles, and QEMU's own words. Beside them are keys of machines.
    machines = home / "machines"
    for pattern in ("*/console.log", "*/qemu.log", "*/*.log"):
        for path in sorted(machines.glob(pattern)):
            inside = str(path.relative_to(machines))
            yield f"machines/{inside}", machines, inside


def _document(bundle: BundleFiles, name: str, make: Callable[[], Any]) -> None:
    try:
        bundle.document(name, make(), "orchestrate")
    except (OSError, ValueError, UserError) as error:
        bundle.lacks(name, str(error))


def _command(bundle: BundleFiles, name: str, argv: tuple[str, ...]) -> None:
    try:
        done = run(argv, ok=None, timeout=COMMAND_S)
    except UserError as error:
        bundle.lacks(name, error.message)
    else:
        bundle.add(name, done.out + done.err, " ".join(argv))


def _file(bundle: BundleFiles, name: str, root: Path, inside: str) -> None:
    """The end of a plain file, from the beginning of a line: half a secret would not be known.

    Root in the control node's container owns some of the directories: no link leads out of them.
    """
    try:
        with ForeignDirectory(root).open(inside) as file:
            start = max(0, file.seek(0, os.SEEK_END) - LOG_BYTES)
            file.seek(start)
            data = file.read(LOG_BYTES)
    except OSError as error:
        bundle.lacks(name, f"{root / inside}: {error.strerror or 'there is no such file'}")
        return
    except UserError as error:
        bundle.lacks(name, error.message)
        return
    if start:
        data = data.partition(b"\n")[2]
    bundle.add(name, data.decode(errors="replace"), str(root / inside), start > 0)
