"""Images: described in image.yml, locked by hash, fetched into the Nix store, built by Nix."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrator.core.errors import UserError

MANIFEST = "manifest.json"

#: The environment variable with the Debian mirror, for hosts whose apt has none.
MIRROR_VARIABLE = "ORCHESTRATE_DEBIAN_MIRROR"
#: Names the archive of Debian's security updates where the host's apt uses none.
SECURITY_MIRROR_VARIABLE = "ORCHESTRATE_DEBIAN_SECURITY_MIRROR"
#: Names another history of Debian's archives than Debian's own.
HISTORY_VARIABLE = "ORCHESTRATE_DEBIAN_HISTORY"
#: Names the keys that a mirror's package lists are signed with, where it signs them itself.
KEYRING_VARIABLE = "ORCHESTRATE_DEBIAN_KEYRING"


def ident(path: Path) -> str:
    """The id of the built image in the directory ``path``: the sha256 of its manifest.

    The manifest has the hashes of all other files, so the id is enough to check all of them.
    Raises UserError if ``path`` does not contain an image.
    """
    try:
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} is not an image: {MANIFEST}: {error.strerror}",
            "Run: orchestrate image build NAME",
        ) from None
