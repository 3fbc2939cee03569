"""Connections that an HTTP client keeps for later requests."""

from __future__ import annotations

import httpx

#: Seconds that an idle connection is kept. Uvicorn, and so vLLM, closes its own after 5: a request
#: on one that is being closed fails without an answer.
KEPT_S = 2.0


def kept() -> httpx.Limits:
    """As many connections as are wanted at once."""
    return httpx.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT_S
    )
