"""From the laptop: the checkout goes to the control host, and commands run there, over SSH.

The user's own ssh does it, with their keys, their known hosts and their ~/.ssh/config: it is their
computer, not one of the cluster's. The laptop needs Python and ssh only.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import on_control
from orchestrator.core import paths, run
from orchestrator.core.errors import UserError
from orchestrator.profile.choose import VARIABLE as PROFILE_VARIABLE

if TYPE_CHECKING:
    from orchestrator.profile import Profile

#: Set where a command was sent to: it is not sent on.
HERE = "ORCHESTRATE_ON_CONTROL"
#: Where a profile goes that is not of the checkout.
GUESTS = ".profiles"
#: Sent last: a tree that has it came whole.
END = ".end-of-sync"
#: Seconds for what only looks, for the tree to arrive, and for another sync or command to end.
LOOK_TIMEOUT, SEND_TIMEOUT, LOCK_TIMEOUT = 60.0, 600.0, 10
#: Exit codes: ssh's own where it failed; the scripts' where they will not.
SSH_FAILED, FOREIGN, BUSY = 255, 4, 5

#: $1: the checkout. Prints what was synced last and what was set up last. A directory that no sync
#: made is not touched.
LOOK = f"""\
cd || exit
for tool in tar flock; do
  command -v "$tool" >/dev/null || {{ echo "$tool is not installed" >&2; exit 3; }}
done
if [ -e "$1" ] && [ ! -e "$1.sync/tree" ]; then exit {FOREIGN}; fi
cat "$1.sync/tree" 2>/dev/null || echo none
if [ -x "$1/.venv/bin/python" ]; then cat "$1.sync/set-up" 2>/dev/null || echo none
else echo none; fi
"""
#: $1: the checkout, $2: the tree's digest, $3: its KiB; the tree comes as tar. Beside and renamed:
#: what an interruption leaves is either the old tree or the new one, or the old one's name still to
#: give. tar takes what was cut off between two files for whole: hence END. What root left in an old
#: tree is not this account's to remove: SET_UP does it. Commands that were sent hold the lock too.
TAKE = f"""\
set -eu
umask 022
cd
p=$1
mkdir -p "$p.sync"
exec 9>>"$p.sync/lock"
flock -w {LOCK_TIMEOUT} 9 || exit {BUSY}
[ -e "$p" ] || [ ! -e "$p.sync/before" ] || mv "$p.sync/before" "$p"
[ ! -e "$p.sync/before" ] || mv "$p.sync/before" "$p.sync/old.$$"
if [ -e "$p" ] && [ -e "$p.sync/new/.venv" ]; then mv "$p.sync/new/.venv" "$p/.venv"; fi
rm -rf "$p.sync/new"
free=$(df -k --output=avail "$p.sync" | tail -n 1)
if [ "$free" -lt "$3" ]; then
  echo "no space: $3 KiB needed, $((free)) KiB free" >&2; exit 1
fi
mkdir "$p.sync/new"
tar -xf - -C "$p.sync/new" || {{ rm -rf "$p.sync/new"; exit 1; }}
rm "$p.sync/new/{END}" 2>/dev/null || {{ echo "the transfer was incomplete" >&2; exit 1; }}
echo none >"$p.sync/tree"
rm -f "$p.sync/set-up"
if [ -e "$p/.venv" ]; then mv "$p/.venv" "$p.sync/new/.venv"; fi
[ ! -e "$p" ] || mv "$p" "$p.sync/before"
mv "$p.sync/new" "$p"
echo "$2" >"$p.sync/tree.new"
mv "$p.sync/tree.new" "$p.sync/tree"
"""
#: $1, $2 as above. Nix takes from a checkout what git knows: so it becomes one. The environment's
#: directory is the account's, what root puts in it is not: a sync has to move it.
SET_UP = f"""\
set -eu
exec >&2
as_root() {{ if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }}
cd
cd "$1"
exec 9>>"$(pwd).sync/lock"
flock -w {LOCK_TIMEOUT} 9 || exit {BUSY}
mkdir -p .venv
as_root tools/setup.sh
git init -q
git add -A
git -c user.name=orchestrate -c user.email=orchestrate@localhost -c commit.gpgsign=false \
  commit -qm synced --allow-empty
