"""Bytes as people read them: powers of 1024, as in profiles. Rates are in powers of 1000."""

from __future__ import annotations


def human_size(count: float) -> str:
    """256 MiB, 15.9 GiB."""
    for unit, worth in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= worth:
            return f"{count / worth:.1f}".removesuffix(".0") + f" {unit}"
    return f"{count:.0f} bytes"
