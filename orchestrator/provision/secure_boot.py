"""The user's own key for Secure Boot: it signs what nodes boot, and their firmware knows it.

A key and its certificate per cluster, beside the cluster's other keys. The firmware takes the one
certificate in all three places that it has: as platform key (PK), as key exchange key (KEK), and as
signer of what it runs (db).
"""

from __future__ import annotations

import hashlib
import ssl
import struct
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.files import PUBLIC, locked, write
from orchestrator.core.run import run

#: The command that makes the key.
COMMAND = "orchestrate trust secure-boot"
#: Variables of the firmware that hold certificates, and the vendor of each (UEFI specification).
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
VARIABLES = {"db": DATABASE, "KEK": GLOBAL, "PK": GLOBAL}
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
#: Firmware looks at no date. RSA with 2048 bits is what all of it knows.
DAYS, BITS = 36500, 2048


@dataclass(frozen=True)
class SecureBootKey:
    """The key in `directory`. Get it from `find` or `make`."""

    directory: Path

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    @property
    def certificate(self) -> Path:
        return self.directory / "certificate.pem"

    @property
    def der(self) -> bytes:
        """The certificate, as firmware reads it."""
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text())

    @property
    def fingerprint(self) -> str:
        """The certificate's sha256, as firmware setups show it."""
        return hashlib.sha256(self.der).hexdigest().upper()

    @property
    def signature_list(self) -> bytes:
        """The value of the firmware's variables: a list of this certificate alone."""
        owner = uuid.UUID(bytes=hashlib.sha256(self.der).digest()[:16])
        signature = owner.bytes_le + self.der
        sizes = struct.pack("<3I", 28 + len(signature), 0, len(signature))
        return X509.bytes_le + sizes + signature

    @property
    def to_enroll(self) -> Path:
        """The directory of files for the firmware's setup."""
        return self.directory / "enroll"

    def sign(self, program: bytes, target: Path) -> None:
        """Write the program to `target` with a signature (Authenticode) that firmware checks."""
        with tempfile.TemporaryDirectory() as scratch:
            unsigned = Path(scratch, "program.efi")
            unsigned.write_bytes(program)
            argv = ["sbsign", *self._words, "--output", str(target), str(unsigned)]
            run(argv, what="sign for Secure Boot", timeout=60)
        target.chmod(PUBLIC)

    def write_enrollment(self) -> None:
        """Write the files for the firmware's setup: the certificate, and the signed variables."""
        self.to_enroll.mkdir(exist_ok=True)
        write(self.to_enroll / "certificate.cer", self.der)
        with tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch, "list.esl")
            plain.write_bytes(self.signature_list)
            for name, vendor in VARIABLES.items():
                argv = ["sbvarsign", *self._words, "--guid", str(vendor)]
                argv += ["--output", str(self.to_enroll / f"{name}.auth"), name, str(plain)]
                run(argv, what=f"sign the variable {name}", timeout=60)

    @property
    def _words(self) -> tuple[str, ...]:
        return ("--key", str(self.key), "--cert", str(self.certificate))


def find(cluster: str) -> SecureBootKey:
    """The cluster's key. Raises UserError if there is none."""
    key = SecureBootKey(directory(cluster))
    if not key.certificate.exists():
        raise UserError(
            "boot.secure: own, but this cluster has no key for Secure Boot",
            f"Make one: {COMMAND}. Or put back the copy that you kept of {key.directory}",
        )
    return key


def make(cluster: str) -> SecureBootKey:
    """The cluster's key, made if there is none, with the files for the firmware's setup.

    All appears at once, so an interruption leaves no half of it (node/trust.py removes the rest).
    """
    key = SecureBootKey(directory(cluster))
    if key.certificate.exists():
        return key
    home = paths.cluster(cluster)
    with locked(home / "lock"), tempfile.TemporaryDirectory(dir=home, prefix=".key-") as scratch:
        new = SecureBootKey(Path(scratch, key.directory.name))
        new.directory.mkdir(mode=0o700)
        argv = ["openssl", "req", "-new", "-x509", "-newkey", f"rsa:{BITS}", "-sha256", "-nodes"]
        argv += ["-days", str(DAYS), "-subj", f"/CN={paths.APP} {cluster}"]
        # openssl makes the key file for its owner alone.
        argv += ["-keyout", str(new.key), "-out", str(new.certificate)]
        run(argv, what="make a key for Secure Boot", timeout=60)
        new.write_enrollment()
        new.directory.rename(key.directory)
    return key


def directory(cluster: str) -> Path:
    """Where a cluster's key is, if there is one."""
    return paths.cluster(cluster) / "secure-boot"
