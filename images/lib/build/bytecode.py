"""Compile one share of a tree's Python files. Run by the image's own interpreter.

Usage: bytecode.py ROOT SHARE SHARES. Every SHARES-th file, beginning with number SHARE.
"""

import compileall
import py_compile
import sys
from pathlib import Path

root, share, shares = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
# Tests that wheels bring are not run in an image: a tenth of all files.
sources = sorted(
    str(path)
    for path in Path(root).rglob("*.py")
    if not {"test", "tests"} & set(path.relative_to(root).parts)
)
for source in sources[share::shares]:
    compileall.compile_file(
        source,
        stripdir=root,
        prependdir="/",
        quiet=2,  # wheels carry templates and tests that are no valid Python
        # Hash-based and unchecked: no time stamp in the bytes, no look at the source at import.
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
