"""`orchestrate model inspect`: where MODEL is, and its figures as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.where import go
from orchestrator.core.console import out
from orchestrator.core.errors import BadInput
from orchestrator.core.nodeset import fold
from orchestrator.core.sizes import human_size

if TYPE_CHECKING:
    from orchestrator.models.reading.classes import EngineSays
    from orchestrator.models.reading.sources import ModelFiles
    from orchestrator.profile import Profile
    from orchestrator.profile.existing import Attached


def inspected(profile: str | None, name: str, revision: str, engine: bool) -> dict[str, Any]:
    """All that is known of a model. ``engine``: vLLM's classes may be asked. Raises UserError
    where it is not there."""
    from orchestrator.models import flags, layouts
    from orchestrator.models.reading.inspection import inspect

    theirs = _attached(profile)
    chosen = None if theirs else _profile(profile)
    if chosen and not Path(name).exists():
        go(chosen)  # what its nodes hold was measured from there; files of this computer stay here
    asked = theirs or chosen
    args = asked.serving.args if asked else {}
    formats = flags.number_formats(args)
    source = _source(chosen, name, revision)
    says, silent = _engine(asked, source.config, formats) if engine else (None, [])
    document = inspect(source, flags.trusts_code(args), formats, says).document()
    document["engine_not_asked"] = silent
    document["profile"] = asked.name if asked else None
    document |= {"layouts": [], "files_too_large": [], "memory_not_known": []}
    if chosen and source.config:
        document |= _layouts(chosen, name, source.config, document["weight_bytes_on_disk"] or 0)
        document["refused"] += layouts.refused(chosen, name, source.config)
    return document


def _engine(
    profile: Profile | Attached | None, config: Mapping[str, Any], formats: tuple[str, str]
) -> tuple[EngineSays | None, list[str]]:
    """What vLLM's own classes say, and why who is at hand was not asked."""
    from orchestrator.attach.classes import answered
    from orchestrator.core.console import err
    from orchestrator.models.reading import served

    if profile is None or not config:
        return None, []
    if served.needs_code(config):
        return None, ["the model needs code of its own, which is never run to inspect it"]
    return answered(profile, config, formats, lambda text: err.print(text, markup=False))


