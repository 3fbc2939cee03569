"""A real sshd on loopback, with an identity that the tests' authority certified."""

from __future__ import annotations

import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.node.trust import HostIdentity

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def sshd_program() -> str:
    """The path of sshd, with what it wants to be there; skips a test where it cannot run."""
    if SSHD is None:
        pytest.skip("needs sshd (Debian: openssh-server)")
    try:
        pwd.getpwnam("sshd")
    except KeyError:
        pytest.skip("needs the sshd account")
    Path("/run/sshd").mkdir(exist_ok=True)
    return SSHD


@contextmanager
def sshd(
    home: Path,
    identity: HostIdentity,
    user_ca: str,
    port: int = 0,
    address: str = "127.0.0.1",
    command: str = "",
) -> Iterator[int]:
    """It runs for the body, trusting that user authority; its port. ``home`` is made.

    ``command``: run by a shell in place of what a client asks for (in SSH_ORIGINAL_COMMAND).
    """
    program = sshd_program()
    home.mkdir()
    (home / "key").touch(mode=0o600)
    (home / "key").write_text(identity.private.reveal())
    (home / "cert.pub").write_text(identity.certificate)
    (home / "user_ca.pub").write_text(user_ca)
    with socket.socket() as probe:
        probe.bind((address, port))
        port = probe.getsockname()[1]
    (home / "config").write_text(
        f"HostKey {home}/key\nHostCertificate {home}/cert.pub\n"
        f"TrustedUserCAKeys {home}/user_ca.pub\nAuthorizedKeysFile none\n"
        f"ListenAddress {address}:{port}\nPermitRootLogin prohibit-password\n"
        f"PasswordAuthentication no\nUsePAM no\nPidFile none\nStrictModes no\n"
        + (f"ForceCommand {command}\n" if command else "")
    )
    process = subprocess.Popen(
        [program, "-D", "-e", "-f", home / "config"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        # It says so when it listens.
        assert any("listening on" in line for line in process.stderr), "sshd did not start"
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)
        assert process.stderr
        process.stderr.close()
