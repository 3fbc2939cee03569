"""Commands on a node, over SSH.

ssh itself is run for each command, in the caller's thread: it inherits that thread's network
namespace. Its own connection reuse (ControlMaster) makes the second command cheap.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from orchestrator.core.errors import UserError
from orchestrator.core.run import Result, captured, run
from orchestrator.core.waiting import as_long_as
from orchestrator.node.paths import SSH_PORT
from orchestrator.node.trust import PRINCIPAL, Trust

#: ssh's own exit code where it, not the remote command, failed.
SSH_FAILED = 255
#: Seconds between two tries while a node boots.
POLL_INTERVAL = 1.0
#: Seconds that one try to connect may take, ssh's ConnectTimeout included.
PROBE_TIMEOUT = 15.0


class Unreachable(UserError):
    """The node does not answer on SSH (not up, no route, connection lost): it may yet."""


class HostKeyRefused(UserError):
    """Something answers that is not the node which the cluster's authority knows. Final."""


class AccessDenied(UserError):
    """The node does not let the operator in. Final."""


class RemoteFailed(UserError):
    """A command on a node ended with an exit code that was not expected."""

    def __init__(self, remote: Remote, result: Result, what: str) -> None:
        self.result = result
        lines = [
            ("host", f"{remote.name} ({remote.user}@{remote.address})"),
            ("command", shlex.join(result.argv)),
            ("exit code", str(result.code)),
        ]
        for label, text in (("stdout", result.out), ("stderr", result.err)):
            lines += [(label, line) for line in text.strip().splitlines()[-15:]]
        lines.append(("repeat", shlex.join(remote.ssh_argv(result.argv))))
        width = max(len(label) for label, _ in lines) + 1
        rows = "\n".join(f"  {label + ':':<{width}} {text}" for label, text in lines)
        super().__init__(f"{what} failed on {remote.name}\n{rows}")


@dataclass(frozen=True)
class Remote:
    """A node as seen from here; ``name`` is what its host certificate has to carry."""

    name: str
    address: str
    trust: Trust = field(repr=False)
    user: str = PRINCIPAL
    port: int = SSH_PORT

    def ssh_argv(self, argv: Sequence[str], *, terminal: bool = False) -> list[str]:
        """The local command that runs ``argv`` there, with a ``terminal`` if asked for.

        sshd hands words to a shell: quoted.
        """
        return [*self._ssh(*(["-t"] if terminal else [])), "--", shlex.join(argv)]

    def shell_argv(self) -> list[str]:
        return self._ssh()

    def run(
        self,
        argv: Sequence[str],
        *,
        what: str = "",
        ok: Sequence[int] | None = (0,),
        stdin: str | None = None,
        timeout: float = 60,
    ) -> Result:
        """Run ``argv`` there to its end (at most ``timeout`` seconds) and return what it left.

        Raises RemoteFailed where the exit code is not in ``ok`` (None: any), Unreachable,
        HostKeyRefused or AccessDenied where ssh failed, UserError where it took too long.
        """
        what = what or argv[0]
        ssh = run(
            self.ssh_argv(argv),
            what=f"{what} on {self.name}",
            ok=None,
            # Without input, ssh must not take this process's own.
            stdin=stdin or "",
            timeout=timeout,
        )
        if ssh.code == SSH_FAILED:
            raise self._explain(ssh.err)
        result = Result(tuple(argv), ssh.code, ssh.out, ssh.err)
        if ok is not None and result.code not in ok:
            raise RemoteFailed(self, result, what)
        return result

    def capture(
        self,
        argv: Sequence[str],
        to: BinaryIO,
        *,
        limit: int,
        timeout: float,
        what: str = "",
        stdin: str = "",
    ) -> Result:
        """Run ``argv`` there; its output, at most ``limit`` bytes, goes to ``to`` as it comes.

        Raises as ``run`` does, and UserError where there is more.
        """
        what = what or argv[0]
        ssh = captured(
            self.ssh_argv(argv),
            to,
            limit=limit,
            timeout=timeout,
            stdin=stdin.encode(),
            what=f"{what} on {self.name}",
        )
        if ssh.code == SSH_FAILED:
            raise self._explain(ssh.err)
        result = Result(tuple(argv), ssh.code, "", ssh.err)
        if result.code != 0:
            raise RemoteFailed(self, result, what)
        return result

    def wait_for_ssh(self, deadline: float, on_wait: Callable[[str], None] | None = None) -> None:
        """Return when the node lets the operator in; the last try starts within ``deadline`` s.

        ``on_wait`` hears why it is not yet so, after each try. Raises HostKeyRefused or
        AccessDenied at once, Unreachable at the deadline.
        """

        def knock() -> str:
            try:
                self.run(["true"], what="connecting", timeout=PROBE_TIMEOUT)
            except (HostKeyRefused, AccessDenied, RemoteFailed):
                raise
            except UserError as error:
                if on_wait:
                    on_wait(error.message)
                return error.message
            return ""

        if reason := as_long_as(knock, deadline, POLL_INTERVAL):
            raise Unreachable(
                f"{self.name} ({self.address}): no SSH within {deadline:g} s; last: {reason}",
                f"See the node's console. To repeat: {shlex.join(self.ssh_argv(['true']))}",
            )

    def close(self) -> None:
        """End the kept connection, if there is one."""
        run([*self._ssh("-O", "exit")], ok=None, timeout=PROBE_TIMEOUT)

    def _ssh(self, *flags: str) -> list[str]:
        options = self.trust.ssh_options(self.name)
        return ["ssh", *options, *flags, "-p", str(self.port), f"{self.user}@{self.address}"]

    def _explain(self, stderr: str) -> UserError:
        where = f"{self.name} ({self.address})"
        said = stderr.strip().splitlines()
        last = said[-1] if said else "the connection was lost"
        if "Certificate invalid: expired" in stderr:
            return HostKeyRefused(
                f"{where}: its host certificate has expired",
                "Reboot it: it then gets a new one. 'orchestrate up' and 'watch' renew "
                "certificates before they expire; see: orchestrate trust status",
            )
        wrong_key = (
            "Host key verification failed|no matching host key type|Certificate invalid"
            "|not permitted by HostkeyAlgorithms"  # OpenSSH 10, a foreign authority
        )
        if re.search(wrong_key, stderr):
            return HostKeyRefused(
                f"{where}: this cluster's authority did not certify this host key for"
                f" {self.name}: {last}",
                "Another machine answers at this address, or the node was booted by another"
                " cluster or with older keys. Reboot it from this cluster.",
            )
        if "Permission denied" in stderr:
            return AccessDenied(
                f"{where}: {self.user} may not log in: {last}",
                f"The node does not trust the authority in {self.trust.directory}, or its clock is"
                " past the certificate's end. Reboot it from this cluster.",
            )
        return Unreachable(f"{where}: SSH does not answer: {last}")
