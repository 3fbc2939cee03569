"""$out is the kernel that the loader starts: the vmlinuz of the locked packages.

It is boot/vmlinuz-* in linux-image-*. Debian's newer kernels have it beside the modules, in a
package linux-binary-*.
"""

import re

from common import OUT, SPEC
from deb import stream_tar

VMLINUZ = re.compile(r"(\./)?(boot/vmlinuz-[^/]+|usr/lib/modules/[^/]+/vmlinuz)")


def kernel(package: str) -> bytes | None:
    """The kernel in a package; None if it has none. Reading stops at the kernel, since the modules
    after it are nearly all of the package."""
    with stream_tar(package, "data") as data:
        for entry in data:
            if VMLINUZ.fullmatch(entry.name):
                return data.extractfile(entry).read()
    return None


found = [data for package in SPEC["debs"] if (data := kernel(package["source"]))]
if len(found) != 1:
    raise SystemExit(f"the lock has {len(found)} kernels; an image has exactly one")
OUT.write_bytes(found[0])
