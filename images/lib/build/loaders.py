"""$out is a directory of network boot loaders, each a file of a locked package."""

import io
import tarfile

from common import OUT, SPEC
from deb import inner_tar

wanted = {path: name for name, path in SPEC["files"].items()}
OUT.mkdir()
for package in SPEC["debs"]:
    with tarfile.open(fileobj=io.BytesIO(inner_tar(package["source"], "data"))) as data:
        for entry in data:
            if name := wanted.pop(entry.name.removeprefix("./"), None):
                if not entry.isreg():
                    raise SystemExit(f"{entry.name} is not a file: name what it leads to")
                (OUT / name).write_bytes(data.extractfile(entry).read())
if wanted:
    raise SystemExit(f"no package has {', '.join(sorted(wanted))}")
