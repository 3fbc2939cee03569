"""What counts as newer, what as a security update; where a package of either archive lies."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from orchestrator.core.download import Unavailable
from orchestrator.core.errors import UserError
from orchestrator.image.build import fetch
from orchestrator.image.build.sources import Sources
from orchestrator.image.lock import mirrors as places
from orchestrator.image.lock.mirrors import Mirrors
from orchestrator.image.lock.outdated import Newer, Outdated, newer
from orchestrator.image.lockfile import Deb

MAIN, SECURITY = "one", "one-security"


def found(locked: str, candidate: str, **suites: str) -> Newer | None:
    """``suites`` by version, which has '_' for '.'."""
    listed = {("tool", version.replace("_", ".")): {of} for version, of in suites.items()}
    told = newer({"tool": locked}, {"tool": candidate} if candidate else {}, listed, SECURITY)
    return told[0] if told else None


def test_versions_are_compared_as_debian_does() -> None:
    newest = found("1.9", "1.10", **{"1_9": MAIN, "1_10": MAIN})
    assert newest is not None
    assert (newest.newest, newest.suite, newest.security, newest.listed) == (
        "1.10",
        MAIN,
        False,
        True,
    )
    assert found("1.10", "1.9", **{"1_9": MAIN}) is None
    assert found("1.0", "1.0~rc1", **{"1_0~rc1": MAIN}) is None
    assert found("1.0", "", **{}) is None  # no suite has it any more, in any version


def test_an_update_closes_what_a_security_update_below_it_closed() -> None:
    for fix, closes in (("1_1", True), ("1_0", False), ("0_9", False)):
        newest = found("1.0", "1.2", **{"1_2": MAIN, fix: SECURITY})
        assert newest is not None
        assert newest.security is closes


def test_a_version_that_both_have_is_the_suites() -> None:
    listed = {("tool", "2"): {SECURITY, MAIN}}
    (newest,) = newer({"tool": "1"}, {"tool": "2"}, listed, SECURITY)
    assert (newest.suite, newest.security, newest.listed) == (MAIN, True, False)


def test_what_is_told_has_the_command_for_the_security_updates_where_there_are_some() -> None:
    plain = Newer("tool", "1", "2", MAIN, security=False, listed=True)
    fixed = Newer("web", "1", "2", SECURITY, security=True, listed=False)
    suites = (MAIN, SECURITY)
    said = "\n".join(Outdated("demo", suites, SECURITY, 5, (plain,)).lines())
    assert "security updates: none" in said and f"--update {SECURITY}" not in said
    assert "export" not in said
    said = "\n".join(Outdated("demo", suites, SECURITY, 5, (plain, fixed)).lines())
    assert f"orchestrate image lock demo --update {SECURITY}" in said
    assert "orchestrate image export demo" in said


def deb(path: str, security: bool) -> Deb:
    return Deb(
        name="tool",
        version="1",
        architecture="all",
        path=path,
        size=1,
        sha256="0" * 64,
        store="tool.deb",
        security=security,
    )


@pytest.mark.parametrize(
    ("path", "security", "at", "later"),
    [
        ("pool/main/t/tool_1.deb", False, "https://a/debian/pool/main/t/tool_1.deb", None),
        (
            "pool/updates/main/t/tool_1%3a2.deb",
            True,
            "https://s/pool/updates/main/t/tool_1%253a2.deb",
            "https://a/debian/pool/main/t/tool_1%253a2.deb",
        ),
        ("pool/main/t/tool_1.deb", True, "https://s/pool/main/t/tool_1.deb", None),
    ],
)
def test_a_security_update_lies_in_its_archive_and_later_in_the_other(
    path: str, security: bool, at: str, later: str | None
) -> None:
    mirrors = Mirrors("https://a/debian/", "https://s/")
    assert mirrors.url(deb(path, security)) == at
    assert mirrors.later(deb(path, security)) == later


@pytest.mark.parametrize(
    ("status", "asked"), [(404, True), (410, True), (503, False), (None, False)]
)
def test_debians_history_is_asked_only_for_what_every_mirror_says_is_gone(
    status: int | None, asked: bool
) -> None:
    package = deb("pool/updates/main/t/tool_1.deb", security=True)
    listed = {package.sha256: datetime(2026, 11, 30, 22, tzinfo=UTC)}
    sources = Sources(mirrors=Mirrors("https://a/debian", "https://s"), listed=listed)
    tried: list[Unavailable] = []
    last = ""
    for last in fetch.places(package, sources, tried):
        tried.append(Unavailable(last, status=404 if not tried else status))
    assert ("/debian-security/20261201T220000Z/pool/updates/main/t/tool_1.deb" in last) is asked
    assert len(tried) == 2 + asked
    unlisted = Sources(mirrors=sources.mirrors)
    assert len(list(fetch.places(package, unlisted, [Unavailable("", status=404)]))) == 2


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("https://a/debian\n", "https://a/debian"),
        ("# a comment\n\nhttp://a/debian/\nhttp://b/debian/\n", "http://a/debian"),
        ("http://a/d\tpriority:9\nhttp://b/d\tpriority:10\n", "http://a/d"),
        ("http://a/d\nhttp://b/d\tpriority:1 arch:amd64\n", "http://b/d"),  # without one: last
        ("http://a/d\tarch:i386\nhttp://b/d\tarch:arm64 arch:amd64\n", "http://b/d"),
        ("http://a/d\ttype:index\nhttp://b/d\tcomponent:main\nfile:/srv/d\n", "file:/srv/d"),
        ("tor+http://a/d\nftp://b/d\n", None),
        ("", None),
    ],
)
def test_a_list_of_mirrors_gives_the_one_that_apt_tries_first(text: str, first: str | None) -> None:
    assert places.first_in(text) == first


def test_lists_of_mirrors_are_read_where_apt_reads_them(tmp_path: Path) -> None:
    lists = tmp_path / "mirrors"
    lists.mkdir()
    (lists / "debian.list").write_text("https://a/debian\n")
    (lists / "tor").write_text("tor+http://a/debian\n")
    # As apt-get indextargets prints it.
    assert places.first_of([f"mirror+file:{lists}/debian.list/"]) == "https://a/debian"
    assert places.first_of([f"mirror+file:{lists}/tor/", "http://b/debian/"]) == "http://b/debian"
    assert places.first_of(["cdrom://Debian/", "tor+https://a/debian/"]) is None
    with pytest.raises(UserError, match=rf"file:{lists}/gone: .* cannot be read") as caught:
        places.first_of([f"mirror+file:{lists}/gone/"])
    assert "--mirror" in caught.value.hint


def test_a_list_of_mirrors_comes_over_http(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("http://a/debian/\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        at = f"127.0.0.1:{server.server_port}"
        try:
            assert places.first_of([f"mirror+http://{at}/list/"]) == "http://a/debian"
            assert places.first_of([f"mirror://{at}/list/"]) == "http://a/debian"
            with pytest.raises(UserError, match="404"):
                places.first_of([f"mirror+http://{at}/none/"])
        finally:
            server.shutdown()
