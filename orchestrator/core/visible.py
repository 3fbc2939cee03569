"""Foreign text, made visible: what a terminal would obey, and what the eye cannot see.

Text of nodes, of machines that boot, of hubs and of other programs is shown to people. In it,
control characters (C0, C1, DEL) could move the cursor or change the terminal, and characters that
turn the direction of writing, end a line or have no width could show something else than is there.
"""

from __future__ import annotations

import re
import unicodedata

#: What may be meant; everything else is looked at.
_OTHER = re.compile(r"[^\n\t -~]")
#: Blanks of other widths.
_BLANK = "Zs"


def visible(text: str) -> str:
    """The text, with such characters written as in Python; line ends and tabs stay."""
    return _OTHER.sub(lambda found: _shown(found[0]), text)


def one_line(text: str) -> str:
    """The same of a text that has to stay one line."""
    return visible(text).replace("\n", "\\n")


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == _BLANK:
        return character
    return character.encode("unicode_escape").decode()
