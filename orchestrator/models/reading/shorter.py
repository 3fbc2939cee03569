"""A config.json with fewer layers."""

from __future__ import annotations

from typing import Any

from orchestrator.models.reading.facts import Config, facts, text_path
from orchestrator.models.reading.layers import depth

#: Ends of keys whose lists name layers by their numbers.
NUMBERED = ("_layers", "_layer_ids", "_layer_idx", "_layer_indices", "_layers_idx")


def is_by_layer(key: str, value: object, count: int) -> bool:
    """Whether a key's value has an entry for each of so many layers: a list, or a pattern's
    letters. Other words may be as long by chance, like "silu"."""
    kind = list | str if key.endswith("pattern") else list
    return isinstance(value, kind) and len(value) == count > 1


def names_layers(key: str, value: object, count: int) -> bool:
    """Whether a key's list names some of so many layers by their numbers."""
    return (
        isinstance(value, list)
        and bool(value)
        and key.endswith(NUMBERED)
        and all(isinstance(each, int) and 0 <= each < count for each in value)
    )


def shorter(config: Config, wanted: int) -> dict[str, Any]:
    """The same config.json with ``wanted`` layers, all else as it was; unchanged where nobody can
    tell how many it has."""
    found = facts(config)
    count, names = depth(found), found.names("num_hidden_layers")
    if not count:
        return dict(config)

    def changed(text: Config) -> dict[str, Any]:
        made = dict(text)
        for key, value in text.items():
            if key in names:
                made[key] = wanted
            elif is_by_layer(key, value, count):
                made[key] = value[:wanted]
            elif names_layers(key, value, count):
                made[key] = [each for each in value if each < wanted]
        return made if any(key in names for key in made) else {**made, names[0]: wanted}

    def within(part: Config, path: tuple[str, ...]) -> dict[str, Any]:
        if not path:
            return changed(part)
        return {**part, path[0]: within(part[path[0]], path[1:])}

    return within(config, text_path(config))
