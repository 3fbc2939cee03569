"""What HTTP clients share."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attach import endpoint
from orchestrator.core.connections import public
from orchestrator.profile.existing import Endpoint


def test_authorities_are_read_once_for_all_clients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A dashboard makes a client every two seconds: reading them was most of its work."""
    reads: list[Any] = []
    read = ssl.create_default_context

    def counted(*args: Any, **words: Any) -> ssl.SSLContext:
        reads.append(words)
        return read(*args, **words)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    public.cache_clear()
    for url in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        endpoint.client(Endpoint(url=url), tmp_path).close()
    assert len(reads) == 1
    assert public().verify_mode is ssl.CERT_REQUIRED and public().check_hostname
