"""From the laptop: the checkout goes to the control host, and commands run there, over SSH.

The user's own ssh does it, with their keys, their known hosts and their ~/.ssh/config: it is their
computer, not one of the cluster's. The laptop needs Python and ssh only.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import paths, run
from orchestrator.errors import RunsThere, UserError
from orchestrator.profile.choose import VARIABLE as PROFILE_VARIABLE

if TYPE_CHECKING:
    from orchestrator.profile import Profile

#: Set where a command was sent to: it is not sent on.
HERE = "ORCHESTRATE_ON_CONTROL"
#: Where a profile goes that is not of the checkout.
GUESTS = ".profiles"
#: Directories that are never sent where git cannot be asked.
UNSENT = (".git", ".venv", "build", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")
#: Seconds for what only looks, and for the tree to arrive.
LOOK_TIMEOUT, SEND_TIMEOUT = 60.0, 600.0
SSH_FAILED = 255

#: $1: the checkout. Prints what was synced last and what was set up last. A directory that no sync
#: made is not touched.
LOOK = """\
cd && command -v tar >/dev/null || { echo "tar is not installed"; exit 3; }
if [ -e "$1" ] && [ ! -e "$1.sync/tree" ]; then echo "not synced"; exit 4; fi
cat "$1.sync/tree" 2>/dev/null || echo none
cat "$1.sync/set-up" 2>/dev/null || echo none
"""
#: $1: the checkout, $2: the tree's digest; the tree comes as tar. Beside and renamed: what an
#: interruption leaves is either the old tree or the new one, or the old one's name still to give.
TAKE = """\
set -eu
cd
p=$1
mkdir -p "$p.sync"
[ -e "$p" ] || [ ! -e "$p.sync/before" ] || mv "$p.sync/before" "$p"
rm -rf "$p.sync/new" "$p.sync/before"
mkdir "$p.sync/new"
tar -xf - -C "$p.sync/new"
if [ -e "$p/.venv" ]; then mv "$p/.venv" "$p.sync/new/.venv"; fi
echo "$2" >"$p.sync/tree.new"
[ ! -e "$p" ] || mv "$p" "$p.sync/before"
mv "$p.sync/new" "$p"
mv "$p.sync/tree.new" "$p.sync/tree"
rm -rf "$p.sync/before"
"""
#: $1, $2 as above. Nix takes from a checkout what git knows: so it becomes one.
SET_UP = """\
set -eu
exec >&2
cd
cd "$1"
if [ "$(id -u)" = 0 ]; then tools/setup.sh; else sudo tools/setup.sh; fi
git init -q
git add -A
git -c user.name=orchestrate -c user.email=orchestrate@localhost commit -qm synced --allow-empty
cd
echo "$2" >"$1.sync/set-up"
"""


@dataclass(frozen=True)
class Synced:
    """What a sync did: how many files are there, and whether anything was to do."""

    files: int
    changed: bool


@dataclass(frozen=True)
class ControlHost:
    """The control host of a profile, by ssh."""

    profile: Profile

    @property
    def name(self) -> str:
        return self.profile.host.ssh or self.profile.control.name

    @property
    def path(self) -> str:
        return self.profile.host.path

    @property
    def profile_there(self) -> str:
        """The active profile, as a command in the checkout there names it."""
        path = self.profile.path.resolve()
        if path.parent == paths.checkout() / "profiles":
            return path.stem
        return f"{GUESTS}/{path.name}"

    def sync(self, say: Callable[[str], None]) -> Synced:
        """Bring the checkout there, as it is here, and set it up; nothing to do the second time.

        Raises UserError where the host is not reached, or its directory is not of a sync.
        """
        files = dict(tree(paths.checkout(), self.profile.path))
        digest = digest_of(files)
        there, set_up = self._look()
        if there != digest:
            say(f"{self.name}: sending {len(files)} files")
            self._script(TAKE, digest, stdin=archive(files), timeout=SEND_TIMEOUT, what="the sync")
        if set_up != digest:
            say(f"{self.name}: setting it up")
            code = run.attached(self._ssh(_sh(SET_UP, self.path, digest), terminal=_is_terminal()))
            if code != 0:
                raise UserError(
                    f"{self.name}: the set-up failed (exit code {code})",
                    f"What it printed is above. By hand: ssh {self.name}, then in {self.path}: "
                    "tools/setup.sh",
                )
        return Synced(len(files), changed=(there, set_up) != (digest, digest))

    def run(self, words: Sequence[str]) -> int:
        """Run an orchestrate command in the checkout there, as root; its exit code.

        Output, terminal and Ctrl-C are passed through.
        """
        env = [f"{HERE}=1", f"{PROFILE_VARIABLE}={self.profile_there}"]
        command = ["env", *env, ".venv/bin/python", "-m", "orchestrator", *words]
        if _is_terminal():
            return run.attached(self._ssh(self._as_root(command), terminal=True))
        wrapped = [".venv/bin/python", "-m", "orchestrator.on_control", *command]
        return run.with_lifeline(self._ssh(self._as_root(wrapped)))

    def shell_argv(self, words: Sequence[str] = ()) -> list[str]:
        """The local command that opens a shell in the checkout there, or runs ``words``."""
        inside = shlex.join(words) if words else 'exec "${SHELL:-/bin/sh}" -l'
        there = f"cd && cd {shlex.quote(self.path)} && {inside}"
        return self._ssh(there, terminal=_is_terminal() or not words)

    def _as_root(self, command: Sequence[str]) -> str:
        """In the checkout; by sudo where the account is not root's."""
        script = 'cd && cd "$0" && if [ "$(id -u)" = 0 ]; then exec "$@"; else exec sudo "$@"; fi'
        return shlex.join(["sh", "-c", script, self.path, *command])

    def _look(self) -> tuple[str, str]:
        """Digests of the tree that is there, and of the one that was set up."""
        said = self._script(LOOK, timeout=LOOK_TIMEOUT, what="a look").split()
        return said[0], said[1]

    def _script(
        self, script: str, *words: str, timeout: float, what: str, stdin: bytes = b""
    ) -> str:
        result = run.run(
            self._ssh(_sh(script, self.path, *words)),
            what=f"{what} on {self.name}",
            ok=None,
            stdin=stdin,
            timeout=timeout,
        )
        last = (result.err.strip() or result.out.strip() or "no output").splitlines()[-1]
        if result.code == SSH_FAILED:
            raise UserError(
                f"{self.name}: ssh does not get there: {last}",
                f"It has to work by hand: ssh {self.name}. Another name or user: control_host.ssh "
                f"in {self.profile.path.name}, or ~/.ssh/config.",
            )
        if result.code == 4:
            raise UserError(
                f"{self.name}: {self.path} is there and was not made by a sync",
                "Move it away, or name another place: control_host.path.",
            )
        if result.code != 0:
            raise UserError(f"{self.name}: {what} failed: {last}", "Nothing was half replaced.")
        return result.out

    def _ssh(self, command: str, *, terminal: bool = False) -> list[str]:
        options = {
            "ControlMaster": "auto",
            "ControlPath": f"{_sockets()}/%C",
            "ControlPersist": "60",
            "ServerAliveInterval": "15",
        }
        words = [f"-o{key}={value}" for key, value in options.items()]
        return ["ssh", *words, *(["-t"] if terminal else []), "--", self.name, command]


