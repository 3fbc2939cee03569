"""What is taken out of texts before they leave the cluster, and what stays to be read."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.redact import Redactor

TOKEN = "c0ffee" * 8 + "0123456789abcdef"
PASSWORD = 'pa"ss/w&rd'


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "RAY_AUTH_TOKEN={}",
        "x{}y",
        "http://10.0.0.1/?key={}&x=1",
        "\x1b[31m{}\x1b[0m",
        "a\n{}\nb",
    ],
)
@pytest.mark.parametrize("secret", [TOKEN, PASSWORD, "äö secret"])
def test_a_known_secret_goes_however_it_is_written(text: str, secret: str) -> None:
    redactor = Redactor([secret + "\n"])
    for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1]):
        assert form not in redactor.clean(text.format(form))
    for before in ("", "a", "ab", "abc", "user:"):
        coded = base64.b64encode(f"{before}{secret}:behind".encode()).decode()
        left = redactor.clean(text.format(coded))
        assert not any(secret.encode()[:8] in each for each in decoded(left))


def decoded(text: str) -> Iterator[bytes]:
    """What every part of a text would be, if it were base64."""
    for run in re.findall(r"[A-Za-z0-9+/]+", text):
        for shift in range(4):
            part = run[shift:]
            yield base64.b64decode(part[: len(part) // 4 * 4])


@given(st.lists(st.text("ab", min_size=4, max_size=9), min_size=1), st.text("ab", max_size=80))
def test_no_secret_is_left_by_one_that_is_a_part_of_it(secrets: list[str], text: str) -> None:
    clean = Redactor(secrets).clean(text)
    assert not any(secret in clean for secret in secrets)


@pytest.fixture(scope="module", params=["ed25519", "rsa"])
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("key") / "key"
    format = ["-m", "PEM"] if request.param == "rsa" else []
    argv = ["ssh-keygen", "-q", "-t", request.param, *format, "-N", "", "-f", str(file)]
    subprocess.run(argv, check=True)
    return Path(file).read_text()


def inside(key: str) -> list[str]:
    """The lines of a private key that say anything."""
    return key.splitlines()[1:-1]


def test_a_private_key_goes_that_nobody_knew_of(key: str) -> None:
    texts = {
        "plain": f"before\n{key}after\n",
        "json": f"before {json.dumps({'key': key})} after",
        "in a log": "".join(f"Nov 30 host sshd[12]: {line}\n" for line in key.splitlines()),
        "without its end": f"before\n{key[: -len(key) // 3]}",
        "without its beginning": f"{key[len(key) // 3 :]}after\n",
    }
    for what, text in texts.items():
        clean = Redactor().clean(text)
        left = [line for line in inside(key)[:-1] if line in clean]
        assert left == [], what
    assert Redactor().clean(texts["plain"]).startswith("before\n***")
    assert Redactor().clean(texts["without its beginning"]).endswith("***\nafter\n")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("{'authorization': 'Basic dXNlcjpwYXNz', 'host': 'x'}", "dXNlcjpwYXNz"),
        ('{"Authorization": "Token 123456"}', "123456"),
        ("curl -H 'Authorization: Bearer sesame9'", "sesame9"),
        ("got a bearer sesame-0123", "sesame-0123"),
        ("loading with hf_abcdefghijklmnopqrst", "hf_abcdefghijklmnopqrst"),
        ("OPENAI_API_KEY=sesame99", "sesame99"),
        ("api_key: 'sesame99'", "sesame99"),
        ("ipmi --password sesame99 on", "sesame99"),
        ("db passwd=sesame99;", "sesame99"),
        ('{"token": "sesame99"}', "sesame99"),
        ('"{\\"secret\\": \\"sesame99\\"}"', "sesame99"),
        ("http://ada:sesame99@10.0.0.1/", "sesame99"),
        ("orchestrate.boot=0123456789abcdef0123456789abcdef BOOTIF", "0123456789abcdef01"),
        ("GET /boot/identity?mac=02:00&boot=0123456789abcdef", "0123456789abcdef"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJzdWIiOiIxIn0"),
        ("AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
    ],
)
def test_what_looks_like_a_secret_goes(text: str, secret: str) -> None:
    redactor = Redactor()
    assert secret not in redactor.clean(text)
    assert redactor.count


@pytest.mark.parametrize(
    "text",
    [
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "i915 0000:03:00.0: [drm] GuC firmware i915/dg2_guc_70.bin version 70.49.4",
        "max_tokens=48 eos_token: 151643 tokenizer=None",
        "RAY_AUTH_TOKEN_PATH=/etc/orchestrate/ray.token",
        "key: value, cache key 123",
        "/opt/venvs/orchestrate/lib/python3.13/site-packages/vllm/model_executor/layers/x.py:12",
        "ssh: connect to host 10.0.0.1 port 22: No route to host",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert Redactor([TOKEN]).clean(text) == text


def test_words_of_a_program_that_may_hold_secrets_go_to_the_lines_end() -> None:
    redactor = Redactor(programs=["ipmitool"])
    said = "command: timeout 30 /usr/bin/ipmitool -U root -P calvin\n  exit code: 1\n"
    assert redactor.clean(said) == "command: timeout 30 /usr/bin/ipmitool ***\n  exit code: 1\n"


@pytest.mark.parametrize(
    "piece",
    ["a", "A0b", "-----BEGIN PRIVATE KEY-----\n", "-----END PRIVATE KEY-----\n", "A" * 64 + "\n",
     "://", "token", "--", "password=", "eyJ", " \n", "authorization"],
)  # fmt: skip
def test_a_long_hostile_log_takes_no_time_that_grows_with_its_square(piece: str) -> None:
    """With patterns that look far from everywhere, this would take hours: the test's own limit."""
    Redactor([TOKEN], ["tool"]).clean(piece * (1_000_000 // len(piece)))
