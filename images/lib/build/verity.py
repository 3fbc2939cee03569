"""$out/tree is a layer's dm-verity hash tree, $out/facts.json what the manifest says of both.

The form is the kernel's (Documentation/admin-guide/device-mapper/verity.rst, hash type 1) without a
superblock: blocks of 4096 bytes, sha256, no salt, the level of the root first. `veritysetup verify
--no-superblock --salt=-` reads it. A salt would hide from an attacker which block to collide with
before the image is known; with sha256 that is out of reach, and without one the root hash depends
on the layer alone.

Each layer's tree is a derivation of its own: a change elsewhere costs neither tree nor hashes anew.
"""

import hashlib
import json
from pathlib import Path

from common import OUT, SPEC

BLOCK = 4096
DIGEST = 32
#: Read at once: as much as one block of digests covers.
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

    A level above has the digests of the level's blocks, until there is one digest: the root. For a
    single data block that is so at once, and the tree is empty.
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
# The kernel wants a device, also where it has nothing to read there.
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
