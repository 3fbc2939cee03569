"""The one place where commands of this machine are run (through plumbum)."""

from __future__ import annotations

import os
import select
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from tempfile import TemporaryFile
from threading import Thread
from typing import Any, BinaryIO

from plumbum import local
from plumbum.commands.processes import CommandNotFound, ProcessTimedOut

from orchestrator.core.errors import UserError

#: Which Debian package brings a command, for the hint when it is missing.
PACKAGE_OF = {
    "nix": "nix-bin",
    "nix-store": "nix-bin",
    "apt-get": "apt",
    "systemd-nspawn": "systemd-container",
    "qemu-system-x86_64": "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "umount": "mount",
    "tc": "iproute2",
    "openssl": "openssl",
    "sbsign": "sbsigntool",
    "sbvarsign": "sbsigntool",
}


#: Seconds for a command to end when its standard input has.
PATIENCE = 10.0
#: Seconds in which one that has ended says its last words.
QUIET = 1.0
#: Bytes that are read at once, and how many of its errors' last ones are kept.
CHUNK, ERRORS_KEPT = 1 << 20, 1 << 16


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
    stdin: str | bytes | None = None,
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
    command = _command(words, what)
    if stdin is not None:
        command = command << (stdin.encode() if isinstance(stdin, str) else stdin)
    try:
        code, out, err = command.run(
            env=dict(env) if env else None,
            cwd=str(cwd) if cwd else None,
            timeout=timeout,
            retcode=None,
        )
    except ProcessTimedOut:
        raise UserError(
            f"{what}: timed out after {timeout:g} s", f"To repeat: {shlex.join(words)}"
        ) from None
    result = Result(words, int(code), str(out), str(err))
    if ok is not None and result.code not in ok:
        raise CommandFailed(result, what)
    return result


def stream(argv: Sequence[str | Path], line: Callable[[str], None], *, what: str = "") -> Result:
    """Run ``argv`` and hand each line that it writes, on either stream, to ``line`` at once.

    The result's ``err`` holds both streams. Raises as ``run`` does.
    """
    words = tuple(str(word) for word in argv)
    what = what or words[0]
    process = _command(words, what).popen(stderr=STDOUT)
    said = []
    for raw in process.stdout:
        said.append(raw.decode(errors="replace").rstrip("\n"))
        line(said[-1])
    result = Result(words, int(process.wait()), "", "\n".join(said))
    if result.code != 0:
        raise CommandFailed(result, what)
    return result


def captured(
    argv: Sequence[str | Path],
    to: BinaryIO,
    *,
    limit: int,
    timeout: float,
    stdin: bytes = b"",
    what: str = "",
) -> Result:
    """Run ``argv`` and write its standard output to ``to`` as it comes, at most ``limit`` bytes.

    For what is too long for memory, or comes from where it may be endless. The result's ``out`` is
    empty. Raises UserError where there is more, or it took longer than ``timeout`` seconds.
    """
    words = tuple(str(word) for word in argv)
    what = what or words[0]
    end, size, said = time.monotonic() + timeout, 0, b""
    with TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = _command(words, what).popen(stdin=given, stdout=PIPE, stderr=PIPE)
    open_streams = {process.stdout.fileno(), process.stderr.fileno()}
    try:
        # By what is there to read, not to the streams' end: ssh hands them to another process,
        # which may keep them when this one is dead.
        while open_streams and size <= limit and (left := end - time.monotonic()) > 0:
            ready = select.select(list(open_streams), [], [], min(left, QUIET))[0]
            if not ready and process.poll() is not None:
                break
            for each in ready:
                if not (chunk := os.read(each, CHUNK)):
                    open_streams.remove(each)
                elif each == process.stderr.fileno():
                    said = (said + chunk)[-ERRORS_KEPT:]
                else:
                    to.write(chunk[: max(0, limit - size)])
                    size += len(chunk)
        late = not _ended(process, 0 if open_streams else end - time.monotonic())
    finally:
        process.kill()
        code = int(process.wait())
        process.stdout.close()
        process.stderr.close()
    if size > limit:
        raise UserError(f"{what}: more than {limit} bytes came; ended")
    if late:
        raise UserError(f"{what}: timed out after {timeout:g} s", f"To repeat: {shlex.join(words)}")
    return Result(words, code, "", said.decode(errors="replace"))


