"""The config layer: the trees of images/config, of the image's parts, and of images/NAME/config.

Modes are 0755 or 0644, since git stores only whether a file is executable. Files that need another
mode are written when a node is configured.
"""

import os
import shutil
from pathlib import Path

from common import SPEC, squashfs_of_directory

root = Path("config")
root.mkdir()
for part in SPEC["trees"]:
    into = root / part["into"].lstrip("/")
    shutil.copytree(part["tree"], into, symlinks=True, dirs_exist_ok=True)
    # copytree keeps the store's read-only modes: make directories writable for the next tree.
    for directory, _, names in os.walk(root):
        Path(directory).chmod(0o755)
        for path in (Path(directory, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
squashfs_of_directory(root, SPEC["epoch"])
