"""A profile, an image's description or a lock from somebody hostile: small, and meant to harm.

What is wrong with it is said in words, with its line, soon, and with nothing that a terminal obeys.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from support.profiles import PROFILE, make_checkout

from orchestrator.cli import main

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{after}: &{after} {{p: *{before}, q: *{before}, r: *{before}, s: *{before}}}\n"
    for before, after in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
ANCHORS = ", ".join(f"&a{n} [*a{n - 1}]" if n else "&a0 [x]" for n in range(2000))
CHAIN = f"? [{ANCHORS}]\n: x\nb: *a1999\n"
#: Name -> the text, and what is said of it.
TEXTS = {
    "aliases that expand to 10^9 values": (BOMB, "aliases repeat more than 10000 values"),
    "aliases of mappings": (MERGED, "aliases repeat more than 10000 values"),
    "aliases, each in the next one": (CHAIN, "nested more than 64 deep"),
    "brackets": ("[" * 50_000, "nested more than 64 deep"),
    "braces": ("{a: " * 5000, "nested more than 64 deep"),
    "dashes": ("- " * 5000 + "x", "nested more than 64 deep"),
    "keys that are keys": ("? " * 3000 + "x", "nested more than 64 deep"),
    "indentation": ("\n".join(" " * n + "a:" for n in range(2000)), ":65: values are nested"),
    "itself": ("a: &a [*a]\n", "contains itself"),
    "no character": ('name: "\\U00110000"\n', "is not YAML"),
    "a number of many digits": (f"name: {'9' * 5000}\n", "which its tag"),
    "an object of Python": ("name: !!python/name:os.system x\n", "has the tag"),
    "a key for a terminal": ('"\\x1b[2J\\u202e": 1\n', "\\x1b[2J\\u202e"),
    "a value for a terminal": (PROFILE.replace("1.5GiB", '"\\x1b]0;x\\a\\x9b"'), "\\x1b]0;x"),
}  # fmt: skip
IMAGES = Path(__file__).parents[2] / "images"
#: Of the whole check, in bytes: Python with its libraries takes a fifth of it.
MEMORY = 1 << 30


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    make_checkout(tmp_path)
    return tmp_path


def refused(*words: str) -> str:
    """What the command says on a real standard error, in its own process with little memory."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        capture_output=True, text=True, timeout=60, check=False, errors="surrogateescape",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )  # fmt: skip
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr and "bug" not in done.stderr, done.stderr
    for said in (done.stdout, done.stderr):
        assert all(c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in said)
    return done.stderr


@pytest.mark.parametrize("what", TEXTS)
def test_a_profile(what: str, checkout: Path) -> None:
    text, said = TEXTS[what]
    (checkout / "profiles/small.yml").write_text(text)
    assert said in refused("profile", "check", "small")


@pytest.mark.parametrize("what", ["aliases that expand to 10^9 values", "brackets", "itself"])
def test_the_description_of_an_image(what: str, checkout: Path) -> None:
    text, said = TEXTS[what]
    (checkout / "images/plain/image.yml").write_text(text)
    assert said in refused("image", "check", "plain")
    assert said in refused("profile", "check", "small")


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("models/tiny/config.json", ("profile", "check", "small")),
        ("images/plain/lock.json", ("image", "check", "plain")),
    ],
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "nested too deep"),
        (f'{{"a": {DEEP}}}', "nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
        (json.dumps("\x1b[2J\u202e"), ""),
        ('{"\x1b[2J', "is not JSON"),
    ],
)
def test_json(file: str, words: tuple[str, ...], text: str, said: str, checkout: Path) -> None:
    shutil.copytree(IMAGES / "parts", checkout / "images/parts")
    shutil.copy(IMAGES / "pxe-sim/image.yml", checkout / "images/plain/image.yml")
    (checkout / file).write_text(text)
    assert said in refused(*words)


def test_the_same_values_by_a_few_aliases_are_fine(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PROFILE.replace("networks:\n  lan: {", "networks:\n  lan: &lan {")
    text = text.replace("  env: {}\n", "  env: &none {}\n").replace(
        "serving:\n", "serving:\n  env: *none\n"
    )
    assert "*none" in text
    (checkout / "profiles/small.yml").write_text(text)
    main(["profile", "check", "small"])
    assert "error" not in capsys.readouterr().err
