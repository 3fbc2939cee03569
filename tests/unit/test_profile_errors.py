"""Every mistake in a profile is named with file, line, key, what is wrong and what is allowed.

The cases are in data/bad_profiles.yml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support import DATA
from support.profiles import PROFILE, make_checkout

from orchestrator.core.errors import BadInput
from orchestrator.models.flags import MANAGED_VARIABLES
from orchestrator.models.profiles import load

CASES = yaml.safe_load((DATA / "bad_profiles.yml").read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["errors"][0] for case in CASES])
def test_each_mistake_is_named(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = case.get("replace", PROFILE)
    assert old in PROFILE
    file = make_checkout(tmp_path, PROFILE.replace(old, case["by"]))
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as raised:
        load(file)
    assert raised.value.message.splitlines() == [
        f"profiles/small.yml:{line}" for line in case["errors"]
    ]


def test_all_mistakes_are_named_at_once_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PROFILE.replace("port: 8000", "port: 80").replace("10.0.0.101", "10.0.0.100")
    text = text.replace("  port: 6379", "  port: 6379\n  port: 6380").replace("small", "Small")
    file = make_checkout(tmp_path, text)
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as raised:
        load(file)
    assert [line.split(": ")[:2] for line in raised.value.message.splitlines()] == [
        ["profiles/small.yml:1", "name"],
        ["profiles/small.yml:21", "compute_nodes[1].links.lan.address"],
        ["profiles/small.yml:31", "ray.port"],
        ["profiles/small.yml:37", "serving.port"],
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "1: cannot be read: no such file or directory"),
        (b"name: small\nimage: \xff\n", "2: is not UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read(
    content: bytes | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.yml").write_bytes(content)
    with pytest.raises(BadInput) as raised:
        load(tmp_path / "x.yml")
    assert raised.value.message == f"x.yml:{expected}"


def test_a_directory_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(BadInput, match="cannot be read: is a directory"):
        load(tmp_path)


SECRETS = {"VLLM_API_KEY", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ADDRESS"}


@pytest.mark.parametrize("section", ["ray", "serving"])
@pytest.mark.parametrize("name", sorted(SECRETS | MANAGED_VARIABLES))
def test_no_profile_sets_what_is_a_secret_or_the_clusters(
    name: str, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = PROFILE.replace("  env: {}\n", "")
    text = without.replace(f"{section}:\n", f"{section}:\n  env: {{{name}: mine}}\n")
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    with pytest.raises(BadInput, match=f"{section}.env.{name}: cannot be set here"):
        load(make_checkout(tmp_path, text))


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123456", "0" * 39, "0" * 41, "A" * 40])
def test_what_may_be_another_commit_tomorrow_is_no_revision(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = f'models:\n  big: {{repository: owner/big, revision: "{revision}"}}\nserving:'
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    with pytest.raises(BadInput, match=r"models\.big\.revision: .* allowed: a commit"):
        load(make_checkout(tmp_path, PROFILE.replace("serving:", big)))


def test_a_commit_of_decimal_digits_is_shown_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YAML reads it as a number, which has no leading zero."""
    digits = "0123456789" * 4
    big = f"models:\n  big: {{repository: owner/big, revision: {digits}}}\nserving:"
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    expected = rf"models\.big\.revision: '{digits}' is not text; allowed: text, in double quotes"
    with pytest.raises(BadInput, match=expected):
        load(make_checkout(tmp_path, PROFILE.replace("serving:", big)))
