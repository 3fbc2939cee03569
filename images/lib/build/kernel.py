"""$out is the kernel that the firmware's loader starts: boot/vmlinuz-* of the locked package."""

import io
import tarfile

from common import OUT, SPEC
from deb import inner_tar

kernels = []
for package in SPEC["debs"]:
    with tarfile.open(fileobj=io.BytesIO(inner_tar(package["source"], "data"))) as data:
        for entry in data:
            if entry.name.removeprefix("./").startswith("boot/vmlinuz-"):
                kernels.append(data.extractfile(entry).read())
if len(kernels) != 1:
    raise SystemExit(f"the lock has {len(kernels)} kernels; an image has exactly one")
OUT.write_bytes(kernels[0])
