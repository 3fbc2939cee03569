"""Secrets taken out of texts: those that are known, and what looks like one.

The second line of defence: what holds secrets is not read in the first place. Too much may go.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

GONE = "***"
#: A known secret that is shorter would be a word of any text.
SHORTEST = 4

_NAMES = (
    r"pass(?:word|wd|phrase|code)?|pwd|secret|credentials?|token|(?:api|access|private|auth|signing)"
    r"[_-]?key"
)
#: Values that say nothing.
_HARMLESS = r"(?!\*\*\*|(?:\d{1,12}|true|false|none|null|yes|no)\b|<)"
#: What looks like a secret, and what stays of it. In this order. None may look far from where it
#: begins, for each place where it may begin: logs are long, and may be hostile.
SHAPES = tuple(
    (re.compile(pattern), stays)
    for pattern, stays in (
        # A private key; in JSON, with \n for line ends.
        (
            r"-----BEGIN [A-Z0-9 ]{0,20}PRIVATE KEY-----(?:[A-Za-z0-9+/=\s:,-]|\\[nr])*?"
            r"(?:-----END [A-Z0-9 ]{0,20}PRIVATE KEY-----|(?=[^A-Za-z0-9+/=\s:,\\-])|\Z)",
            GONE,
        ),
        # A line of one, behind a log's time. What is all hexadecimal is a digest.
        (
            r"(?<![A-Za-z0-9+/=_-])(?=[A-Za-z0-9+/]{0,76}[G-Z])(?=[A-Za-z0-9+/]{0,76}[g-z])"
            r"(?=[A-Za-z+/]{0,76}[0-9])"
            r"(?:[A-Za-z0-9+/]{64}|[A-Za-z0-9+/]{70}|[A-Za-z0-9+/]{76})(?![A-Za-z0-9+/=_-])",
            GONE,
        ),
        (r"(?i)((?:authorization|cookie)\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\r\n\"'\\]+", rf"\1{GONE}"),
        (r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{6,}", rf"\1{GONE}"),
        (r"\b(?:hf|sk|pk|gh[pousr]|glpat|github_pat|xox[abpr])[_-][A-Za-z0-9_-]{10,}", GONE),
        (r"\bAKIA[0-9A-Z]{16}\b", GONE),
        (r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", GONE),
        # USER:PASSWORD@ of an address.
        (r"(://)[^\s/@\"']{1,200}@", rf"\1{GONE}@"),
        # A boot's nonce: a secret until it is used.
        (r"((?:orchestrate\.|[?&'\" ])boot=['\"]?)[A-Za-z0-9_-]{9,}", rf"\1{GONE}"),
        (
            rf"(?i)((?:{_NAMES})\\?[\"']?\s{{0,3}}[:=]\s{{0,3}}\\?[\"']?){_HARMLESS}"
            r"[^\s\"',;&\\]{4,}",
            rf"\1{GONE}",
        ),
        (
            rf"(?i)(\s--?[\w-]{{0,40}}(?:{_NAMES})\s{{1,3}}[\"']?){_HARMLESS}[^\s\"'-][^\s\"']{{3,}}",
            rf"\1{GONE}",
        ),
    )
)
#: The end of a private key whose beginning was cut off.
END_OF_KEY = re.compile(r"-----END [A-Z0-9 ]{0,20}PRIVATE KEY-----")
#: A name whose value is not shown, whatever it is.
SECRETIVE = re.compile(rf"(?i)(?:{_NAMES}|(?:^|_)key$)")


class Redactor:
    """Knows secrets, and the programs whose words may be some; ``count``: how many it took out."""

    def __init__(self, known: Iterable[str] = (), programs: Iterable[str] = ()) -> None:
        self.count = 0
        forms = {form for secret in known for form in _forms(secret)}
        # The longest first: a part of a secret would leave the rest.
        words = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, words))) if words else None
        names = sorted({re.escape(name) for name in programs}, key=len, reverse=True)
        rest = rf"((?<![\w-])(?:{'|'.join(names)})[\"']?,?[ \t])(?:(?!\\n)[^\r\n])+"
        self._programs = re.compile(rest) if names else None

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for pattern, stays in self._patterns():
            text, count = pattern.subn(stays, text)
            self.count += count
        *cut, rest = END_OF_KEY.split(text)
        self.count += len(cut)
        return "".join(_without_end_of_key(part) + GONE for part in cut) + rest

    def document(self, value: Any, key: str = "") -> Any:
        """JSON types without secrets: each text by itself, so that it stays a document."""
        if isinstance(value, Mapping):
            return {self.clean(name): self.document(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self.document(each) for each in value]
        if not isinstance(value, str):
            return value
        if value != GONE and SECRETIVE.search(key):
            self.count += 1
            return GONE
        return self.clean(value)

    def _patterns(self) -> Iterator[tuple[re.Pattern[str], str]]:
        if self._known:
            yield self._known, GONE
        if self._programs:
            yield self._programs, rf"\1{GONE}"
        yield from SHAPES


def _without_end_of_key(before: str) -> str:
    """A text without the lines of a key that it ends with."""
    lines = before.split("\n")
    while len(lines) > 1 and re.fullmatch(r"[A-Za-z0-9+/=\s]*", lines[-1]):
        lines.pop()
    return "\n".join([*lines, ""])


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, and as it is written in an address, in JSON, and in base64; a text of
    several lines, by its lines."""
    for part in {secret.strip(), *(line.strip() for line in secret.splitlines())}:
        if len(part) < SHORTEST or part.startswith("-----"):
            continue
        yield part
        yield quote(part, safe="")
        yield json.dumps(part)[1:-1]
        # Whatever is before it there: without the digits that depend on that.
        for shift in range(3):
            coded = base64.b64encode(bytes(shift) + part.encode()).decode()
            middle = coded[-(-shift * 8 // 6) : len(coded) - (4 if coded.endswith("=") else 0)]
            if len(middle) >= 2 * SHORTEST:
                yield middle
