"""Compile one share of the layer's Python files into a tar. Run by the image's own interpreter.

Usage: bytecode.py LIST SHARE SHARES OUT. LIST is JSON: [wheel or null, name in it or file, path in
the image]. Every SHARES-th entry, beginning with number SHARE.
"""

import importlib.util
import io
import json
import marshal
import sys
import tarfile
import zipfile
from pathlib import Path

#: The flags of a .pyc with a hash of its source that imports do not check (PEP 552).
UNCHECKED_HASH = (0b01).to_bytes(4, "little")

archives: dict[str, zipfile.ZipFile] = {}


def read(wheel: str | None, name: str) -> bytes:
    if wheel is None:
        return Path(name).read_bytes()
    if wheel not in archives:
        archives[wheel] = zipfile.ZipFile(wheel)
    return archives[wheel].read(name)


def compiled(source: bytes, path: str) -> bytes:
    """A .pyc's content (py_compile would write the same with UNCHECKED_HASH)."""
    code = compile(source, path, "exec", dont_inherit=True)
    head = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH + importlib.util.source_hash(source)
    return head + marshal.dumps(code)


def main(listed: str, share: int, shares: int, out: str) -> None:
    with tarfile.open(out, "w") as tar:
        for wheel, name, path in json.loads(Path(listed).read_text())[share::shares]:
            source = read(wheel, name)
            try:
                data = compiled(source, f"/{path}")
            except (SyntaxError, ValueError):
                continue  # wheels contain templates that are not valid Python
            header = tarfile.TarInfo(importlib.util.cache_from_source(path))
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
