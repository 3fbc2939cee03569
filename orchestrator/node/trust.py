"""A cluster's trust: its SSH certificate authorities and tokens.

One private directory per cluster, created on first use. Every file in it is written under a
temporary name and renamed, so an interruption never leaves half a file. Without the directory
the cluster gets a new authority, and its nodes need a reboot.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import NEW, PRIVATE, locked, write
from orchestrator.core.run import run

#: The only account that the operator's certificate opens.
PRINCIPAL = "root"
#: How long the operator's certificate lasts, and when it is renewed.
OPERATOR_LIFETIME = timedelta(days=30)
OPERATOR_RENEWAL = timedelta(days=10)
#: Key pairs, and tokens: names of files.
PAIRS = ("host_ca", "user_ca", "operator")
RAY_TOKEN, API_KEY = "ray.token", "api.key"
TOKENS = (RAY_TOKEN, API_KEY)
#: The directory of a rotation's new keys; the file that marks them as the current ones.
SUCCESSOR, COMMITTED = "successor", "committed"
#: A host's identity is for one boot; it is renewed on a machine that runs for longer than this.
HOST_LIFETIME = timedelta(weeks=52)
HOST_RENEWAL = HOST_LIFETIME / 3
#: Temporary files, written under the lock: an interruption leaves them, the next use removes them.
BESIDE = (".successor-", ".key-", ".cert-", NEW)


@dataclass(frozen=True, repr=False)
class Secret:
    """A text that shows as ``***`` wherever it is printed, formatted or logged.

    Not a ``str``: joining, concatenating or dumping it as JSON has to fail, not to leak.
    """

    _value: str

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __str__(self) -> str:
        return "***"

    def __format__(self, format_spec: str) -> str:
        return "***"


@dataclass(frozen=True)
class HostIdentity:
    """A host key and the certificate which says that the cluster's authority knows it."""

    private: Secret
    public: str
    certificate: str


