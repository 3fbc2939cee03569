"""The security archive: what is newer there, and taking just that; with the real apt and lists."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from support.box import Box, Site
from support.suites import Archive

from orchestrator.image import spec

pytestmark = pytest.mark.nix

OLD = (
    "web 1u1; Depends: web-common (>= 1u1), web-common (<< 1u1.1~)",
    "web-common 1u1",
    "lib 1",
    "tool 1",
)
FIXED = (
    "web 1u2; Depends: web-common (>= 1u2), web-common (<< 1u2.1~)",
    "web-common 1u2",
    "lib 1u1",
)


def rows(box: Box) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(box.lock("demo").read_text())["debs"]}


def versions(box: Box) -> dict[str, str]:
    return {name: row["version"] for name, row in rows(box).items()}


def write(box: Box, **debian: Any) -> None:
    given: dict[str, Any] = {"suite": "one", "security": "one-security", "components": ["main"]}
    given |= {"essential": False, "packages": ["web", "lib", "tool"], **debian}
    box.write("demo", debian=given)


@pytest.fixture
def image(box: Box, archive: Archive, security: Archive) -> Box:
    """'demo', locked before the security archive had anything."""
    archive.publish("one", *OLD)
    security.publish("one-security")
    write(box)
    box.json("lock", "demo")
    return box


def test_nothing_newer_is_one_line_and_exit_code_0(image: Box) -> None:
    done = image.run("outdated", "demo")
    assert done.returncode == 0
    assert done.stdout == "demo: nothing is newer than its 4 packages in one, one-security\n"
    assert image.json("outdated", "demo")[0]["packages"] == []


def test_what_is_newer_is_told_with_its_suite_and_a_mark(
    image: Box, archive: Archive, security: Archive
) -> None:
    archive.publish("one", *OLD[:3], "tool 2")
    security.publish("one-security", *FIXED)
    done = image.run("outdated", "demo", "--json")
    assert done.returncode == 2
    (found,) = json.loads(done.stdout)
    assert found["looked_at"] == 4
    told = {each["package"]: each for each in found["packages"]}
    assert set(told) == {"web", "web-common", "lib", "tool"}
    assert told["web"] == {
        "package": "web",
        "locked": "1u1",
        "newest": "1u2",
        "suite": "one-security",
        "security": True,
        "listed": True,
    }
    assert (told["tool"]["suite"], told["tool"]["security"]) == ("one", False)
    assert told["tool"]["listed"] is False
    said = image.run("outdated").stdout
    assert (
        "demo: 4 of 4 packages have a newer version in one, one-security; security updates: 3"
        in (said)
    )
    assert "web 1u1 → 1u2 (one-security) [security]" in said
    assert "tool 1 → 2 (one) [no suite has the locked version]" in said
    assert "orchestrate image lock demo --update one-security" in said
    assert versions(image) == {"web": "1u1", "web-common": "1u1", "lib": "1", "tool": "1"}


def test_one_package_moves_with_what_it_needs_and_its_place_is_locked(
    image: Box, security: Archive
) -> None:
    security.publish("one-security", *FIXED)
    changes = image.json("lock", "demo", "--update", "web")["changes"]
    assert changes == ["~ deb web 1u1 → 1u2", "~ deb web-common 1u1 → 1u2"]
    web = rows(image)["web"]
    assert (web["path"], web["security"]) == ("pool/updates/main/web_1u2_amd64.deb", True)
    assert "security" not in rows(image)["lib"]
    assert "nothing changed" in image.run("lock", "demo", "--update", "web").stdout


def test_a_package_that_needs_the_updated_one_moves_along(
    box: Box, archive: Archive, security: Archive
) -> None:
    """As nginx-light with nginx: it wants just its version, and only the other one is named."""
    light = "light 1u1; Depends: web (>= 1u1), web (<< 1u1.1~)"
    archive.publish("one", *OLD, light)
    security.publish("one-security")
    write(box, packages=["light", "tool"])
    box.json("lock", "demo")
    security.publish("one-security", *FIXED, "light 1u2; Depends: web (>= 1u2), web (<< 1u2.1~)")
    changes = box.json("lock", "demo", "--update", "web")["changes"]
    assert changes == ["~ deb light 1u1 → 1u2", "~ deb web 1u1 → 1u2", "~ deb web-common 1u1 → 1u2"]


def test_the_whole_suite_of_security_updates_moves_and_nothing_else(
    image: Box, archive: Archive, security: Archive
) -> None:
    archive.publish("one", *OLD, "tool 2")
    security.publish("one-security", *FIXED)
    image.json("lock", "demo", "--update", "one-security")
    assert versions(image) == {"web": "1u2", "web-common": "1u2", "lib": "1u1", "tool": "1"}
    security.publish("one-security", *FIXED[:2], "lib 1u3")
    image.json("lock", "demo", "--update", "one-security")
    assert versions(image)["lib"] == "1u3"


def test_what_a_point_release_has_taken_over_is_locked_from_there(
    image: Box, archive: Archive, security: Archive
) -> None:
    archive.publish("one", *OLD, "lib 1u1", "tool 3")
    security.publish("one-security", *FIXED, "tool 2")
    done = image.run("outdated", "demo", "--json")
    told = {each["package"]: each for each in json.loads(done.stdout)[0]["packages"]}
    assert (told["lib"]["suite"], told["lib"]["security"]) == ("one", True)
    # tool 3 closes what tool 2 closed.
    assert (told["tool"]["newest"], told["tool"]["security"]) == ("3", True)
    image.json("lock", "demo", "--update", "lib")
    lib = rows(image)["lib"]
    assert (lib["version"], lib["path"]) == ("1u1", "pool/main/lib_1u1_amd64.deb")
    assert "security" not in lib


def test_a_backport_is_not_newer_for_what_is_not_taken_from_there(
    box: Box, archive: Archive, security: Archive
) -> None:
    archive.publish("one", *OLD)
    archive.publish("new", "kernel 7", "tool 9")
    security.publish("one-security")
    write(box, also={"new": ["kernel"]})
    box.json("lock", "demo")
    archive.publish("new", "kernel 8", "tool 10")
    done = box.run("outdated", "demo", "--json")
    (kernel,) = json.loads(done.stdout)[0]["packages"]
    assert (kernel["package"], kernel["newest"], kernel["suite"]) == ("kernel", "8", "new")


def test_a_fault_has_another_exit_code_than_news(image: Box, archive: Archive) -> None:
    """So a timer's script can tell them apart."""
    security = archive.root.with_name("archive-security")
    (security / "dists/one-security/InRelease").unlink()
    failed = image.run("outdated", "demo")
    assert failed.returncode == 1
    assert "one-security" in failed.stderr
    image.lock("demo").unlink()
    failed = image.run("outdated", "demo")
    assert failed.returncode == 1
    assert "orchestrate image lock demo" in failed.stderr
    assert image.run("outdated", "no-such-image").returncode == 1


