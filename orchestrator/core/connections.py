"""What HTTP clients share: how long a connection is kept, and which authorities are believed."""

from __future__ import annotations

import functools
import ssl

import httpx

#: Seconds that an idle connection is kept. Uvicorn, and so vLLM, closes its own after 5: a request
#: on one that is being closed fails without an answer.
KEPT_S = 2.0


def kept() -> httpx.Limits:
    """As many connections as are wanted at once."""
    return httpx.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT_S
    )


@functools.cache
def public() -> ssl.SSLContext:
    """The public authorities, as httpx believes them without the environment's word. Each client
    would read them anew, for 20 ms, also one of plain HTTP."""
    return httpx.create_ssl_context(trust_env=False)
