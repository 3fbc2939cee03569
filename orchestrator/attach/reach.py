"""How a node of somebody's cluster is reached: by the user's own ssh, or on this computer.

The user's configuration, keys, agent, jump hosts and known hosts count. A host key that is not
known is refused, whatever the configuration says. Nothing is written on a node: programs come on
standard input, and end with it, with the connection, or after their time.
"""

from __future__ import annotations

import io
import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.core.errors import UserError
from orchestrator.core.run import Result, captured
from orchestrator.core.visible import one_line
from orchestrator.profile.existing import HERE, AttachedNode

#: ssh's own exit code where it, not the command there, failed.
SSH_FAILED = 255
#: Seconds to connect, jump hosts included.
CONNECT_TIMEOUT = 15
#: Bytes that a node may send: the largest document of a program is a hundredth of it.
MOST_BYTES = 4 << 20
#: Seconds that a program may take there, and those that ssh may take on top.
PROGRAM_TIMEOUT, SSH_TIMEOUT = 40, 30
#: Characters of foreign text that a message shows.
SHOWN = 200
#: Over the user's configuration: no questions, no terminal, nothing forwarded, and no host whose
#: key is not known.
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": str(CONNECT_TIMEOUT),
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}
#: How to try by hand what matters of it.
REPEAT = "ssh -o BatchMode=yes -o StrictHostKeyChecking=yes"

#: Runs a program between the two lines that are looked for. It ends after its time, or when nobody
#: reads what it prints: a cut connection leaves nothing that computes on.
AROUND = """\
import os, select, signal, sys, threading
mark, seconds = sys.argv[1:3]
del sys.argv[1:3]
signal.alarm(int(seconds))
output = select.poll()
output.register(1, 0)
threading.Thread(target=lambda: (output.poll(), os._exit(1)), daemon=True).start()
print("\\n" + mark + " begin", flush=True)
exec(compile({text!r}, "probe", "exec"), {{"__name__": "__main__"}})
print("\\n" + mark + " end", flush=True)
"""

_Facts = TypeVar("_Facts")


class NotReached(UserError):
    """The node cannot be asked: SSH failed, or what answers is no Python."""


#: Brings a program's modules: (name, text) each, the program last.
WITH_MODULES = """\
import sys, types
*modules, (_, program) = {texts!r}
for name, text in modules:
    sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
exec(compile(program, "program", "exec"), {{"__name__": "__main__"}})
"""


def source(program: str, *modules: str) -> str:
    """The text of a program of this directory that runs on a node, as it is sent: with the modules
    of this directory that it imports."""
    names = (*modules, program)
    texts = [(f"{__package__}.{name}", own_text(name)) for name in names]
    return AROUND.format(text=WITH_MODULES.format(texts=texts))


def own_text(program: str) -> str:
    return Path(__file__).with_name(f"{program}.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class NodeShell:
    """A node, and the way to it."""

    node: AttachedNode

    @property
    def name(self) -> str:
        return self.node.name

    def argv(self, words: Sequence[str], *, inside: bool = True) -> list[str]:
        """The local command that runs ``words`` there; ``inside``: in its container, if any."""
        words = [*(self.node.enter if inside else ()), *words]
        if self.node.host == HERE:
            return words
        options = [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]
        # "--": no host is an option. sshd hands the words to a shell, so they are quoted.
        return ["ssh", "-T", *options, "--", self.node.host, shlex.join(words)]

    def python(self, *arguments: str, inside: bool = True) -> list[str]:
        """The local command that starts Python there, isolated from the user's own modules.

        The node's ``python`` is its container's, where it has one.
        """
        program = self.node.python if inside or not self.node.enter else "python3"
        return self.argv([program, "-I", *arguments], inside=inside)

    def ask(
        self,
        program: str,
        into: type[_Facts],
        *arguments: str,
        inside: bool = True,
        timeout: int = PROGRAM_TIMEOUT,
        start: Sequence[str] = (),
    ) -> _Facts:
        """Run a program there, and read the document that it prints. ``start``: the words that
        start another Python than the node's.

        The program's arguments are a mark, its time in seconds, then ``arguments``. It prints the
        document between two lines with the mark: what else the login prints is left out. Raises
        NotReached if the node cannot be asked, UserError if its answer is not such a document.
        """
        mark = secrets.token_hex(16)
        words = ["-", mark, str(timeout), *arguments]
        argv = self.python(*words, inside=inside)
        if start:
            argv = self.argv([*start, *words], inside=inside)
        said = io.BytesIO()
        try:
            result = captured(
                argv,
                said,
                limit=MOST_BYTES,
                timeout=timeout + SSH_TIMEOUT,
                stdin=program.encode(),
                what=f"asking {self.name}",
            )
        except OSError as error:
            raise NotReached(f"{self.name}: {argv[0]} does not start: {error.strerror}") from None
        text = said.getvalue().decode(errors="replace")
        return _document(self, into, _between(self, text, mark, result))

    def failed(self, result: Result, said: str) -> UserError:
        """Why there is no answer, in one line and a hint."""
        last = _last(result.err) or _last(said) or "nothing was said"
        where = f"{self.name} ({self.node.host})"
        repeat = f"To repeat: {REPEAT} {shlex.quote(self.node.host)} true"
        if result.code == SSH_FAILED and self.node.host != HERE:
            return NotReached(f"{where}: SSH failed: {last}", _ssh_hint(result.err, repeat))
        words = shlex.join([*self.node.enter, self.node.python])
        if re.search("SyntaxError|invalid syntax", result.err):
            hint = f"Name Python 3.9 or later: nodes.{self.name}.python in the profile."
            return NotReached(f"{where}: {words} is too old to run what is asked: {last}", hint)
        hint = (
            "It needs a login shell that runs commands, and Python 3.9 or later. Where vLLM runs "
            "in a container, name the command that enters it: 'enter' of the node, or --enter."
        )
        return NotReached(f"{where}: {words} did not run (exit code {result.code}): {last}", hint)


def _between(reach: NodeShell, text: str, mark: str, result: Result) -> str:
    """What stands between the two marked lines."""
    begin, end = f"{mark} begin\n", f"\n{mark} end"
    _, begun, rest = text.partition(begin)
    found, ended, _ = rest.partition(end)
    if not begun:
        raise reach.failed(result, text)
    if not ended:
        raise NotReached(
            f"{reach.name}: the answer was cut off after {len(rest)} characters",
            "The connection was lost, or the program was killed there. Try again.",
        )
    # Libraries of a probe may say something first.
    return found.strip().rpartition("\n")[2]


def _document(reach: NodeShell, into: type[_Facts], text: str) -> _Facts:
    adapter: TypeAdapter[_Facts] = TypeAdapter(into)
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(
            f"{reach.name}: its answer is not what was asked for: {where}: {first['msg']}",
            "Something else than the program that was sent answers there.",
        ) from None


def _last(text: str) -> str:
    """The last line that says something, fit for a message."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1][:SHOWN]) if lines else ""


def _ssh_hint(said: str, repeat: str) -> str:
    if re.search("Host key verification failed|REMOTE HOST IDENTIFICATION", said):
        return (
            "Its host key is not in your known_hosts, or is another one. Connect once by hand and "
            "compare the fingerprint with the owner's. " + repeat
        )
    if "Permission denied" in said:
        return (
            "Log in without a question: a key in your agent, or IdentityFile in ~/.ssh/config. "
            + repeat
        )
    return "Name, address and jump hosts come from your ~/.ssh/config. " + repeat
