"""Names that a user may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'mac'? (known: address, interface, mac)``, to end a message with."""
    known = list(known)
    listed = ", ".join(known) or "none"
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'? (known: {listed})" if close else f"known: {listed}"