def send_on(profile: Profile) -> None:
    """Raises RunsThere where the profile says that its commands run elsewhere."""
    if profile.control_host and not is_here(profile):
        raise RunsThere(profile)


def is_here(profile: Profile) -> bool:
    """Whether this computer is the profile's control host: commands were sent here, or the card
    of the control node is (or was, before its container got it) this computer's."""
    if os.environ.get(HERE) or (paths.cluster(profile.name) / "machines").is_dir():
        return True
    mac = profile.boot_link(profile.control).mac
    cards = Path("/sys/class/net").glob("*/address")
    return bool(mac) and any(card.read_text().strip() == mac for card in cards)


def tree(checkout: Path, profile: Path) -> Iterator[tuple[str, Path]]:
    """What is sent: path there, file here. What git ignores stays; no state and no key is in it."""
    for name in _listed(checkout):
        file = checkout / name
        if file.is_symlink() or file.is_file():
            yield name, file
    if profile.resolve().parent != checkout / "profiles":
        yield f"{GUESTS}/{profile.name}", profile.resolve()


def _listed(checkout: Path) -> list[str]:
    argv = ["git", "-C", str(checkout), "ls-files", "-co", "--exclude-standard", "-z"]
    if (checkout / ".git").exists():
        try:
            found = run.run(argv, ok=None)
        except UserError:  # no git here
            found = None
        if found and found.code == 0:
            return sorted(set(filter(None, found.out.split("\0"))))
    return sorted(
        str(path.relative_to(checkout))
        for path in checkout.rglob("*")
        if not path.is_dir() and not set(path.relative_to(checkout).parts) & set(UNSENT)
    )


def digest_of(files: dict[str, Path]) -> str:
    """The sha256 of names, contents and what may be run."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{_mode(file):o}\0".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(_content(file)).digest())
    return digest.hexdigest()


def archive(files: dict[str, Path]) -> bytes:
    """The files as tar, owned by nobody in particular."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.mtime = _mode(file), int(file.lstat().st_mtime)
            if file.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(file.readlink())
                tar.addfile(entry)
            else:
                content = _content(file)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _content(file: Path) -> bytes:
    return os.fsencode(file.readlink()) if file.is_symlink() else file.read_bytes()


def _mode(file: Path) -> int:
    return 0o755 if file.lstat().st_mode & stat.S_IXUSR else 0o644


def _sh(script: str, *words: str) -> str:
    return shlex.join(["sh", "-c", script, "sh", *words])


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _sockets() -> Path:
    """Where connections are kept for reuse: private, and short enough for a socket's name."""
    # Not $TMPDIR, which is long on macOS.
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    sockets = Path(base, f"{paths.APP}-ssh-{os.getuid()}")
    sockets.mkdir(mode=0o700, exist_ok=True)
    found = sockets.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{sockets} is not private to this user", f"Remove it: rm -r {sockets}")
    return sockets
