"""Which files of a commit vLLM needs: configuration, tokenizer, and the weights once.

vLLM loads all weights that it finds in a directory. So a second copy, in another format or
precision, costs more than its download: it is loaded over the first one, or in its place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orchestrator.core.document import read_json
from orchestrator.core.errors import BadInput, UserError

CONFIG, NATIVE_CONFIG = "config.json", "params.json"
#: What is brought of a repository beside the weights -> what it is for. Nothing else is: no code,
#: no pictures, and only files at its root, since directories hold other formats (onnx/, original/).
WANTED = {
    "*.json": "the model's shape, its tokenizer, which weights are in which file",
    "*.model": "SentencePiece's vocabulary",
    "*.model.v*": "the same, in a version of Mistral's",
    "*.tiktoken": "tiktoken's vocabulary",
    "*.txt": "vocabulary and merges of older tokenizers",
    "*.jinja": "the chat template",
}
#: Of other formats than the chosen one, or of the training.
UNWANTED = ("*.index*.json", "trainer_state.json")
#: What a model's own code is; brought only where the profile trusts it.
CODE = "*.py"
#: One of these is a tokenizer: Mistral's own, then those of transformers.
NATIVE_TOKENIZER = ("tekken.json", "tokenizer.model.v*", "tokenizer.mm.model.v*")
TOKENIZER = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Format:
    """Weights as vLLM looks for them. ``whole`` is the name of a single file, whose stem the parts
    of several have too; ``index`` names the parts. ``pickle``: torch reads them, not safetensors.
    """

    pattern: str
    whole: str
    index: str = ""
    pickle: bool = False


SAFETENSORS = Format("*.safetensors", "model.safetensors", "model.safetensors.index.json")
NATIVE = Format(
    "consolidated*.safetensors", "consolidated.safetensors", "consolidated.safetensors.index.json"
)
BIN = Format("*.bin", "pytorch_model.bin", "pytorch_model.bin.index.json", pickle=True)
PT = Format("*.pt", "model.pt", pickle=True)
#: One is brought, the first that there is: each would be all of the model once more.
FORMATS = (SAFETENSORS, NATIVE, BIN, PT)
#: Files that look like weights and are none of the model's: adapters, the training's state, and
#: what other programs read (OpenVINO, llama.cpp, MLC).
OTHERS = (
    *("adapter_*", "*training_args.bin", "*optimizer.*", "*scheduler.*", "*scaler.*"),
    *("rng_state*", "openvino_*", "ggml-*", "params_shard_*"),
)
#: Beside CTranslate2's model.bin, one or two of them.
VOCABULARIES = tuple(f"{which}vocabulary.*" for which in ("", "shared_", "source_", "target_"))
#: How a file begins that torch has written: a zip archive, or a pickle.
PICKLES = (b"PK\x03\x04", b"\x80")
#: A part of several: what is before its number, their count, and what is after it.
PART = re.compile(r"(?P<stem>.+?)[-_.](?P<number>\d+)[-_]of[-_](?P<count>\d+)(?P<rest>\..+)")
#: Words for a precision at the end of a name; in this order one of several is taken: vLLM computes
#: in 16 bits anyway. A name without such a word is taken before all of them.
PRECISIONS = ("bf16", "bfloat16", "fp16", "f16", "float16", "half", "fp32", "f32", "float32")
PRECISION = re.compile(
    rf"(?P<base>.+)[-_.](?P<word>{'|'.join(PRECISIONS)}|fp8\w*|f8\w*|float8\w*|\w*fp4|nf4"
    r"|u?int[48]|q[2-8]\w*|[2348]-?bits?|(?:non_)?ema)"
)


@dataclass(frozen=True)
class _Copy:
    """Files that are all of the weights, or all that there are of them."""

    base: str
    precision: str
    count: int
    files: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, int, int]:
        """The smallest is taken: what is whole, then by precision, then the fewest files."""
        words = ("", *PRECISIONS)
        place = words.index(self.precision) if self.precision in words else len(words)
        return len(self.files) < self.count, place, self.count


def format_of(names: Iterable[str], native: bool = False) -> Format | None:
    """The format to bring; None where there are no weights for vLLM.

    Mistral's own where that is wished (``native``), or where the other has no tokenizer or no
    configuration that goes with it: both have to be of one format.
    """
    root = [name for name in names if _at_root(name)]
    there = [form for form in FORMATS if of_format(root, form)]
    if NATIVE in there and NATIVE_CONFIG in root:
        own = any(_matches(name, NATIVE_TOKENIZER) for name in root)
        other = CONFIG in root and any(_matches(name, TOKENIZER) for name in root)
        if native or (own and not other) or CONFIG not in root:
            return NATIVE
    return there[0] if there else None


def of_format(names: Collection[str], form: Format) -> list[str]:
    """All files of a format that may be weights of the model."""
    return [
        name
        for name in names
        if _at_root(name)
        and fnmatchcase(name, form.pattern)
        and not _matches(name, OTHERS)
        and not (form is SAFETENSORS and fnmatchcase(name, NATIVE.pattern))
        and not (form is BIN and _is_of_another_program(name, names))
    ]


def are_weights(name: str, names: Collection[str]) -> bool:
    """Whether a file is weights of the model in any format."""
    return any(name in of_format([name], form) for form in FORMATS) and not (
        _is_of_another_program(name, names)
    )


def weights(names: Collection[str], form: Format) -> list[str]:
    """The weights once, by their names. Where there is an index, it knows better; without its
    content, the parts that it is there for."""
    found = of_format(names, form)
    if form.index in names:
        found = [name for name in found if PART.fullmatch(name)] or found
    if form.whole in found:
        return [form.whole]
    copies: dict[str, list[_Copy]] = {}
    for copy in _copies(found):
        copies.setdefault(copy.base, []).append(copy)
    usual = form.whole.partition(".")[0]
    bases = [usual] if usual in copies else sorted(copies)  # vLLM reads files of any name
    return [file for base in bases for file in min(copies[base], key=lambda one: one.rank).files]


def lacking_parts(found: Collection[str]) -> list[str]:
    """Which parts of weights without an index are not there, as far as their names say so."""
    return [
        f"{copy.base} in {copy.count} parts ({len(copy.files)} of them are there)"
        for copy in _copies(found)
        if len(copy.files) < copy.count
    ]


def indexed(index: Path, names: Collection[str], form: Format) -> tuple[list[str], list[str]]:
    """The files that an index names, and those that are not among ``names`` or no weights at all.
    Raises BadInput where it is no index."""
    document: Any = read_json(index)
    try:
        named = sorted(set(document["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        named = []
    if not named or not all(isinstance(name, str) for name in named):
        raise BadInput(f"{index}:1: is no index of weights", "It has no weight_map of file names.")
    there = {name for name in names if _at_root(name) and fnmatchcase(name, form.pattern)}
    return named, [name for name in named if name not in there]


def beside(names: Iterable[str], form: Format, code: bool = False) -> list[str]:
    """What is needed beside the weights. ``code``: what the model runs of its own, too."""
    return [name for name in names if name == form.index or _is_beside(name, code)]


def may_be_wanted(name: str, code: bool = False) -> bool:
    """Whether a file may be one of the model's, whatever else is there."""
    return _at_root(name) and _matches(
        name, (*WANTED, *(form.pattern for form in FORMATS), *([CODE] if code else ()))
    )


