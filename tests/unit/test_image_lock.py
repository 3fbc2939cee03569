"""Lock files: names, digest, text, differences; and what apt's and pip's output is read as."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from plumbum import local

from orchestrator.core.errors import BadInput, UserError
from orchestrator.image import lockfile, spec, tags
from orchestrator.image.lock import apt, index, sdist, wheels
from orchestrator.image.lockfile import Deb, Lock, LockedSource, Wheel
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
    written = lock(
        deb("a"), wheels=(wheel,), seed=lockfile.LockedSeed(deb="a", file="f", sha256="s")
    )
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


A, B, C = "https://a.example/simple", "https://b.example/simple", "https://c.example/simple"


@pytest.mark.parametrize(
    ("text", "variables", "indexes"),
    [
        (f"[global]\nno-index = false\nindex-url = {A}\n", {}, (A,)),
        (f"[global]\nno-index = true\nindex-url = {A}\n", {}, ()),
        (f"[global]\nno-index = yes\nindex-url = {A}\n", {"PIP_NO_INDEX": "0"}, (A,)),
        (f"[global]\nindex-url = {A}\n[install]\nindex-url = {B}\n", {}, (B,)),
        (f"[global]\nindex-url = {A}\n[install]\nindex-url = {B}\n", {"PIP_INDEX_URL": C}, (C,)),
        (f"[global]\nindex-url = {A}\n[download]\nindex-url = {B}\n", {}, (A,)),
        (f"[global]\nindex-url = {A}\nextra-index-url =\n  {B}\n  {C}\n", {}, (A, B, C)),
        (f"[global]\nindex_url = {A}\n", {"PIP_EXTRA_INDEX_URL": f"{B} {C}"}, (A, B, C)),
        ("[global]\nindex-url = https://u:p'q@a.example/\n", {}, ("https://u:p'q@a.example/",)),
    ],
)
def test_pips_settings_are_what_pip_reads(
    text: str,
    variables: dict[str, str],
    indexes: tuple[str, ...],
    tmp_path: Path,
) -> None:
    assert settings_of(text, tmp_path, variables).index_urls == indexes


def test_directories_of_pips_settings(tmp_path: Path) -> None:
    links = tmp_path / "wheels"
    links.mkdir()
    text = f"[global]\nno-index = 1\nfind-links =\n  {links}\n  {A}\n"
    assert settings_of(text, tmp_path, {}) == index.Settings((), (str(links), A))


def test_a_setting_that_pip_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="perhaps is not a valid value for no-index"):
        settings_of("[global]\nno-index = perhaps\n", tmp_path, {})


def settings_of(text: str, home: Path, variables: Mapping[str, str]) -> index.Settings:
    """With this file and these variables; an empty value is none, and hides this machine's."""
    file, parser = home / "pip.conf", ConfigParser(interpolation=None)
    parser.read_string(text)
    for key in ("extra-index-url", "find-links"):
        parser["global"].setdefault(key, "")
    with file.open("w") as stream:
        parser.write(stream)
    with local.env(PIP_CONFIG_FILE=str(file), PIP_FIND_LINKS="", **variables):
        return index.settings.__wrapped__()


def test_platforms_begin_with_the_newest_library() -> None:
    names = tags.platforms("2.36")
    assert names[0] == "manylinux_2_36_x86_64"
    assert "manylinux_2_37_x86_64" not in names
    assert {"manylinux_2_5_x86_64", "manylinux2014_x86_64", "linux_x86_64"} <= set(names)


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
    assert found.files
    assert all(lockfile.store_name(file.file) == file.store for file in found.files)


@pytest.mark.parametrize(
    ("file", "fits"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp313-cp313-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp38-abi3-manylinux2014_x86_64.whl", True),
        ("a-1-cp313-cp313-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp313-cp313t-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp314-abi3-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp313-cp313-manylinux_2_42_x86_64.whl", False),
        ("a-1-cp313-cp313-manylinux_2_28_aarch64.whl", False),
        ("a-1-cp313-cp313-win_amd64.whl", False),
        ("not-a-wheel.whl", False),
    ],
)
def test_a_wheel_fits_by_its_tags(file: str, fits: bool) -> None:
    assert (tags.misfit(file, "3.13", "2.41") is None) == fits


def test_a_file_of_unknown_size_and_a_source_survive_writing() -> None:
    far = Deb(
        **{**deb("b").model_dump(), "size": None, "url": "https://h/b.deb", "elsewhere": True}
    )
    source = LockedSource(
        name="c",
        version="1",
        file="c-1.tar.gz",
        size=3,
        sha256="0" * 64,
        store="c-1.tar.gz",
        environment={"A": "b"},
    )
    written = lock(deb("a"), far, sources=(source,))
    raw = json.loads(lockfile.text(written))
    assert raw["debs"][1]["size"] is None
    assert raw["debs"][1]["elsewhere"] is True
    assert "elsewhere" not in raw["debs"][0]
    assert raw["sources"][0]["environment"] == {"A": "b"}
    raw["schema_"] = raw.pop("schema")
    assert Lock.model_validate(raw) == written
    assert lockfile.known_size(written.files) == written.debs[0].size + 3  # type: ignore[operator]


