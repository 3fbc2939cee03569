"""The config layer: the trees of images/config, of the image's parts, and of images/NAME/config.

Git keeps of a mode only whether a file is executable; so here it is 0755 or 0644, and what needs
another mode is written at configuration time.
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
    # The store is read-only, and copytree keeps modes: let the next tree write there too.
    for directory, _, names in os.walk(root):
        Path(directory).chmod(0o755)
        for path in (Path(directory, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
squashfs_of_directory(root, SPEC["epoch"])
