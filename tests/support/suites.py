"""Small Debian suites and wheels for tests: signed package lists without packages, empty wheels."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import zipfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Archive:
    """A Debian archive in a directory, with a key of its own; suites are written as a whole.

    ``pool`` is where its files lie, by its package lists.
    """

    root: Path
    pool: str = "pool/main"
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        # Without links: the path of gpg's socket in it has to be short.
        self.home = (self.root / "gnupg").resolve()
        if not self.home.exists():
            self.home.mkdir(parents=True, mode=0o700)
            self._gpg("--quick-generate-key", "Test archive", "ed25519", "sign", "never")
            self._gpg("--export", "--output", str(self.keyring))

    @property
    def keyring(self) -> Path:
        return self.root / "keyring.gpg"

    def security(self) -> Archive:
        """An archive of security updates beside this one, signed with the same key."""
        beside = self.root.with_name(f"{self.root.name}-security")
        beside.mkdir()
        (beside / "gnupg").symlink_to(self.home)
        return Archive(beside, "pool/updates/main")

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def publish(self, suite: str, *packages: str, **more: str) -> None:
        """Write ``suite``. A package is 'NAME VERSION; FIELD: VALUE; ...'."""
        directory = self.root / "dists" / suite
        lists = directory / "main/binary-amd64"
        lists.mkdir(parents=True, exist_ok=True)
        text = "\n".join(_stanza(package, self.pool) for package in packages)
        (lists / "Packages").write_text(text)
        fields = {
            "Origin": "Test",
            "Suite": suite,
            "Codename": suite,
            "Architectures": "amd64",
            "Components": "main",
            "Date": "Thu, 01 Jan 2026 00:00:00 UTC",
            **more,
        }
        digest = hashlib.sha256(text.encode()).hexdigest()
        release = "".join(f"{key}: {value}\n" for key, value in fields.items())
        release += f"SHA256:\n {digest} {len(text.encode())} main/binary-amd64/Packages\n"
        (directory / "Release").write_text(release)
        (directory / "InRelease").unlink(missing_ok=True)
        self._gpg("--clearsign", "--output", f"{directory}/InRelease", f"{directory}/Release")

    def _gpg(self, *words: str) -> None:
        argv = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            *words,
        ]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)


def _stanza(package: str, pool: str) -> str:
    head, *fields = package.split("; ")
    name, version = head.split()
    file = f"{name}_{version.rpartition(':')[2]}_amd64.deb"
    lines = [f"Package: {name}", f"Version: {version}", "Architecture: amd64", *fields]
    lines += [f"Filename: {pool}/{file}", "Size: 1000", "Description: a test"]
    lines += [f"SHA256: {hashlib.sha256(head.encode()).hexdigest()}"]
    return "\n".join(lines) + "\n"


def wheel(
    directory: Path,
    name: str,
    requires: tuple[str, ...] = (),
    tag: str = "py3-none-any",
    version: str = "1.0",
) -> Path:
    """The smallest wheel that pip takes."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += ["Provides-Extra: more"]
    metadata = "\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""])
    parts = {
        f"{name}.py": "",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = ""
    path = directory / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in parts.items():
            digest = hashlib.sha256(content.encode()).digest()
            hashed = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            record += f"{file},sha256={hashed},{len(content)}\n"
            archive.writestr(file, content)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path
