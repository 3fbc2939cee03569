"""The models' descriptions agree with each other and with the profiles that serve them.

The making itself needs torch, so the build of an image tests that: it fails where an answer is
not repeated word for word.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from orchestrator.core import paths
from orchestrator.models import catalog
from orchestrator.models.profiles import load

MADE = [
    name
    for name in catalog.known()
    if "training" in json.loads((catalog.find(name).directory / "model.json").read_text())
]
PROFILES = sorted((paths.checkout() / "profiles").glob("*.yml"))
#: One token a byte, END, PAD: make.py's tokenizer.
BYTES, SPECIAL = 256, 2


def constants() -> dict[str, str]:
    """QUESTION and ANSWER of make.py, which cannot be imported without torch."""
    tree = ast.parse((paths.checkout() / "models" / "make.py").read_text(encoding="utf-8"))
    assigned = next(
        statement
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]).startswith("(QU")
    )
    assert isinstance(assigned.targets[0], ast.Tuple)
    names = [ast.unparse(target) for target in assigned.targets[0].elts]
    return dict(zip(names, ast.literal_eval(assigned.value), strict=True))


def test_there_are_models_to_make() -> None:
    assert {"known-answers", "random-300m"} <= set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_the_tokens_are_where_the_tokenizer_puts_them(name: str) -> None:
    config = catalog.find(name).config
    assert (config["eos_token_id"], config["pad_token_id"]) == (BYTES, BYTES + 1)
    assert config["vocab_size"] >= BYTES + SPECIAL
    assert config["vocab_size"] % 8 == 0  # cut in equal parts by tensor parallelism


@pytest.mark.parametrize("name", MADE)
def test_the_heads_are_of_a_size_that_vllm_computes_on_a_cpu(name: str) -> None:
    config = catalog.find(name).config
    assert config["head_dim"] % 32 == 0
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


@pytest.mark.parametrize("name", MADE)
def test_the_image_that_makes_it_exists(name: str) -> None:
    description = json.loads((catalog.find(name).directory / "model.json").read_text())
    assert (paths.checkout() / "images" / description["image"] / "image.yml").is_file()


#: The others serve models with another tokenizer.
SERVING_OURS = [path for path in PROFILES if load(path).serving.model in MADE]


@pytest.mark.parametrize("path", SERVING_OURS, ids=lambda path: path.stem)
def test_known_answers_fit_what_the_profile_allows(path: Path) -> None:
    profile = load(path)
    longest = int(profile.serving.args.get("max-model-len", 0)) or None
    form = constants()
    answers = catalog.find(profile.serving.model).answers
    assert answers
    for known in answers:
        said = len(known.answer.encode()) + 1  # END is a token too
        assert said <= profile.verification.max_tokens, known.question
        read = len(f"{form['QUESTION']}{known.question}{form['ANSWER']}".encode())
        assert longest is None or read + said <= longest, known.question


def test_no_question_is_asked_twice() -> None:
    for name in MADE:
        questions = [known.question for known in catalog.find(name).answers]
        assert len(questions) == len(set(questions))