ELSEWHERE = {
    "version": "2.0+xpu",
    "url": "https://host/whl/torch-2.0%2Bxpu-cp311-cp311-manylinux_2_28_x86_64.whl",
    "sha256": "0" * 64,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "123"}, "python.elsewhere.torch.sha256"),
        ({"url": "torch.whl"}, "python.elsewhere.torch.url"),
        ({"url": ELSEWHERE["url"].replace("cp311", "cp313")}, "not for Python 3.11"),
        ({"version": "2.1"}, "is not torch 2.1"),
        ({"requires": ["a ==== b"]}, "python.elsewhere.torch.requires[0]"),
        ({"size": -1}, "python.elsewhere.torch.size"),
    ],
)
def test_what_is_declared_is_checked(
    change: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    document = json.loads(json.dumps(IMAGE))
    document["python"]["elsewhere"] = {"torch": {**ELSEWHERE, **change}}
    (tmp_path / "images/demo").mkdir(parents=True)
    (tmp_path / "images/demo/image.yml").write_text(yaml.safe_dump(document))
    with pytest.raises(BadInput) as error:
        spec.load("demo")
    assert said in str(error.value)


def test_a_requirements_file_is_read_as_pip_reads_it() -> None:
    files = {
        "requirements/xpu.txt": "# all\n-r common.txt\n--pre\nb >= 2 # why\n",
        "requirements/common.txt": "a\\\n ==1; python_version > '3'\n\n",
    }
    lines = list(sdist._lines(files.__getitem__, "requirements/xpu.txt"))
    assert lines == ["a ==1; python_version > '3'", "b >= 2"]


NEW, OLD = "Metadata-Version: 2.4\nName: x\nVersion: 1\n", "Metadata-Version: 2.1\nName: x\n"
HERE = '[project]\nname = "x"\ndependencies = ["b>=2", "c; python_version < \'4\'"]\n'


@pytest.mark.parametrize(
    ("metadata", "project", "requires"),
    [
        (NEW, None, []),
        (
            NEW + "Requires-Dist: a\nRequires-Dist: b; extra == 'c'\n",
            None,
            ["a", "b; extra == 'c'"],
        ),
        (NEW + "Dynamic: License\nRequires-Dist: a\n", HERE, ["a"]),
        (NEW + "Dynamic: requires-dist\n", HERE, ["b>=2", 'c; python_version < "4"']),
        (OLD, HERE, ["b>=2", 'c; python_version < "4"']),
        (OLD, "[project]\nname = 'x'\n", []),
        (
            OLD,
            "[project]\noptional-dependencies = { Fast_Path = ['d', 'e; os_name == \"nt\"'] }\n",
            ['d; extra == "fast-path"', 'e; os_name == "nt" and extra == "fast-path"'],
        ),
    ],
)
def test_a_source_archive_says_what_its_wheel_requires(
    metadata: str, project: str | None, requires: list[str], tmp_path: Path
) -> None:
    assert sdist.requirements(archived(tmp_path, metadata, project), None) == requires


@pytest.mark.parametrize(
    ("metadata", "project"),
    [
        (NEW + "Dynamic: Requires-Dist\nRequires-Dist: a\n", None),
        (OLD + "Requires-Dist: a\n", None),  # of its publisher's own build
        (OLD, "[build-system]\nrequires = ['setuptools']\n"),
        (OLD, "[project]\nname = 'x'\ndynamic = ['dependencies']\n"),
        (NEW + "Dynamic: Requires-Dist\n", "[project]\ndynamic = ['optional-dependencies']\n"),
        ("", None),
        (OLD, "this is no TOML"),
    ],
)
def test_what_only_a_build_decides_is_not_taken_for_nothing(
    metadata: str, project: str | None, tmp_path: Path
) -> None:
    archive = archived(tmp_path, metadata, project)
    with pytest.raises(sdist.DecidedByBuild, match="only a build does"):
        sdist.requirements(archive, None)
    assert sdist.requirements(archive, "own.txt") == ["z"]


def archived(directory: Path, metadata: str, project: str | None) -> Path:
    """A source archive."""
    path = directory / "x-1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x-1/PKG-INFO", metadata)
        archive.writestr("x-1/own.txt", "z\n")
        if project is not None:
            archive.writestr("x-1/pyproject.toml", project)
    return path


def test_pip_names_the_kept_versions_that_block() -> None:
    said = (
        "ERROR: Cannot install new==2 because these package versions have conflicting "
        "dependencies.\n\nThe conflict is caused by:\n    new 2 depends on Some_Thing>=3\n"
        "    The user requested (constraint) some-thing==1.0\n"
    )
    assert wheels.blocking(said) == {"some-thing"}


def test_apt_takes_from_a_further_suite_only_what_is_named() -> None:
    debian = spec.Debian(
        suite="s", components=("main",), packages=("a",), also={"s-more": ("b", "c")}
    )
    text = apt.preferences(debian, {"a": "1"})
    assert "Package: *\nPin: release n=s-more\nPin-Priority: 100\n" in text
    assert "Package: b c\nPin: release a=s-more\nPin-Priority: 990\n" in text
    assert "Package: a\nPin: version 1\nPin-Priority: 1001\n" in text
