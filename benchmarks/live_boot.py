"""The peer of a netboot: Debian's live-boot, with one squashfs of the same content over HTTP.

It starts as ours does, from firmware through DHCP, TFTP and iPXE, and gets its files from the same
nginx; then its own kernel command line and its own initrd take over. Its squashfs has all layers of
the image and the node's boot files, packed as our layers are. It checks nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conventional_image import built_with

from orchestrator.cluster.cluster import Cluster
from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.image import lockfile, spec
from orchestrator.image.layers import layers_of
from orchestrator.image.lock.mirrors import Mirrors
from orchestrator.profile import Node
from orchestrator.provision import boot_parameters
from orchestrator.provision.identity import boot_files, principals
from orchestrator.provision.netboot.publish import CURRENT, DOCUMENT

TOOLS = ("mmdebstrap", "mksquashfs", "unshare")
#: Beside the images that are served.
PLACE = "live-boot"
SQUASHFS = "filesystem.squashfs"
#: What an installation with live-boot has; wget, since a Debian live image has it too.
PACKAGES = ("live-boot", "live-boot-initramfs-tools", "initramfs-tools", "mount", "zstd", "wget")
SCRIPT = """\
#!ipxe
kernel {url}/kernel initrd=initrd boot=live fetch={url}/{squashfs} ip=dhcp {further}
initrd --name initrd {url}/initrd
boot
"""


@contextmanager
def prepared(cluster: Cluster, image: str, node: Node, scratch: Path) -> Iterator[None]:
    """Files of live-boot beside the served ones, until the end. The control node is up."""
    place = paths.served(cluster.profile.name) / "images" / PLACE
    place.mkdir()
    try:
        err.print("live-boot: making its initrd")
        make_initrd(image, scratch / "tree", place)
        shutil.copyfile(cluster.image / "kernel", place / "kernel")
        err.print("live-boot: packing one squashfs")
        make_squashfs(cluster, node, scratch, place / SQUASHFS)
        yield
    finally:
        shutil.rmtree(place)


@contextmanager
def chosen(cluster: Cluster, node: Node) -> Iterator[None]:
    """The node's iPXE script is live-boot's, until the end."""
    profile = cluster.profile
    path = paths.served(profile.name) / CURRENT / DOCUMENT
    before = path.read_text()
    document = json.loads(before)
    further = " ".join(f"console={console}" for console in profile.boot.consoles)
    url = f"{boot_parameters.server(profile)}/images/{PLACE}"
    script = SCRIPT.format(url=url, squashfs=SQUASHFS, further=further)
    document["nodes"][profile.boot_link(node).mac][boot_parameters.IPXE] = script
    path.write_text(json.dumps(document))
    try:
        yield
    finally:
        path.write_text(before)


def make_initrd(image: str, tree: Path, place: Path) -> None:
    """Debian's own initrd, with live-boot in it, for the kernel of the image's lock."""
    kernels = [deb.name for deb in lockfile.current(image).debs if deb.name.startswith(KERNEL)]
    debian = spec.load(image).debian
    include = ",".join([*kernels, *PACKAGES])
    argv = ["mmdebstrap", "--mode=root", "--quiet", "--variant=essential", f"--include={include}"]
    argv += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    argv += [f"--components={','.join(debian.components)}", debian.suite, str(tree)]
    run([*argv, Mirrors().main], what="make a tree with live-boot")
    made = sorted((tree / "boot").glob("initrd.img-*"))
    if len(made) != 1:
        raise UserError(f"live-boot's tree has no initrd in {tree}/boot")
    shutil.copyfile(made[0], place / "initrd")
    shutil.rmtree(tree)


#: Packages of kernels, not the one that depends on the newest of them.
KERNEL = "linux-image-6"


def make_squashfs(cluster: Cluster, node: Node, scratch: Path, target: Path) -> None:
    """All layers over each other and the node's boot files, as one squashfs."""
    upper = scratch / "upper"
    identity = cluster.trust.host_identity(principals(node))
    for path, file in boot_files(
        cluster.profile, node, identity, cluster.trust.user_ca_public
    ).items():
        place = upper / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.content)
        place.chmod(file.mode)
    layers = [cluster.image / str(layer["file"]) for layer in layers_of(cluster.image)]
    root, work = scratch / "root", scratch / "work"
    places = [scratch / f"layer{number}" for number in range(len(layers))]
    for directory in (root, work, *places):
        directory.mkdir()
    lower = ":".join(str(place) for place in reversed(places))
    script = "".join(
        f"mount -t squashfs -o ro,loop {layer} {place}\n"
        for layer, place in zip(layers, places, strict=True)
    )
    script += f"mount -t overlay -o lowerdir={lower},upperdir={upper},workdir={work} root {root}\n"
    options = ["-noappend", "-no-progress", "-quiet", *built_with("common.py", "COMPRESSION")]
    script += f"exec mksquashfs {root} {target} {' '.join(options)}\n"
    # The mounts end with the namespace.
    run(["unshare", "--mount", "sh", "-ec", script], what="pack the layers into one squashfs")
