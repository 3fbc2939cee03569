"""The floor for a netboot: the same kernel and the same layers, and nothing on the way to them.

QEMU is given kernel and initrd directly, and each layer as a disk of its own. The initrd is the
image's, for its modules and busybox, with another init: it mounts the disks, lays the node's boot
files over them and goes on. Nothing is fetched, checked or asked for.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.cluster.cluster import Cluster
from orchestrator.image.layers import layers_of
from orchestrator.profile import Node
from orchestrator.provision.identity import BootFile, boot_files, principals
from orchestrator.provision.machines.emulator import VirtualHardware

#: Where the boot files lie in the initrd.
FILES = "files"
#: Disks are named in the order of QEMU's arguments.
INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /proc /sys /dev /run /lower /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755 run /run
for module in virtio_pci virtio_blk squashfs overlay; do modprobe -q $module; done
lower=
for disk in {disks}; do
  until [ -b /dev/$disk ]; do sleep 0.1; done
  mkdir -p /lower/$disk
  mount -t squashfs -o ro /dev/$disk /lower/$disk
  lower=/lower/$disk${{lower:+:$lower}}
done
mkdir -p /run/upper
mount -t tmpfs upper /run/upper
mkdir /run/upper/files /run/upper/work
cp -a /{files}/. /run/upper/files/
mount -t overlay -o "lowerdir=$lower,upperdir=/run/upper/files,workdir=/run/upper/work" root /root
for place in proc sys dev run; do mount --move /$place /root/$place; done
exec switch_root /root /sbin/init
"""


def floor(
    cluster: Cluster, node: Node, hardware: VirtualHardware, directory: Path
) -> VirtualHardware:
    """The machine ``hardware`` with a direct way into the image; its files go to ``directory``."""
    identity = cluster.trust.host_identity(principals(node))
    files = boot_files(cluster.profile, node, identity, cluster.trust.user_ca_public)
    layers = [cluster.image / layer["file"] for layer in layers_of(cluster.image)]
    disks = [f"vd{chr(ord('a') + number)}" for number in range(len(layers))]
    tree = {"init": BootFile(INIT.format(disks=" ".join(disks), files=FILES), 0o755)}
    tree |= {f"{FILES}{path}": file for path, file in files.items()}
    initrd = directory / "initrd"
    own = (cluster.image / "initrd").read_bytes()
    # The kernel unpacks archives one over the other; each begins at a multiple of four.
    initrd.write_bytes(own + b"\0" * (-len(own) % 4) + archive(tree))
    words = ["-kernel", str(cluster.image / "kernel"), "-initrd", str(initrd)]
    words += ["-append", "console=ttyS0,115200"]
    for number, layer in enumerate(layers):
        words += ["-drive", f"if=none,id=layer{number},format=raw,readonly=on,file={layer}"]
        words += ["-device", f"virtio-blk-pci,drive=layer{number}"]
    return dataclasses.replace(hardware, disk=None, extra=words)


def archive(tree: Mapping[str, BootFile]) -> bytes:
    """Files, and the directories above them, as cpio (newc; the kernel's initramfs format)."""
    members = [*directories(tree), *tree.items()]
    parts = [member(number, name, file) for number, (name, file) in enumerate(members, 1)]
    return b"".join([*parts, member(0, "TRAILER!!!", BootFile("", 0))])


def directories(tree: Mapping[str, BootFile]) -> Iterator[tuple[str, None]]:
    above = {str(parent) for name in tree for parent in Path(name).parents} - {"."}
    for name in sorted(above):
        yield name, None


def member(number: int, name: str, file: BootFile | None) -> bytes:
    """One entry; ``None`` is a directory."""
    data = file.content.encode() if file else b""
    mode = stat.S_IFREG | file.mode if file else stat.S_IFDIR | 0o755
    path = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
    head = b"070701" + b"".join(b"%08X" % each for each in fields) + path
    return b"".join(part + b"\0" * (-len(part) % 4) for part in (head, data))
