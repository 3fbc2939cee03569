"""A support bundle, as whoever receives it reads it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = "support/"


@dataclass(frozen=True)
class Received:
    """All bytes of the archive, uncompressed; its files by name."""

    data: bytes
    files: dict[str, str]

    @property
    def manifest(self) -> Any:
        return json.loads(self.files["manifest.json"])


def received(path: Path) -> Received:
    data = gzip.decompress(path.read_bytes())
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            assert member.isreg()
            assert member.name.startswith(TOP)
            assert ".." not in member.name.split("/")
            content = tar.extractfile(member)
            assert content is not None
            files[member.name.removeprefix(TOP)] = content.read().decode()
    listed = {each["name"] for each in json.loads(files["manifest.json"])["files"]}
    assert listed == files.keys() - {"manifest.json"}
    return Received(data, files)
