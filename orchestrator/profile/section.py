"""What every section of a profile is: frozen, strict, and without unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen after load; no key that is not declared; no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
