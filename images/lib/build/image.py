"""The image: layers, kernel and initrd under plain names, manifest and bill of materials.

The sha256 of manifest.json is the image id: the manifest has the hashes of all other files.
"""

import hashlib
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from common import OUT, SPEC

SBOM = "sbom.cdx.json"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(name: str, path: Path) -> dict:
    return {"file": name, "size": path.stat().st_size, "sha256": sha256(path)}


def component(kind: str, entry: dict) -> dict:
    """A CycloneDX component; `kind` is the package URL's type and namespace."""
    purl = f"pkg:{kind}/{quote(entry['name'])}@{quote(entry['version'], safe='')}"
    if "architecture" in entry:
        purl += f"?arch={entry['architecture']}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": entry["name"],
        "version": entry["version"],
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
    }


def bill_of_materials() -> dict:
    """CycloneDX 1.5: every package and wheel of the image's lock, and the loaders' packages."""
    parts = [component("deb/debian", deb) for deb in SPEC["debs"]]
    parts += [component("pypi", wheel) for wheel in SPEC["wheels"]]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    when = datetime.fromtimestamp(SPEC["epoch"], UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "operating-system", "name": SPEC["name"]},
        },
        "components": parts,
    }


def write_json(path: Path, document: dict) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def add_layer(name: str, mount: str | None, path: str, verity: str) -> dict:
    """Link a layer and its hash tree; return its manifest entry. verity.py made the hashes.

    ``mount``: the directory that contains all of the layer, if there is one.
    """
    facts = json.loads(Path(verity, "facts.json").read_text())
    file, tree = f"{name}.squashfs", f"{name}.verity"
    (OUT / file).symlink_to(path)
    (OUT / tree).symlink_to(Path(verity, "tree"))
    layer = {"name": name, "file": file, **facts, "verity": {"file": tree, **facts["verity"]}}
    return layer | ({"mount": mount} if mount else {})


OUT.mkdir()
layers = [add_layer(**layer) for layer in SPEC["layers"]]
for name in ("kernel", "initrd"):
    (OUT / name).symlink_to(SPEC[name])
(OUT / "loaders").mkdir()
loaders = []
for path in sorted(Path(SPEC["loaders"]).iterdir()):
    loaders.append(f"loaders/{path.name}")
    (OUT / loaders[-1]).symlink_to(path)
write_json(OUT / SBOM, bill_of_materials())
manifest = {
    "schema": 1,
    "name": SPEC["name"],
    "epoch": SPEC["epoch"],
    "layers": layers,  # the first is the lowest
    **{name: described(name, OUT / name) for name in ("kernel", "initrd")},
    "loaders": [described(name, OUT / name) for name in loaders],
    "sbom": described(SBOM, OUT / SBOM),
}
write_json(OUT / "manifest.json", manifest)
