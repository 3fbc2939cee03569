"""Packages, wheels and libraries made by the real tools, and a lock of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.image import lockfile
from orchestrator.image.lockfile import Deb, File, Lock, LockedSource, PythonPart, Wheel
from orchestrator.image.spec import Spec
from support.box import Box

PREFIX = "/opt/env"


@dataclass
class Making:
    """An image 'demo' that grows file by file; ``check`` locks what is there and checks it."""

    box: Box
    work: Path
    files: list[File] = field(default_factory=list)
    stored: list[Path] = field(default_factory=list)
    debian: dict[str, Any] = field(default_factory=dict)
    python: dict[str, Any] = field(default_factory=dict)
    allowed: dict[str, dict[str, str]] = field(default_factory=dict)

    def library(self, name: str, *needed: Path, options: Sequence[str] = ()) -> Path:
        """A shared library by the real compiler, without the C library."""
        source = self.work / "x.c"
        source.write_text(f"int {name.partition('.')[0]}_x;\n")
        made = self.work / name
        argv = ["gcc", "-shared", "-nostdlib", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--no-as-needed"]
        subprocess.run([*argv, *options, "-o", made, source, *needed], check=True)
        return made

    def deb(self, name: str, files: dict[str, Path | str] | None = None, **fields: str) -> Path:
        """A package by dpkg-deb; of its files text is the target of a link."""
        tree = self.work / f"deb-{name}"
        control = {"Package": name, "Version": "1.0", "Architecture": "amd64"} | fields
        control |= {"Maintainer": "nobody <nobody@localhost>", "Description": "a test"}
        lines = [f"{key.replace('_', '-')}: {value}\n" for key, value in control.items()]
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text("".join(lines))
        for place, content in (files or {}).items():
            path = tree / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.write_bytes(content.read_bytes())
            else:
                path.symlink_to(content)
        made = self.work / f"{name}_1.0_amd64.deb"
        # As Ubuntu packs, and with it those who publish for it.
        argv = ["dpkg-deb", "--root-owner-group", "-Zzstd", "--build", str(tree), str(made)]
        subprocess.run(argv, check=True, capture_output=True)
        self._add(made)
        sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
        self.files.append(
            Deb(
                name=name,
                version=control["Version"],
                architecture="amd64",
                path=f"pool/{made.name}",
                size=made.stat().st_size,
                sha256=sha256,
                store=made.name,
            )
        )
        return made

    def wheel(
        self,
        name: str,
        files: dict[str, Path] | None = None,
        requires: Sequence[str] = (),
        tag: str = "cp311-cp311-manylinux_2_28_x86_64",
    ) -> Path:
        made = self.work / f"{name}-1.0-{tag}.whl"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        lines += [f"Requires-Dist: {each}" for each in requires]
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n\nText.\n")
            for place, content in (files or {}).items():
                archive.write(content, place)
        self._add(made)
        self.files.append(
            Wheel(
                name=name,
                version="1.0",
                file=made.name,
                size=made.stat().st_size,
                sha256=hashlib.sha256(made.read_bytes()).hexdigest(),
                store=made.name,
            )
        )
        return made

    def source(self, made: Path) -> None:
        self._add(made)
        self.files.append(
            LockedSource(
                name=made.name.partition("-")[0],
                version="1.0",
                file=made.name,
                size=made.stat().st_size,
                sha256=hashlib.sha256(made.read_bytes()).hexdigest(),
                store=made.name,
                environment={},
            )
        )

    def _add(self, made: Path) -> None:
        argv = ["nix-store", "--option", "build-users-group", "", "--add-fixed", "sha256"]
        argv.append(str(made))
        done = subprocess.run(argv, env=self.box.env, capture_output=True, text=True, check=True)
        self.stored.append(Path(done.stdout.strip()))

    def lock(self, files: Sequence[File] | None = None) -> None:
        """Write image.yml, and a lock of ``files`` (default: all) that is up to date with it."""
        debian = {"suite": "s", "components": ["main"], "essential": False, "packages": []}
        sections: dict[str, Any] = {"debian": debian | self.debian, "check": self.allowed}
        sections["python"] = {"version": "3.11", "glibc": "2.36", "requirements": []} | self.python
        sections["system"] = {"environment": PREFIX}
        self.box.write("demo", **sections)
        head = {"description": "a test", "date": "2026-01-01T00:00:00Z"}
        described = Spec.model_validate(head | sections)
        chosen = self.files if files is None else files
        lock = Lock(
            inputs=described.digest(),
            epoch=described.epoch,
            python=PythonPart(version="3.11", rename={}),
            system=described.system,
            debs=tuple(file for file in chosen if isinstance(file, Deb)),
            wheels=tuple(file for file in chosen if isinstance(file, Wheel)),
            sources=tuple(file for file in chosen if isinstance(file, LockedSource)),
        )
        self.box.lock("demo").write_text(lockfile.text(lock))

    def check(self, code: int, files: Sequence[File] | None = None) -> dict[str, Any]:
        self.lock(files)
        done = self.box.run("check", "demo", "--json")
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert report["ok"] == (code == 0)
        return report

    def problems(self) -> list[tuple[str, str, str]]:
        found = self.check(1)["problems"]
        return [(each["who"], each["wants"], each["problem"]) for each in found]