cd
as_root rm -rf "$1.sync/before" "$1.sync"/old.*
echo "$2" >"$1.sync/set-up"
"""


@dataclass(frozen=True)
class Synced:
    """What a sync did: how many files are there, and whether anything was to do."""

    files: int
    changed: bool


@dataclass(frozen=True)
class RemoteCheckout:
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
            sent = archive(files)
            size = str(len(sent) // 1024)
            self._script(TAKE, digest, size, stdin=sent, timeout=SEND_TIMEOUT, what="the sync")
        if set_up != digest:
            say(f"{self.name}: setting it up")
            code = run.attached(self._ssh(_sh(SET_UP, self.path, digest), terminal=_is_terminal()))
            if code == BUSY:
                raise self._busy()
            if code != 0:
                raise UserError(
                    f"{self.name}: the set-up failed (exit code {code})",
                    f"What it printed is above. By hand: ssh {self.name}, then in {self.path}: "
                    "tools/setup.sh",
                )
        return Synced(len(files), changed=(there, set_up) != (digest, digest))

    def run(self, words: Sequence[str], *, reads_input: bool = False) -> int:
        """Run an orchestrate command in the checkout there, as root; its exit code.

        Output, terminal and Ctrl-C are passed through, and the standard input to what reads it.
        """
        mode = on_control.TERMINAL
        if not _is_terminal():
            piped = reads_input and not sys.stdin.isatty()
            mode = on_control.INPUT if piped else on_control.LIFELINE
        if mode == on_control.LIFELINE:
            return run.with_lifeline(self.lifeline_argv(words))
        there = self._sent(mode, words)
        return run.attached(self._ssh(there, terminal=mode == on_control.TERMINAL))

    def lifeline_argv(self, words: Sequence[str]) -> list[str]:
        """The local command that runs an orchestrate command there, until its input ends."""
        return self._ssh(self._sent(on_control.LIFELINE, words))

    def _sent(self, mode: str, words: Sequence[str]) -> str:
        env = [f"{HERE}=1", f"{PROFILE_VARIABLE}={self.profile_there}"]
        python = [".venv/bin/python", "-m", on_control.__name__, mode]
        return self._as_root(["env", *env, *python, *words])

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
        last = cause(result.err.strip() or result.out.strip() or "no output")
        if result.code == SSH_FAILED:
            raise UserError(
                f"{self.name}: ssh failed: {last}",
                f"Try by hand: ssh {self.name}. For another name or user, set control_host.ssh "
                f"in {self.profile.path.name}, or use ~/.ssh/config.",
            )
        if result.code == BUSY:
            raise self._busy()
        if result.code == FOREIGN:
            raise UserError(
                f"{self.name}: {self.path} exists but was not created by a sync",
                "Move it away, or set control_host.path to another directory.",
            )
        if result.code != 0:
            raise UserError(
                f"{self.name}: {what} failed: {last}",
                "The checkout there is complete: the old or the new one.",
            )
        return result.out

    def _busy(self) -> UserError:
        return UserError(
            f"{self.name}: another command or sync is still running there",
            "The checkout there is in use. Wait, or stop that command where it was started. "
            f"To see it: ssh {self.name} pgrep -af {on_control.__name__}",
        )

    def _ssh(self, command: str, *, terminal: bool = False) -> list[str]:
        options = {
            "ControlMaster": "auto",
            "ControlPath": f"{_sockets()}/%C",
            "ControlPersist": "60",
            "ServerAliveInterval": "15",
        }
        words = [f"-o{key}={value}" for key, value in options.items()]
        return ["ssh", *words, *(["-t"] if terminal else []), "--", self.name, command]


def is_here(profile: Profile) -> bool:
    """Whether this computer is the profile's control host: a command or this checkout was sent
    here, or the card of the control node is (or was, before its container got it) this computer's.
    """
    checkout = paths.checkout()
    marks = (paths.cluster(profile.name) / "machines", Path(f"{checkout}.sync", "tree"))
    if os.environ.get(HERE) or any(mark.exists() for mark in marks):
        return True
    mac = profile.boot_link(profile.control).mac
    cards = Path("/sys/class/net").glob("*/address")
    return bool(mac) and any(card.read_text().strip() == mac for card in cards)


def tree(checkout: Path, profile: Path) -> Iterator[tuple[str, Path]]:
    """What is sent: path there, file here. What git ignores stays; no state and no key is in it."""
    kept = (paths.state(), paths.cache())
    for name in _listed(checkout):
        file = checkout / name
        if any(file.is_relative_to(place) for place in kept):
            continue
        if file.is_symlink() or file.is_file():
            yield name, file
    if profile.resolve().parent != checkout / "profiles":
        yield f"{GUESTS}/{profile.name}", profile.resolve()


def _listed(checkout: Path) -> list[str]:
    """Raises UserError where git is there and refuses: what it ignores is then not known."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return sorted(_listed_without_git(checkout))
    argv = ["git", "-C", str(checkout), "ls-files", "-co", "--exclude-standard", "-z"]
    found = run.run(argv, ok=None, what="asking git what belongs to the checkout")
    if found.code != 0:
        said = (found.err.strip() or "no output").splitlines()[0]
        raise UserError(
            f"git cannot list the files of {checkout}: {said}",
            f"Try by hand: git -C {shlex.quote(str(checkout))} status",
        )
    return sorted(set(filter(None, found.out.split("\0"))))


def _listed_without_git(checkout: Path) -> Iterator[str]:
    """All but what .gitignore names: it has names only, with * in them or / before them."""
    ignore = checkout / ".gitignore"
    lines = ignore.read_text(encoding="utf-8").split() if ignore.exists() else []
    for path in checkout.rglob("*"):
        parts = path.relative_to(checkout).parts
        if parts[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        if not any(
            fnmatchcase(part, line.strip("/"))
            for line in lines
            for part in (parts[:1] if line.startswith("/") else parts)
        ):
            yield "/".join(parts)


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
        tar.addfile(tarfile.TarInfo(END))
    return out.getvalue()


def _content(file: Path) -> bytes:
    return os.fsencode(file.readlink()) if file.is_symlink() else file.read_bytes()


def _mode(file: Path) -> int:
    return 0o755 if file.lstat().st_mode & stat.S_IXUSR else 0o644


def _sh(script: str, *words: str) -> str:
    return shlex.join(["sh", "-c", script, "sh", *words])


def cause(said: str) -> str:
    """The last line that says what went wrong; tar's own last one only says that it did."""
    lines = said.splitlines()
    return next((line for line in reversed(lines) if "Exiting with failure" not in line), lines[-1])


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _sockets() -> Path:
    """Where connections are kept for reuse: private, and short enough for a socket's name."""
    # Not $TMPDIR, which is long on macOS.
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    base = own if own and os.access(own, os.W_OK) else "/tmp"
    sockets = Path(base, f"{paths.APP}-ssh-{os.getuid()}")
    sockets.mkdir(mode=0o700, exist_ok=True)
    found = sockets.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{sockets} is not private to this user", f"Remove it: rm -r {sockets}")
    return sockets
