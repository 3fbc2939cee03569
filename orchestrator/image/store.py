"""The Nix store: compute store paths, find missing ones, add files, keep roots."""

from __future__ import annotations

import grp
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import CommandFailed, run, stream
from orchestrator.image import seed

if TYPE_CHECKING:
    from orchestrator.image.lockfile import File, Lock

BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"
BUILD_GROUP = "nixbld"
#: What Nix says where it can make no namespaces.
NO_SANDBOX = re.compile(
    r".*(?:unable to start build process|required for sandboxing|cloning builder process).*"
)


def directory() -> Path:
    """The store's directory; Nix's variable NIX_STORE_DIR can move it."""
    return Path(os.environ.get("NIX_STORE_DIR", "/nix/store"))


def path_of_file(file: File) -> Path:
    """The store path of a locked file."""
    return path_of(file.sha256, file.store)


def path_of(sha256: str, name: str) -> Path:
    """The store path of a file with this hash and name."""
    return fixed_path(f"fixed:out:sha256:{sha256}:", "output:out", name)


def path_of_seed(sha256: str) -> Path:
    """The store path of the seed's directory, by the hash of its NAR."""
    return _path("source", sha256, seed.STORE_NAME)


def paths_of(lock: Lock) -> dict[Path, File | None]:
    """All store paths of a lock, in the lock's order; the seed's has no file."""
    found: dict[Path, File | None] = {path_of_file(file): file for file in lock.files}
    if lock.seed:
        found[path_of_seed(lock.seed.sha256)] = None
    return found


def sizes(files: Iterable[File]) -> list[int | None]:
    """Bytes of each file, by its lock, else by the store; None if neither has it."""
    return [file.size if file.size is not None else _stored_size(file) for file in files]


def _stored_size(file: File) -> int | None:
    path = path_of_file(file)
    return path.stat().st_size if path.exists() else None


def fixed_path(inner: str, kind: str, name: str) -> Path:
    """The path of a fixed output, from its fingerprint's text (Nix's store specification)."""
    return _path(kind, hashlib.sha256(inner.encode()).hexdigest(), name)


def _path(kind: str, sha256: str, name: str) -> Path:
    text = f"{kind}:sha256:{sha256}:{directory()}:{name}"
    return directory() / f"{_base32(_fold(hashlib.sha256(text.encode()).digest()))}-{name}"


def _fold(digest: bytes, length: int = 20) -> bytes:
    """Shorten a digest as Nix does: the bytes beyond ``length`` are xored onto the first ones."""
    folded = bytearray(length)
    for at, byte in enumerate(digest):
        folded[at % length] ^= byte
    return bytes(folded)


def _base32(data: bytes) -> str:
    """Nix's base 32: a special alphabet, and the last digit first."""
    number = int.from_bytes(data, "little")
    digits = (len(data) * 8 + 4) // 5
    return "".join(BASE32[number >> (5 * at) & 31] for at in reversed(range(digits)))


def options() -> list[str]:
    """Options for every Nix command: builds are not done without a sandbox where none is possible;
    root needs one more if there are no build users (no daemon)."""
    given = ["--option", "sandbox-fallback", "false"]
    if os.geteuid() == 0 and not _group_exists(BUILD_GROUP):
        given += ["--option", "build-users-group", ""]
    return given


def build(words: Sequence[str], line: Callable[[str], None], *, what: str) -> None:
    """Run 'nix build' and hand each line that it prints to ``line``.

    Raises UserError where it fails, and says what to do where no sandbox is possible.
    """
    nix = ["nix", *options(), "--extra-experimental-features", "nix-command flakes"]
    # Newer versions, then older ones.
    shown = run([*nix, "config", "show"], ok=None).out or run([*nix, "show-config"], ok=None).out
    if re.search(r"^sandbox = false$", shown, re.MULTILINE):
        line("warning: builds are not sandboxed: Nix's settings have sandbox = false")
    try:
        stream([*nix, "build", *words, "-L", "--no-write-lock-file"], line, what=what)
    except CommandFailed as error:
        if not (why := NO_SANDBOX.search(error.result.err)):
            raise
        raise UserError(
            f"{what}: Nix cannot run builds in a sandbox on this machine: {why[0]}",
            "Allow namespaces here (in a container, those of users and mounts). Or choose builds "
            "that can read this machine's files and use its network: NIX_CONFIG='sandbox = false'",
        ) from None


def _group_exists(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def require_nix() -> None:
    """Raises UserError if Nix is not installed."""
    if shutil.which("nix-store") is None or shutil.which("nix") is None:
        raise UserError(
            "Nix is not installed: images are built by it and kept in its store",
            "On Debian and Ubuntu: apt-get install nix-bin. Elsewhere: https://nixos.org/download",
        )


def missing(wanted: Iterable[Path]) -> set[Path]:
    """The paths in ``wanted`` that the store does not have."""
    words: list[str | Path] = ["--check-validity", "--print-invalid", *wanted]
    return set(_nix_store(words, "asking the Nix store what it has")) if words[2:] else set()


def add_files(files: Sequence[Path]) -> list[Path]:
    """Copy files into the store under their own names; return their store paths."""
    return _nix_store(["--add-fixed", "sha256", *files], "adding files to the Nix store")


def add_directory(path: Path) -> Path:
    """Copy a directory into the store under its own name; return its store path."""
    words: list[str | Path] = ["--add-fixed", "--recursive", "sha256", path]
    return _nix_store(words, "adding a directory to the Nix store")[0]


def _nix_store(words: Sequence[str | Path], what: str) -> list[Path]:
    """Run nix-store; return the paths that it prints."""
    try:
        out = run(["nix-store", *options(), *words], what=what).out
    except CommandFailed as error:
        if "No space left" not in error.result.err:
            raise
        raise UserError(
            f"{what}: no space left at {directory()}",
            "Free space (nix-store --gc) and run it again: it resumes where it stopped.",
        ) from None
    return [Path(line) for line in out.splitlines()]


def roots(name: str) -> Path:
    """The directory of links that protect an image's inputs from Nix's garbage collection."""
    return paths.state() / "roots" / name


def keep(name: str, wanted: Iterable[Path]) -> None:
    """Make exactly ``wanted`` the protected inputs of the image ``name``; all must exist."""
    wanted = set(wanted)
    links = roots(name)
    if links.is_dir() and {link.readlink() for link in links.iterdir()} == wanted:
        return
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    words: list[str | Path] = ["--realise", "--add-root", links / "input", *sorted(wanted)]
    if wanted:
        _nix_store(words, "protecting the inputs from garbage collection")


def out_link(name: str) -> Path:
    """The link to the built image ``name``."""
    return paths.state() / "images" / name


def built_part(name: str, part: str) -> Path | None:
    """The store path of an attribute of the image ``name``; None if it is not built."""
    argv = ["nix", *options(), "--extra-experimental-features", "nix-command flakes", "eval"]
    argv += ["--raw", f"{paths.checkout()}#{name}.{part}.outPath", "--no-write-lock-file"]
    result = run(argv, what=f"asking Nix where it builds {part}", ok=None)
    path = Path(result.out.strip() or "/nowhere")
    return path if result.code == 0 and path.exists() else None


def built(name: str) -> Path | None:
    """The store path of the built image ``name``; None if it is not built, or was collected."""
    link = out_link(name)
    return link.resolve() if link.is_symlink() and link.exists() else None