def _ended(process: Any, seconds: float) -> bool:
    """Whether it ends by itself within so many seconds."""
    try:
        process.wait(max(0.0, seconds))
    except TimeoutExpired:
        return False
    return True


def attached(argv: Sequence[str], *, what: str = "") -> int:
    """Run ``argv`` with this process's own streams; its exit code."""
    return int(
        _command(tuple(argv), what or argv[0]).popen(stdin=None, stdout=None, stderr=None).wait()
    )


def with_lifeline(argv: Sequence[str], *, what: str = "") -> int:
    """Run ``argv``, which ends when its standard input does; its exit code.

    Ctrl-C ends the input, and not ``argv``: what it says until it has ended is still heard.
    """
    words = tuple(argv)
    process = _command(words, what or words[0]).popen(
        stdin=PIPE, stdout=None, stderr=None, start_new_session=True
    )
    try:
        return int(process.wait())
    except KeyboardInterrupt:
        process.stdin.close()
        return int(process.wait())


@contextmanager
def streaming(
    argv: Sequence[str],
    line: Callable[[str], None],
    *,
    stdin: bytes = b"",
    errors: bool = False,
    ended: Callable[[], None] = lambda: None,
    patience: float = PATIENCE,
) -> Iterator[None]:
    """``argv`` runs for the body; each line that it prints is handed to ``line``, in a thread.

    Its standard input, which begins with ``stdin``, ends with the body, by which it has to end;
    after ``patience`` seconds it is killed. Ctrl-C reaches it that way only. ``errors``: also lines
    of its standard error; ``ended``: it prints nothing any more.
    """
    words = tuple(argv)
    process = _command(words, words[0]).popen(
        stdin=PIPE, stderr=STDOUT if errors else DEVNULL, start_new_session=True
    )

    def read() -> None:
        # In pieces, if somebody sends a line without an end.
        while raw := process.stdout.readline(CHUNK):
            line(raw.decode(errors="replace").rstrip("\n"))
        ended()

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        with suppress(OSError):  # it ended already: ``ended`` says so
            process.stdin.write(stdin)
            process.stdin.flush()
        yield
    finally:
        _end(process, patience)
        reader.join()
        process.stdout.close()


def _end(process: Any, patience: float = PATIENCE) -> None:
    """End a command's standard input, by which it has to end, or kill it after so long."""
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(patience)
    except TimeoutExpired:
        process.kill()
        process.wait()


class Talk:
    """A command that answers lines with lines."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._rest = b""

    def ask(self, line: str, mark: str, timeout: float) -> str | None:
        """Send a line; the next one that begins with the mark, without it. None where there is
        none in time, or the command has ended."""
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        end, output = time.monotonic() + timeout, self._process.stdout.fileno()
        while (left := end - time.monotonic()) > 0:
            line_, found, self._rest = self._rest.partition(b"\n")
            if found:
                if line_.startswith(mark.encode()):
                    return line_[len(mark) :].decode(errors="replace").strip()
                continue
            self._rest = line_
            if select.select([output], [], [], left)[0]:
                chunk = os.read(output, CHUNK)
                if not chunk or len(self._rest) > CHUNK:
                    return None
                self._rest += chunk
        return None


@contextmanager
def talking(argv: Sequence[str]) -> Iterator[Talk]:
    """``argv`` runs for the body, in a session of its own: Ctrl-C does not reach it.

    Its standard input ends with the body, by which it has to end; after PATIENCE seconds it is
    killed. Its errors are left out.
    """
    words = tuple(argv)
    process = _command(words, words[0]).popen(
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    )
    try:
        yield Talk(process)
    finally:
        _end(process)
        process.stdout.close()


def _command(words: tuple[str, ...], what: str) -> Any:
    """The command, for plumbum. Raises UserError where it is not installed."""
    try:
        return local[words[0]][words[1:]]
    except CommandNotFound:
        package = PACKAGE_OF.get(words[0], words[0])
        raise UserError(
            f"{what}: the command {words[0]!r} is not installed",
            f"On Debian: apt-get install {package}",
        ) from None
