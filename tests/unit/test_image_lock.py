"""Lock files: names, digest, text, differences; and what apt's and pip's output is read as."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import BadInput, UserError
from orchestrator.image import apt, index, lockfile, spec, wheels
from orchestrator.image.lockfile import Deb, Lock, Wheel
from orchestrator.image.spec import Spec

IMAGE: dict[str, Any] = {
    "description": "a test",
    "date": "2026-07-11T00:00:00Z",
    "debian": {"suite": "s", "components": ["main"], "packages": ["a"]},
    "python": {"version": "3.11", "glibc": "2.36", "requirements": ["x==1"]},
}


def deb(name: str, version: str = "1", sha256: str = "0" * 64) -> Deb:
    return Deb(
        name=name,
        version=version,
        architecture="all",
        path=f"pool/{name}_{version}_all.deb",
        size=1,
        sha256=sha256,
        store=f"{name}.deb",
    )


def lock(*debs: Deb, **more: Any) -> Lock:
    parts: dict[str, Any] = {"inputs": "i", "epoch": 1, "python": None, "system": {}, "wheels": ()}
    return Lock(debs=debs, **(parts | more))


@given(st.text(min_size=1))
def test_store_names_have_only_characters_that_nix_takes(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9+\-._?=]+", lockfile.store_name(name))


def test_good_names_stay_and_others_change_as_the_readme_says() -> None:
    assert lockfile.store_name("a_1.0+b1-2_amd64.deb") == "a_1.0+b1-2_amd64.deb"
    assert lockfile.store_name("a_1%3a2~rc1_all.deb") == "a_1_3a2_rc1_all.deb"


def test_differences_are_told_by_name() -> None:
    old = lock(deb("same"), deb("gone"), deb("moved"), deb("rebuilt"))
    new = lock(deb("same"), deb("moved", "2"), deb("came"), deb("rebuilt", sha256="1" * 64))
    assert lockfile.changes(old, new) == [
        "+ deb came 1",
        "- deb gone 1",
        "~ deb moved 1 → 2",
        "~ deb rebuilt: same version, another file",
    ]
    assert lockfile.changes(new, new) == []
    assert lockfile.changes(None, lock(deb("a"))) == ["+ deb a 1"]
    assert lockfile.changes(lock(), lock(epoch=2)) == ["~ settings of image.yml"]


def test_a_lock_reads_back_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    directory = tmp_path / "images/demo"
    directory.mkdir(parents=True)
    (directory / "image.yml").write_text(yaml.safe_dump(IMAGE))
    wheel = Wheel(
        name="x", version="1", file="x.whl", size=2, sha256="2" * 64, store="x.whl", url="u"
    )
    written = lock(deb("a"), wheels=(wheel,), seed=lockfile.Seed(deb="a", file="f", sha256="s"))
    lockfile.write("demo", written)
    assert lockfile.read("demo") == written
    raw = json.loads((directory / "lock.json").read_text())
    assert raw["schema"] == 1
    assert "url" not in raw["debs"][0]
    assert raw["wheels"][0]["url"] == "u"
    assert [path.name for path in directory.iterdir() if path.name != "image.yml"] == ["lock.json"]
    with pytest.raises(UserError, match="changed since its lock was made"):
        lockfile.current("demo")


@pytest.mark.parametrize(
    ("key", "value", "stale"),
    [
        ("description", "other words", False),
        ("capabilities", {"no_x": "reason"}, False),
        ("date", "2026-07-12T00:00:00Z", True),
        ("debian", IMAGE["debian"] | {"packages": ["a", "b"]}, True),
        ("debian", IMAGE["debian"] | {"exclude": {}, "essential": True}, False),
        ("python", IMAGE["python"] | {"rename": {"x": {"name": "y", "version": "1"}}}, True),
        ("system", {"enable": ["a.service"]}, True),
    ],
)
def test_the_digest_changes_with_what_the_lock_depends_on(
    key: str, value: Any, stale: bool
) -> None:
    before = lock(inputs=Spec.model_validate(IMAGE).digest())
    assert lockfile.is_stale(before, Spec.model_validate(IMAGE | {key: value})) is stale


def test_apt_output_is_read_with_and_without_an_installed_version() -> None:
    said = """\
Inst libc6 (2.36-9 Debian:12.15/oldstable [amd64]) []
Inst apt [2.6.1] (2.6.2 Debian:12.15/oldstable [amd64])
Conf libc6 (2.36-9 Debian:12.15/oldstable [amd64])
"""
    assert apt.parse_simulation(said) == ["libc6=2.36-9", "apt=2.6.2"]


def test_control_paragraphs_are_read_without_folded_lines() -> None:
    said = "Package: a\nTag: one,\n two: three\nSize: 5\n\nPackage: b\n"
    assert list(apt.parse_stanzas(said)) == [
        {"Package": "a", "Tag": "one,", "Size": "5"},
        {"Package": "b"},
    ]


def test_the_environment_wins_in_pips_settings() -> None:
    said = "global.find-links='/a /b'\n:env:.find-links='/c'\ninstall.index-url='u'\n"
    assert index.parse_config(said) == {"find-links": "/c", "index-url": "u"}


def test_platforms_begin_with_the_newest_library() -> None:
    tags = wheels.platforms("2.36")
    assert tags[0] == "manylinux_2_36_x86_64"
    assert "manylinux_2_37_x86_64" not in tags
    assert {"manylinux_2_5_x86_64", "manylinux2014_x86_64", "linux_x86_64"} <= set(tags)


def test_the_interpreter_is_that_of_the_packages() -> None:
    python = Spec.model_validate(IMAGE).python
    assert python is not None
    debs = [deb("libpython3.11-minimal", "3.11.2-6+deb12u8")]
    assert wheels.interpreter("demo", python, debs) == "3.11.2"
    with pytest.raises(BadInput, match=r"python\.version is 3\.11"):
        wheels.interpreter("demo", python, [deb("libpython3.13-minimal", "3.13.5-2")])


def test_a_package_without_wheel_is_named() -> None:
    said = "ERROR: No matching distribution found for old-thing>=2\n"
    assert "no wheel fits for old-thing>=2" in wheels.explain("demo", said)


@pytest.mark.parametrize("name", spec.names())
def test_the_locks_of_the_tree_are_current(name: str) -> None:
    found = lockfile.current(name)
    assert lockfile.path_of(name).read_text() == lockfile.text(found)
    stores = [file.store for file in found.files]
    assert len(stores) == len(set(stores))
    for files in (found.debs, found.wheels):
        assert list(files) == sorted(files, key=lambda file: file.name)
    assert all(lockfile.store_name(file.file) == file.store for file in found.files)
