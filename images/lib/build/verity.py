"""$out/tree is a layer's dm-verity hash tree, $out/facts.json the manifest's entry for both.

The format is the kernel's (Documentation/admin-guide/device-mapper/verity.rst, hash type 1) without
a superblock: blocks of 4096 bytes, sha256, no salt, the top level first. `veritysetup verify
--no-superblock --salt=-` reads it. A salt would make it harder to prepare hash collisions before
the image is known. With sha256 nobody can do that anyway, and without a salt the root hash depends
on the layer alone.

Each layer's tree is a derivation of its own, so that it is not rebuilt when another layer changes.
"""

import hashlib
import json
from pathlib import Path

from common import OUT, SPEC

BLOCK = 4096
DIGEST = 32
#: Bytes per read: as much as one block of digests covers.
SPAN = BLOCK // DIGEST * BLOCK


def digests(data: bytes) -> bytes:
    """The digests of the blocks of `data`, one after the other."""
    view = memoryview(data)
    starts = range(0, len(data), BLOCK)
    return b"".join(hashlib.sha256(view[at : at + BLOCK]).digest() for at in starts)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def hash_tree(lowest: bytes) -> tuple[bytes, bytes]:
    """Root hash and tree, from the digests of the data blocks.

    Each level has the digests of the blocks of the level below, until there is only one digest: the
    root. With a single data block, its digest is the root, and the tree is empty.
    """
    levels = []
    level = lowest
    while len(level) > DIGEST:
        levels.insert(0, padded(level))
        level = digests(levels[0])
    return level, b"".join(levels)


layer = Path(SPEC["layer"])
whole, lowest = hashlib.sha256(), []
with layer.open("rb") as file:
    while data := file.read(SPAN):
        whole.update(data)
        lowest.append(digests(data))
size = layer.stat().st_size
if size == 0 or size % BLOCK:
    raise SystemExit(f"{layer}: {size} bytes are not whole blocks of {BLOCK}")
root, tree = hash_tree(b"".join(lowest))
# The kernel needs a hash device even if the tree is empty.
tree = tree or bytes(BLOCK)

OUT.mkdir()
(OUT / "tree").write_bytes(tree)
facts = {
    "size": size,
    "sha256": whole.hexdigest(),
    "verity": {
        "size": len(tree),
        "sha256": hashlib.sha256(tree).hexdigest(),
        "root": root.hex(),
        "salt": "",
        "data_blocks": size // BLOCK,
    },
}
(OUT / "facts.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
