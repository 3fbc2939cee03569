"""$out is a model directory, made by models/make.py with an image's Python and libraries."""

import os
import subprocess
from pathlib import Path

from common import LIB, OUT, SPEC, in_tree, unsquashfs

image = Path("image").absolute()
base, python = SPEC["layers"]
version, prefix = SPEC["python"], SPEC["prefix"].lstrip("/")
unsquashfs(base, image, f"usr/bin/python{version}", f"usr/lib/python{version}", LIB)
unsquashfs(python, image)
site = image / prefix / f"lib/python{version}/site-packages"
OUT.mkdir()
argv = in_tree(image, f"python{version}", "-B", SPEC["make"], SPEC["model"], str(OUT))
subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": str(site), "HOME": "/build"})
