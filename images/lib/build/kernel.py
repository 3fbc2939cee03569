"""$out is the kernel that the firmware's loader starts: boot/vmlinuz-* of the locked package."""

from common import OUT, SPEC
from deb import stream_tar

if len(SPEC["debs"]) != 1:
    raise SystemExit(f"the lock has {len(SPEC['debs'])} kernels; an image has exactly one")
(package,) = SPEC["debs"]
with stream_tar(package["source"], "data") as data:
    for entry in data:
        if entry.name.removeprefix("./").startswith("boot/vmlinuz-"):
            OUT.write_bytes(data.extractfile(entry).read())
            break  # the modules, which are nearly all of it, come later
    else:
        raise SystemExit(f"{package['source']} has no boot/vmlinuz-*")