def _layouts(profile: Profile, name: str, config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Every layout, with what it takes of each accelerator's memory; and of which nobody knows it.
    ``size``: bytes of the model's files."""
    from orchestrator.image import store
    from orchestrator.models import capacity, flags, layouts
    from orchestrator.performance.predict.layout import Parallelism
    from orchestrator.performance.predict.room import memories, rooms
    from orchestrator.performance.predict.shape import read

    shape, _ = read(config, *flags.number_formats(profile.serving.args))
    known = memories(profile)
    image = capacity.of_image(store.built(profile.image))
    files = [
        *capacity.misfits(
            layouts.serving(profile, name), size, image, capacity.of_nodes(profile, {})
        )
    ]
    rows = []
    for each in layouts.fits(profile, config):
        layout = Parallelism(each.tensor, each.pipeline)
        found = [*rooms(profile, known, shape, config, layout)] if shape else []
        short = [room.why_not for room in found if room.why_not]
        why = "; ".join(filter(None, (each.why, *short, *files)))
        rows.append(
            {"tensor": each.tensor, "pipeline": each.pipeline, "possible": not why,
             "why_not": why or None, "memory": [room.document() for room in found]}
        )  # fmt: skip
    unknown = [node for node, memory in known.items() if memory is None]
    return {"layouts": rows, "files_too_large": files, "memory_not_known": unknown}


def show(document: dict[str, Any]) -> None:
    from orchestrator.models.reading.served import engine

    listed = set(engine()["architectures"])
    quantized, kv = document["quantization"], document["kv_cache"]
    named = ", ".join(document["architectures"]) or document["model_type"] or "not known"
    rows = [
        ("model", document["model"] + (f" at {document['revision'][:12]}" if document["revision"]
                                       else "")),
        ("architecture", f"{named}; {document['layers']} layers"),
        ("parameters", f"{_count(document['parameters'])}, {_count(document['active_parameters'])}"
                       f" active for each token{_by(document, 'parameters')}"),
        ("weights", f"{_size(document['weight_bytes'])} in memory{_by(document, 'weight_bytes')},"
                    f" {_size(document['weight_bytes_on_disk'])} on disk"
                    + _by(document, "weight_bytes_on_disk")),
        ("format", f"{document['dtype']}, " + (
            f"{quantized['method']}: {_bits(quantized)} bits a weight with its scales"
            if quantized["method"] else "not quantized")),
        ("cache", f"{_size(document['kv_bytes_per_token'])} a token" + _bounded(kv)
                  + _by(document, "kv_bytes_per_token")),
        ("context", f"{document['context']:,} tokens" if document["context"] else "not known"),
    ]  # fmt: skip
    rows += [("engine", f"not asked: {text}") for text in document["engine_not_asked"]]
    rows += [("unread", text) for text in document["unread"]]
    rows += [("refused", text) for text in document["refused"]]
    if not document["refused"] and listed & set(document["architectures"]):
        rows.append(("served", f"{document['engine']} lists its architecture and format"))
    rows += [("files", text) for text in document["files_too_large"]]
    for row in document["layouts"]:
        where = f"tensor {row['tensor']}, pipeline {row['pipeline']}"
        least = min((each["requests"] for each in row["memory"]), default=0)
        room = f"possible, with room for {least} requests" if least else "possible"
        why = row["why_not"] or room
        for text in document["files_too_large"]:  # of all layouts alike: said once
            why = why.replace(text, "its files do not fit")
        rows.append(("layout", f"{where}: {why}"))
    if unknown := document["memory_not_known"]:
        rows.append(("memory", f"not known of {fold(unknown)}; to measure it: orchestrate probe"))
    for key, text in rows:
        out.print(f"{key:<13} {text}", markup=False, soft_wrap=True)


def _by(document: dict[str, Any], figure: str) -> str:
    """Where a figure is from."""
    origin = document["origins"][figure]
    return f" (from {origin})" if origin else ""


def _bits(quantized: dict[str, Any]) -> str:
    """The usual bits, then those of layers with formats of their own."""
    return " or ".join(f"{bits:g}" for bits in quantized["formats"])


def _bounded(kv: dict[str, Any]) -> str:
    """What of the cache stops growing."""
    text = "".join(
        f"; {_size(size)} of a token only for the last {int(window):,}"
        for window, size in kv["windows"].items()
    )
    state = kv["state_bytes_per_request"]
    return text + (f"; {human_size(state)} of state for each request" if state else "")


def _count(number: int | None) -> str:
    if number is None:
        return "not known"
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _size(size: float | None) -> str:
    return "not known" if size is None else human_size(size)


def _attached(name: str | None) -> Attached | None:
    """The named or active profile, where it is of a cluster that others run."""
    from orchestrator.profile.load import attached_profile

    try:
        return attached_profile(name)
    except BadInput:
        if name:
            raise
        return None


def _profile(name: str | None) -> Profile | None:
    """The named or active profile; None where there is none to look at."""
    from orchestrator.models.profiles import active

    try:
        return active(name, pinned=False)
    except BadInput:
        if name:
            raise
        return None


def _source(profile: Profile | None, name: str, revision: str) -> ModelFiles:
    from orchestrator.models import catalog
    from orchestrator.models.reading import sources

    if Path(name).is_file():
        return sources.of_file(Path(name))
    if Path(name).is_dir():
        return sources.of_directory(Path(name))
    if profile and name in profile.models:
        entry = profile.models[name]
        return sources.of_hub(entry.repository, entry.revision or revision)
    if name in catalog.known():
        return sources.of_file(catalog.find(name).directory / catalog.CONFIG)
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return sources.of_hub(name, revision)
    raise BadInput(
        f"there is no model {name!r}: no file, no directory, and no name of a profile",
        "Name a repository of the hub as OWNER/NAME, a directory, or a config.json.",
    )
