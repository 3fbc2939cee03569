"""What derives from the model: the JSON schema for editors, and the reference for people."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.profile.existing import EXISTING, Attached
from orchestrator.profile.model import Profile

REFERENCE_HEAD = """\
# Profile reference

A profile is one YAML file that describes a cluster: `profiles/NAME.yml`. `profiles/sim.yml` is a
commented example. This page is generated: `orchestrate profile schema --reference`.

- Unknown keys, keys given twice and values of another type are errors. `orchestrate profile check`
  lists all of a file's mistakes with their lines.
- The format is YAML 1.2: only `true` and `false` are booleans, so text like `no` or a MAC
  address of decimal digits needs no quotes. Text that looks like a number does: `"0.1"`.
- Image and model must exist: `images/IMAGE/image.yml` and `models/MODEL` in the checkout, or a key
  of the profile's own `models`.
- Sizes take KiB, MiB, GiB, TiB, kB, MB, GB or TB; without a unit they are bytes.
- The format has no version key: profiles are versioned together with the code that reads them.

The active profile is the one that `--profile NAME_OR_PATH` names, else the variable
`ORCHESTRATE_PROFILE`, else the choice of `orchestrate profile use NAME_OR_PATH`. A value with a `/`
or the suffix `.yml` is a path, any other value a name.
"""


def schema() -> dict[str, Any]:
    """The JSON schema of a profile, for editors (see the first line of ``profiles/sim.yml``)."""
    ours, theirs = (_without_titles(each.model_json_schema()) for each in (Profile, Attached))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": ours.pop("$defs") | theirs.pop("$defs"),
        "if": {"properties": {"machines": {"const": EXISTING}}, "required": ["machines"]},
        "then": theirs,
        "else": ours,
    }


def schema_text() -> str:
    """``profiles/schema.json``, to the byte."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def reference() -> str:
    """``docs/reference/profile.md``, to the byte: one table a section."""
    whole = schema()
    sections = whole["$defs"]
    parts = [REFERENCE_HEAD, _table("The whole file", whole["else"], sections)]
    parts += [_table(Attached.__name__, whole["then"], sections)]
    parts += [_table(name, section, sections) for name, section in sections.items()]
    return "\n".join(parts)


def _table(title: str, section: dict[str, Any], sections: dict[str, Any]) -> str:
    lines = [f"## {title}", "", section["description"], ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in section["properties"].items():
        default = "required" if key in section.get("required", ()) else _default(field)
        value = _value(field).replace("|", "\\|")
        # The schema leaves out what would repeat the section's own description.
        meaning = field.get("description") or sections[_name(field)]["description"]
        lines.append(f"| `{key}` | {value} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default in ({}, [], "", None):
        return "none"
    return "its defaults" if isinstance(default, dict) else f"`{json.dumps(default)}`"


def _value(field: dict[str, Any]) -> str:
    """The kind of value in a few words."""
    if "$ref" in field:
        return f"[{_name(field)}](#{_name(field).lower()})"
    if "anyOf" in field:
        return " or ".join(_value(one) for one in field["anyOf"] if one.get("type") != "null")
    if allowed := field.get("enum") or [field[key] for key in ("const",) if key in field]:
        return " or ".join(
            f"`{one if isinstance(one, str) else json.dumps(one)}`" for one in allowed
        )
    if field["type"] == "array":
        return f"list of {_value(field['items'])}"
    if field["type"] == "object":
        # Names of a pattern, or the enumerated ones.
        values = field.get("patternProperties") or {"": field["additionalProperties"]}
        return f"name: {_value(next(iter(values.values())))}"
    return _scalar(field)


def _name(field: dict[str, Any]) -> str:
    """The section that a field refers to."""
    return str(field["$ref"]).rsplit("/", 1)[-1]


def _scalar(field: dict[str, Any]) -> str:
    kind = field["type"]
    if isinstance(kind, list):
        return "size"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "bool"}
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum")
    if low is None:
        return words[kind]
    above = "above " if "exclusiveMinimum" in field else ""
    return f"{words[kind]}, {above}{low} to {high}" if high else f"{words[kind]} from {low}"


def _without_titles(value: Any, names: bool = False) -> Any:
    """The schema without the titles that repeat each key; ``names``: the keys are not keywords."""
    if isinstance(value, dict):
        return {
            key: _without_titles(one, names=key in ("properties", "$defs"))
            for key, one in value.items()
            if names or key != "title"
        }
    return [_without_titles(one) for one in value] if isinstance(value, list) else value