@dataclass(frozen=True)
class Trust:
    """The trust of one cluster, in ``directory``. Get it from :func:`open_trust`."""

    directory: Path

    @property
    def user_ca_public(self) -> str:
        """The key by which a node knows the operator; two, a line each, during a rotation."""
        own = self._read("user_ca.pub")
        return own + (self.successor.user_ca_public if self.successor else "")

    @property
    def successor(self) -> Trust | None:
        """The new SSH keys during a rotation; None otherwise."""
        directory = self.directory / SUCCESSOR
        return Trust(directory) if directory.is_dir() else None

    @property
    def operator_public(self) -> str:
        """The operator's own key, for accounts that the certificate does not open."""
        return self._read("operator.pub")

    @property
    def ray_token(self) -> Secret:
        """The token that every Ray process of the cluster shows."""
        return Secret(self._read(RAY_TOKEN).strip())

    @property
    def api_key(self) -> Secret:
        """The key of the served model's endpoint."""
        return Secret(self._read(API_KEY).strip())

    @property
    def host_ca(self) -> Secret:
        """The key that certifies hosts, for the control node: it certifies those that netboot.

        During a rotation it is the new one already: what boots now need not boot again.
        """
        return Secret((self.successor or self)._read("host_ca"))

    def host_identity(self, principals: Sequence[str]) -> HostIdentity:
        """A new host key, certified for one boot of a node: its name, then its addresses."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".host-") as scratch:
            key = Path(scratch, "key")
            _generate_key(key, principals[0])
            public = Path(scratch, "key.pub").read_text()
            return HostIdentity(
                private=Secret(key.read_text()),
                public=public,
                certificate=self.host_certificate(public, principals),
            )

    def host_certificate(self, public: str, principals: Sequence[str]) -> str:
        """A certificate for a host's public key, for its name, then its addresses."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".host-") as scratch:
            key = Path(scratch, "key")
            key.with_suffix(".pub").write_text(public)
            _certify(
                self.directory / "host_ca",
                key,
                principals=principals,
                lifetime=HOST_LIFETIME,
                flags=["-h"],
            )
            return Path(scratch, "key-cert.pub").read_text()

    def prepare_successor(self) -> Trust:
        """Make the new keys of a rotation; nothing trusts them yet.

        An interrupted rotation's keys are used again.
        """
        with self._lock():
            if self.successor is None:
                scratch = Path(tempfile.mkdtemp(dir=self.directory, prefix=BESIDE[0]))
                try:
                    made = Trust(scratch)
                    for name in PAIRS:
                        made._create_key(name, self.directory.name)
                    made._certify_operator()
                    made._believe()
                    scratch.replace(self.directory / SUCCESSOR)
                except BaseException:
                    shutil.rmtree(scratch, ignore_errors=True)
                    raise
            self._believe()
        successor = self.successor
        assert successor is not None
        return successor

    def take_over(self) -> None:
        """Make the new keys the current ones. After an interruption, the next use finishes it."""
        successor = self.successor
        assert successor is not None, "nothing was prepared"
        (successor.directory / COMMITTED).touch()
        with self._lock():
            self._finish_taking_over()
            self._believe()

    def renew_token(self, name: str) -> None:
        """Replace a token of TOKENS. Nodes keep the old one until the next `up`."""
        with self._lock():
            write(self.directory / name, secrets.token_hex(32) + "\n", PRIVATE)

    def renew_operator(self) -> None:
        """A new certificate for the operator's key, however long the old one would last."""
        with self._lock():
            self._certify_operator()

    @property
    def operator_until(self) -> datetime:
        """When the operator's certificate ends."""
        return valid_until(self._read("operator-cert.pub"))

    def fingerprint(self, name: str) -> str:
        """The SHA256 fingerprint of a public key of PAIRS, as ssh prints it."""
        argv = ["ssh-keygen", "-l", "-f", str(self.directory / f"{name}.pub")]
        return run(argv, what="reading a key's fingerprint", timeout=60).out.split()[1]

    def ssh_options(self, name: str) -> list[str]:
        """The words after ``ssh`` with which the node ``name`` is reached, and nothing else is.

        HostKeyAlias makes the name, not the address, what the host's certificate has to carry:
        a node that answers at another node's address is refused.
        """
        options = {
            "UserKnownHostsFile": _quoted(self.directory / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": name,
            "HostKeyAlgorithms": "ssh-ed25519-cert-v01@openssh.com",
            "UpdateHostKeys": "no",
            "IdentityFile": _quoted(self.directory / "operator"),
            "CertificateFile": _quoted(self.directory / "operator-cert.pub"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "auto",
            "ControlPath": _quoted(self._sockets() / "%C"),
            "ControlPersist": "60",
            "LogLevel": "ERROR",
        }
        return ["-F", "none", *(f"-o{key}={value}" for key, value in options.items())]

    def _sockets(self) -> Path:
        """Where connections are kept for reuse.

        The path is short because a unix socket's may have 107 characters, and private because
        who can open such a socket has the connection.
        """
        runtime = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR")
        key = hashlib.sha256(str(self.directory).encode()).hexdigest()[:8]
        if runtime:
            base = Path(runtime, paths.APP)
            base.mkdir(parents=True, exist_ok=True)
        else:
            # In a directory that is everybody's: whoever owned this one could swap what is in it.
            base = _private(Path(tempfile.gettempdir(), f"{paths.APP}-{os.getuid()}"))
        return _private(base / f"ssh-{key}")

    def _read(self, name: str) -> str:
        path = self.directory / name
        try:
            return path.read_text()
        except OSError as error:
            raise UserError(
                f"the cluster's trust cannot be read: {path}: {error.strerror}",
                "Run as the user who brought the cluster up.",
            ) from None

    def _create(self) -> None:
        with self._lock():
            for left in self.directory.iterdir():
                if left.name.startswith(BESIDE):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._finish_taking_over()
            for name in PAIRS:
                if not (self.directory / name).exists():
                    self._create_key(name, self.directory.name)
            # The form that `ray get-auth-token --generate` gives; as good for the endpoint.
            for name in TOKENS:
                if not (self.directory / name).exists():
                    write(self.directory / name, secrets.token_hex(32) + "\n", PRIVATE)
            self._believe()
            certificate = self.directory / "operator-cert.pub"
            if not certificate.exists() or self._time_left() < OPERATOR_RENEWAL:
                self._certify_operator()

    def _believe(self) -> None:
        """Write known_hosts: hosts of this authority, and of a rotation's new one."""
        authorities = [each._read("host_ca.pub") for each in (self, self.successor) if each]
        known = "".join(f"@cert-authority * {authority}" for authority in authorities)
        write(self.directory / "known_hosts", known, PRIVATE)

    def _finish_taking_over(self) -> None:
        """Move the successor's files here, one by one: as often as it takes."""
        successor = self.successor
        if successor is None or not (successor.directory / COMMITTED).exists():
            return
        names = [file for name in PAIRS for file in (name, f"{name}.pub")]
        for name in (*names, "operator-cert.pub"):
            if (successor.directory / name).exists():
                (successor.directory / name).replace(self.directory / name)
        # Out of the way at once: half a successor is none that could be read.
        emptied = self.directory / f"{BESIDE[0]}emptied"
        successor.directory.rename(emptied)
        shutil.rmtree(emptied)

    def _create_key(self, name: str, cluster: str) -> None:
        """A key pair; the private half comes last, since its presence says that both are there."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".key-") as scratch:
            key = Path(scratch, name)
            _generate_key(key, f"{paths.APP} {cluster} {name}")
            for file in (f"{name}.pub", name):
                Path(scratch, file).replace(self.directory / file)

    def _certify_operator(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=".cert-") as scratch:
            key = Path(scratch, "operator")
            key.with_suffix(".pub").write_text(self.operator_public)
            _certify(
                self.directory / "user_ca",
                key,
                principals=[PRINCIPAL],
                lifetime=OPERATOR_LIFETIME,
                flags=["-O", "clear", "-O", "permit-pty"],
            )
            Path(scratch, "operator-cert.pub").replace(self.directory / "operator-cert.pub")

    def _time_left(self) -> timedelta:
        try:
            return self.operator_until - datetime.now(UTC)
        except ValueError:
            return timedelta(0)

    def _lock(self) -> AbstractContextManager[None]:
        """Two commands at once must not make two authorities."""
        return locked(self.directory / "lock")


def _private(directory: Path) -> Path:
    """A directory that only this user can enter. Raises UserError where it is another one's."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not mine or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"{directory} is not private to this user", f"Remove it: rm -r {directory}")
    return directory


def open_trust(cluster: str) -> Trust:
    """The trust of the cluster (profile) of that name; made on first use.

    Raises UserError where the state directory cannot be written.
    """
    directory = paths.state() / "clusters" / cluster
    trust = Trust(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        trust._create()
    except OSError as error:
        raise UserError(
            f"the cluster's keys cannot be stored in {directory}: {error.strerror}",
            "Make the directory writable for this user, or set ORCHESTRATE_STATE to another one.",
        ) from None
    return trust


def _generate_key(key: Path, comment: str) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)]
    run(argv, what="making an SSH key", timeout=60)


def _certify(
    authority: Path, key: Path, *, principals: Sequence[str], lifetime: timedelta, flags: list[str]
) -> None:
    """Write KEY-cert.pub for KEY.pub.

    Valid from always: a node whose clock is behind would refuse a certificate "of the future".
    """
    names = ",".join(principals)
    validity = f"always:{int(lifetime.total_seconds()):+d}s"
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", principals[0], "-n", names]
    argv += ["-V", validity, *flags, f"{key}.pub"]
    run(argv, what="certifying an SSH key", timeout=60)


def valid_until(certificate: str) -> datetime:
    """Until when an OpenSSH certificate is valid. Raises ValueError for other texts."""
    argv = ["ssh-keygen", "-L", "-f", "-"]
    shown = run(argv, what="reading a certificate", ok=None, stdin=certificate, timeout=60).out
    for line in shown.splitlines():
        if line.strip().startswith("Valid: "):
            # ssh-keygen prints local time.
            return datetime.fromisoformat(line.split()[-1]).astimezone(UTC)
    raise ValueError("not a certificate")


def _quoted(path: Path) -> str:
    """A path as a value of ssh's -o: blanks kept, '%' not expanded (but for the trailing %C)."""
    text = str(path)
    kept = text.removesuffix("/%C")
    return '"' + kept.replace("%", "%%") + text[len(kept) :] + '"'
