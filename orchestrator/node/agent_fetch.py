"""Files that a node fetches from the control node, checked by their hash.

Runs on a node as a part of the agent (agent.py): the standard library and agent_base only.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.node.agent_base import Failed

DOWNLOAD_TIMEOUT_S = 60.0  # without a byte
DOWNLOAD_PAUSES = (1.0, 2.0, 4.0)  # before a download is taken up again
CHUNK = 1 << 20


def download(url: str) -> Iterator[bytes]:
    """A file's bytes; a cut connection is resumed at the same place."""
    # No proxy: the control node is on the node's own network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    have = 0
    for pause in (*DOWNLOAD_PAUSES, None):
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with opener.open(request, timeout=DOWNLOAD_TIMEOUT_S) as answer:
                if have and answer.status != 206:
                    raise Failed(f"{url}: the server does not resume after {have} bytes")
                size = have + int(answer.headers["Content-Length"] or 0)
                while chunk := answer.read(CHUNK):
                    have += len(chunk)
                    yield chunk
            if have >= size:
                return
            why: object = f"the connection ended after {have} of {size} bytes"
        except urllib.error.HTTPError as error:
            raise Failed(f"{url}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            why = error
        if pause is None:
            raise Failed(f"{url}: {why}")
        time.sleep(pause)


def verified(chunks: Iterable[bytes], wanted: dict[str, Any]) -> Iterator[bytes]:
    """Pass ``chunks`` on; raise Failed at the first byte too many, or at their end if not right."""
    digest, left = hashlib.sha256(), wanted.get("size", sys.maxsize)
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise Failed(f"the download is larger than {wanted['size']} bytes; stopped")
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != wanted["sha256"]:
        raise Failed(f"the download's sha256 is {digest.hexdigest()}, not {wanted['sha256']}")
