"""Every text file that a node gets comes from a template of ``templates/``; reports too."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("orchestrator", "templates"),
        undefined=StrictUndefined,
        # Configuration files are no HTML.
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(env=env_value, word=exec_word)
    return environment


def render(template: str, **values: Any) -> str:
    """The text of ``templates/<template>.j2``; a value that is missing is an error, not a blank."""
    return _environment().get_template(f"{template}.j2").render(**values)


def env_value(value: str) -> str:
    """Quote a value for an environment file that both systemd and a shell read."""
    escaped = "".join(f"\\{c}" if c in '\\"`$' else c for c in value)
    return f'"{escaped}"'


def exec_word(word: str) -> str:
    """Quote one word of a unit's ExecStart: no specifier, variable or escape stays active."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    escaped = escaped.replace("%", "%%").replace("$", "$$")
    plain = escaped and all(c.isalnum() or c in "-_./:=,+@%$" for c in escaped)
    return escaped if plain else f'"{escaped}"'