def test_without_a_security_archive_the_message_says_what_to_set(
    image: Box, archive: Archive
) -> None:
    nothing = image.root / "apt.conf"
    nothing.write_text(
        'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::lists "{image.root}/none";\n'
    )
    del image.env["ORCHESTRATE_DEBIAN_SECURITY_MIRROR"]
    failed = image.run("lock", "demo", APT_CONFIG=str(nothing))
    assert failed.returncode == 1
    assert "--security-mirror URL or in $ORCHESTRATE_DEBIAN_SECURITY_MIRROR" in failed.stderr
    # Beside a mirror named 'debian' it is where mirrors have it.
    (image.root / "debian").symlink_to(archive.root)
    (image.root / "debian-security").symlink_to(archive.root.with_name("archive-security"))
    beside = (image.root / "debian").as_uri()
    done = image.run("lock", "demo", "--mirror", beside, APT_CONFIG=str(nothing))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def fetchable(image: Box, security: Archive, site: Site) -> Box:
    """'demo' with one file of the security archive, served by ``site`` as both archives."""
    security.publish("one-security", *FIXED)
    for name in spec.SHARED:
        image.write(name, debian={"suite": "one", "components": ["main"], "packages": []})
        image.json("lock", name)
    write(image, packages=["lib"])
    image.json("lock", "demo")
    lock = json.loads(image.lock("demo").read_text())
    (row,) = lock["debs"]
    content = b"the fixed library"
    row |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    image.lock("demo").write_text(json.dumps(lock))
    image.env["ORCHESTRATE_DEBIAN_MIRROR"] = f"{site.url}/debian"
    image.env["ORCHESTRATE_DEBIAN_SECURITY_MIRROR"] = f"{site.url}/debian-security"
    return image


@pytest.mark.parametrize(
    "place", ["debian-security/pool/updates/main", "debian/pool/main"], ids=["security", "later"]
)
def test_a_security_update_is_fetched_from_its_archive_or_from_where_it_went(
    fetchable: Box, site: Site, place: str
) -> None:
    (site.root / place).mkdir(parents=True)
    (site.root / place / "lib_1u1_amd64.deb").write_bytes(b"the fixed library")
    assert fetchable.json("fetch", "demo")["files"] == 1
    assert site.gets[0] == "debian-security/pool/updates/main/lib_1u1_amd64.deb"


def test_one_that_was_replaced_comes_from_debians_history(fetchable: Box, site: Site) -> None:
    lock = json.loads(fetchable.lock("demo").read_text())
    lock["listed"] = "2026-11-30T22:00:00+01:00"
    fetchable.lock("demo").write_text(json.dumps(lock))
    fetchable.env["ORCHESTRATE_DEBIAN_HISTORY"] = f"{site.url}/history"
    failed = fetchable.run("fetch", "demo")
    assert failed.returncode == 1
    place = "history/debian-security/20261201T210000Z/pool/updates/main"
    assert f"{place}/lib_1u1_amd64.deb: HTTP 404" in failed.stderr
    (site.root / place).mkdir(parents=True)
    (site.root / place / "lib_1u1_amd64.deb").write_bytes(b"the fixed library")
    assert fetchable.json("fetch", "demo")["files"] == 1


def test_the_time_of_the_lists_moves_only_with_the_packages(image: Box, security: Archive) -> None:
    def listed() -> Any:
        return json.loads(image.lock("demo").read_text())["listed"]

    first = datetime.now(UTC)
    image.json("lock", "demo", "--update", "tool")
    before = listed()
    assert datetime.fromisoformat(before) <= first
    image.json("lock", "demo")
    assert listed() == before
    security.publish("one-security", *FIXED)
    image.json("lock", "demo", "--update", "lib")
    assert datetime.fromisoformat(listed()) >= first.replace(microsecond=0)
