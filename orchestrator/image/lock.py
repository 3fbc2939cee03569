"""Lock an image: resolve what image.yml asks for into files with hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from orchestrator import paths
from orchestrator.errors import BadInput
from orchestrator.image import apt, download, lockfile, seed, spec, wheels
from orchestrator.image.lockfile import Deb, Lock, PythonPart
from orchestrator.image.spec import Spec


@dataclass(frozen=True)
class Locked:
    """What locking came to: the lock, and one line for each change against the old one."""

    lock: Lock
    changes: tuple[str, ...]


def lock(name: str, mirror: str | None = None) -> Locked:
    """Resolve the image ``name`` and write its lock.json; an unchanged one is left alone.

    Raises BadInput where image.yml cannot be resolved, UserError where a mirror or the package
    index cannot be used. The old lock is then untouched.
    """
    image = spec.load(name)
    old = lockfile.read(name)
    debs = apt.resolve(name, image.debian, mirror)
    found = wheels.resolve(name, image.python, debs) if image.python else []
    new = Lock(
        inputs=image.digest(),
        epoch=image.epoch,
        python=PythonPart(version=image.python.version, rename=image.python.rename)
        if image.python
        else None,
        system=image.system,
        seed=_seed(name, image, debs, mirror),
        debs=tuple(debs),
        wheels=tuple(found),
    )
    if new != old:
        lockfile.write(name, new)
    return Locked(new, tuple(lockfile.changes(old, new)))


def _seed(name: str, image: Spec, debs: list[Deb], mirror: str | None) -> lockfile.Seed | None:
    """The seed with its hash, which only the package's content gives."""
    if image.seed is None:
        return None
    deb = next((deb for deb in debs if deb.name == image.seed.package), None)
    if deb is None:
        raise BadInput(
            f"images/{name}/image.yml: seed.package: {image.seed.package!r} is not installed"
        )
    content = seed.extract(_bring(deb, apt.mirror(mirror)), image.seed.file)
    return lockfile.Seed(deb=deb.name, file=image.seed.file, sha256=seed.nar_hash(content))


def _bring(deb: Deb, mirror: str) -> Path:
    target = paths.cache() / "downloads" / deb.store
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or download.digest(target) != deb.sha256:
        with download.client() as web:
            url = f"{mirror}/{quote(deb.path)}"
            download.Downloader(web).fetch(url, target, deb.size, deb.sha256)
    return target
