"""The one place where commands of this machine are run (through plumbum)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbum import local
from plumbum.commands.processes import CommandNotFound, ProcessTimedOut

from orchestrator.errors import UserError

#: Which Debian package brings a command, for the hint when it is missing.
PACKAGE_OF = {
    "nix": "nix-bin",
    "nix-store": "nix-bin",
    "apt-get": "apt",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mount": "mount",
    "umount": "mount",
}


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and its two streams as text."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str


class CommandFailed(UserError):
    """A command ended with an exit code that was not expected; the text shows how to repeat it."""

    def __init__(self, result: Result, what: str) -> None:
        self.result = result
        parts = [f"{what} failed", f"  command: {shlex.join(result.argv)}"]
        parts.append(f"  exit code: {result.code}")
        for label, text in (("stdout", result.out), ("stderr", result.err)):
            lines = text.strip().splitlines()
            parts += [f"  {label}: {line}" for line in lines[-15:]]
        super().__init__("\n".join(parts))


def run(
    argv: Sequence[str | Path],
    *,
    what: str = "",
    ok: Sequence[int] | None = (0,),
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> Result:
    """Run ``argv`` to its end and return what it left.

    ``what`` names the step in errors; ``ok`` lists the exit codes that are fine (None: any);
    ``timeout`` is in seconds. Raises CommandFailed, or UserError where the command is not
    installed or took too long.
    """
    words = tuple(str(word) for word in argv)
    what = what or words[0]
    try:
        command = local[words[0]][words[1:]]
    except CommandNotFound:
        package = PACKAGE_OF.get(words[0], words[0])
        raise UserError(
            f"{what}: the command {words[0]!r} is not installed",
            f"On Debian: apt-get install {package}",
        ) from None
    try:
        code, out, err = command.run(
            stdin=stdin if stdin is None else stdin.encode(),
            env=dict(env) if env else None,
            cwd=str(cwd) if cwd else None,
            timeout=timeout,
            retcode=None,
        )
    except ProcessTimedOut:
        raise UserError(
            f"{what}: no end after {timeout:g} s", f"To repeat: {shlex.join(words)}"
        ) from None
    result = Result(words, int(code), str(out), str(err))
    if ok is not None and result.code not in ok:
        raise CommandFailed(result, what)
    return result
