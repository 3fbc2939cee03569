"""Call a build backend (PEP 517). Run by the builders' interpreter in the source's directory.

Usage: backend.py OUT MODULE[:OBJECT] [PATH...]. PATH: directories in the source that contain the
backend (pyproject.toml's `backend-path`).
"""

import importlib
import sys
from functools import reduce
from pathlib import Path

out, name, *paths = sys.argv[1:]
sys.path[:0] = [str(Path(path).absolute()) for path in paths]
module, _, attributes = name.partition(":")
backend = reduce(getattr, filter(None, attributes.split(".")), importlib.import_module(module))
backend.build_wheel(out)
