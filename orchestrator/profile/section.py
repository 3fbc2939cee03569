"""What every section of a profile is: frozen, strict, and without unknown keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from orchestrator.core.source import Loc, Problem, YamlSource


class Section(BaseModel):
    """Frozen after load; no key that is not declared; no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WholeFile(Section):
    """A section that is a whole file: it knows where each of its keys stands."""

    _source: YamlSource = PrivateAttr(default=YamlSource(Path()))
    #: Keys that stand elsewhere in the file than here (services.py).
    _moved: Mapping[Loc, Loc] = PrivateAttr(default={})
    #: The whole file, where this is a part of it.
    _whole: Self | None = PrivateAttr(default=None)

    @property
    def whole(self) -> Self:
        """The profile of the whole cluster, where this is that of one of its models."""
        return self._whole or self

    @property
    def path(self) -> Path:
        """The file that this profile came from."""
        return self._source.path

    @property
    def sha256(self) -> str:
        """Of the file as it is now: two commands that name the same one mean the same cluster."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def where(self, *loc: str | int) -> str:
        """``profiles/x.yml:12: serving.port``, to begin a message about that key with."""
        return self._source.where(self._in_file(loc))

    def problem(self, loc: Loc, text: str) -> Problem:
        """What is wrong with that key, with its line."""
        return self._source.problem(self._in_file(loc), text)

    def _in_file(self, loc: Loc) -> Loc:
        """Where the file has that key."""
        return self._moved.get(loc[:2], loc[:2]) + loc[2:]

    def document(self) -> dict[str, Any]:
        """The profile as JSON types, with its defaults filled in."""
        return self.model_dump(mode="json")