def has_tokenizer(names: Iterable[str]) -> bool:
    return any(_matches(name, (*TOKENIZER, *NATIVE_TOKENIZER)) for name in names)


def must_be_a_model(names: Sequence[str], form: Format | None, what: str, hint: str) -> Format:
    """Raises UserError where the files are none that vLLM can serve."""
    wanted = NATIVE_CONFIG if form is NATIVE and CONFIG not in names else CONFIG
    if wanted not in names:
        raise UserError(f"{what} holds no model for vLLM: there is no {wanted}", hint)
    if form is None:
        inside = sorted({name.rpartition("/")[0] for name in names if "/" in name
                         and of_format([name.rpartition("/")[2]], SAFETENSORS)})  # fmt: skip
        where = f"; some are in {inside[0]}/, and vLLM reads none of directories" if inside else ""
        raise UserError(f"{what} holds no weights that vLLM reads (*.safetensors or *.bin){where}",
                        hint)  # fmt: skip
    return form


def _copies(found: Iterable[str]) -> list[_Copy]:
    groups: dict[tuple[str, int], list[str]] = {}
    for name in found:
        match = PART.fullmatch(name)
        stem = f"{match['stem']}{match['rest']}" if match else name
        groups.setdefault((stem, int(match["count"]) if match else 1), []).append(name)
    made = []
    for (stem, count), files in groups.items():
        base, _, _ = stem.rpartition(".")
        word = PRECISION.fullmatch(base)
        made.append(
            _Copy(word["base"] if word else base, word["word"] if word else "", count,
                  tuple(sorted(files)))
        )  # fmt: skip
    return made


def _is_beside(name: str, code: bool) -> bool:
    wanted = (*WANTED, CODE) if code else tuple(WANTED)
    return _at_root(name) and _matches(name, wanted) and not _matches(name, UNWANTED)


def _is_of_another_program(name: str, names: Collection[str]) -> bool:
    """Whether a .bin file is OpenVINO's (with its graph beside it) or CTranslate2's."""
    vocabulary = any(_matches(each, VOCABULARIES) for each in names)
    return f"{name.removesuffix('.bin')}.xml" in names or (name == "model.bin" and vocabulary)


def _at_root(name: str) -> bool:
    return "/" not in name and not name.startswith(".")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
