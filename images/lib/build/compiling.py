"""Compile bytecode with the image's own interpreter, in parallel processes."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from common import in_tree
from deb import unpack_tree

IMAGE = Path("image").absolute()
#: The number of processes, each with a fixed share of the files. marshal's output depends on what
#: the process compiled before; with a queue instead of shares it would not be reproducible.
SHARES = 4

#: A file to compile: its wheel (None: it is on disk), its name there, its path in the image.
Source = tuple[str | None, str, str]


def standard_library(interpreter: list[dict], version: str) -> list[Source]:
    """Unpack the interpreter's packages, and list their Python files."""
    unpack_tree(interpreter, IMAGE)
    library = IMAGE / f"usr/lib/python{version}"
    files = [file for file in library.rglob("*.py") if file.is_file()]
    return [(None, str(file), str(file.relative_to(IMAGE))) for file in files]


def start(version: str, sources: list[Source]) -> list[subprocess.Popen]:
    """Start a process for each share, which writes share-N.tar. Unpack the interpreter before."""
    # Without the packages' tests, which are a tenth of all files.
    wanted = [each for each in sources if not {"test", "tests"} & set(each[2].split("/"))]
    Path("sources.json").write_text(json.dumps(sorted(wanted, key=lambda each: each[2])))
    script = Path(__file__).with_name("bytecode.py")
    argv = [*in_tree(IMAGE, f"python{version}", "-S", "-B", str(script)), "sources.json"]
    return [
        subprocess.Popen([*argv, str(share), str(SHARES), share_tar(share)])
        for share in range(SHARES)
    ]


def share_tar(share: int) -> str:
    return f"share-{share}.tar"


def compiled(processes: list[subprocess.Popen]) -> Iterator[tuple[str, bytes]]:
    """Path and content of each compiled file, share by share; waits for each process."""
    for share, process in enumerate(processes):
        if process.wait() != 0:
            sys.exit("compiling bytecode failed")
        with tarfile.open(share_tar(share)) as made:
            for header in made:
                yield header.name, made.extractfile(header).read()
