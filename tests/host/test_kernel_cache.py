"""Compiled kernels that outlive a boot, as a node keeps them, and taken from it over a real SSH."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.agent import Files, serving
from support.profiles import PROFILE, make_checkout
from support.sshd import sshd

from orchestrator.cluster import kernels, warm
from orchestrator.cluster.cluster import Cluster
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.models.publish import sha256
from orchestrator.node import kernel_archive, kernel_cache
from orchestrator.node.kernel_cache import Unusable, key, prepare
from orchestrator.node.paths import PYTHON
from orchestrator.node.remote import Remote
from orchestrator.node.trust import Trust, open_trust
from orchestrator.profile import Profile

ACCOUNT = "nobody"
IMAGE = "a" * 16 + "b" * 48
CARD = "8086:56a0"


@pytest.fixture
def root() -> Iterator[Path]:
    """A node's root, with one card; an account without rights can get into it."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    device = place / "sys/bus/pci/devices/0000:03:00.0"
    device.mkdir(parents=True)
    drivers = place / "sys/bus/pci/drivers/i915"
    drivers.mkdir(parents=True)
    (device / "driver").symlink_to(drivers)
    for name, text in {"vendor": "0x8086", "device": "0x56a0", "revision": "0x08",
                       "class": "0x030000"}.items():  # fmt: skip
        (device / name).write_text(text)
    (place / "run/orchestrate").mkdir(parents=True)
    (place / "run/orchestrate/image-id").write_text(IMAGE)
    yield place
    run(["umount", place / "disk"], ok=None)
    shutil.rmtree(place)


def wanted(root: Path, **others: Any) -> dict[str, Any]:
    return {
        "variables": ["A_CACHE_DIR", "B_CACHE_DIR"],
        "account": ACCOUNT,
        "cards": [CARD],
        "max_bytes": 1 << 20,
        "disk": "/disk",
        "memory": "/var/lib/kernels.memory",
        "link": "/var/lib/kernels",
        "warm": [],
        **others,
    }


def compiled(root: Path, name: str = "0123.cache", content: bytes = b"kernel") -> Path:
    """What a program of the account leaves in its cache."""
    file = root / "var/lib/kernels/A_CACHE_DIR" / name
    file.write_bytes(content)
    os.chown(file, pwd.getpwnam(ACCOUNT).pw_uid, -1)
    return file


@pytest.fixture
def disk(root: Path) -> Path:
    """A disk that is labelled for caches, as the initrd mounts it."""
    (root / "disk").mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=755", "none", root / "disk"])
    return root / "disk"


def heard(root: Path, **others: Any) -> list[str]:
    said: list[str] = []
    prepare(wanted(root, **others), root, said.append)
    return said


def test_a_key_names_image_kernel_driver_and_card(root: Path) -> None:
    assert key([CARD], root, "6.12.0") == f"{'a' * 16}_6.12.0_i915_8086-56a0-r08"
    # No card is named: each that displays or computes counts.
    assert key([], root, "6.12.0") == key([CARD], root, "6.12.0")
    assert "_no-driver_cpu" in key(["10de:2204"], root, "6.12.0")
    (root / "sys/module/i915").mkdir(parents=True)
    (root / "sys/module/i915/version").write_text("1.2 beta/3")
    assert "_i915-1.2-beta-3_" in key([CARD], root, "6.12.0")


def test_without_a_disk_they_are_kept_in_memory_for_one_account(root: Path) -> None:
    said = heard(root)
    home = root / "var/lib/kernels"
    assert home.resolve() == root / "var/lib/kernels.memory" / key([CARD], root)
    assert any("in memory" in line for line in said)
    for name in ("A_CACHE_DIR", "B_CACHE_DIR"):
        found = (home / name).stat()
        assert pwd.getpwuid(found.st_uid).pw_name == ACCOUNT
        assert stat.S_IMODE(found.st_mode) == 0o700
    assert home.stat().st_uid == 0
    assert stat.S_IMODE(home.stat().st_mode) == 0o755


def test_on_a_disk_they_are_there_at_the_next_boot_for_the_same_key_only(
    root: Path, disk: Path
) -> None:
    heard(root)
    compiled(root)
    (root / "var/lib/kernels").unlink()  # a root that is thrown away
    heard(root)
    assert (root / "var/lib/kernels/A_CACHE_DIR/0123.cache").read_bytes() == b"kernel"
    (root / "run/orchestrate/image-id").write_text("c" * 64)
    heard(root)
    assert list((root / "var/lib/kernels/A_CACHE_DIR").iterdir()) == []
    (root / "run/orchestrate/image-id").write_text(IMAGE)
    heard(root)
    assert (root / "var/lib/kernels/A_CACHE_DIR/0123.cache").exists()


def test_old_keys_go_when_room_is_wanted_the_longest_unused_first(root: Path, disk: Path) -> None:
    for number, name in enumerate(["old", "older"]):
        (disk / "kernels" / name).mkdir(parents=True)
        (disk / "kernels" / name / "file").write_bytes(bytes(8 << 20))
        os.utime(disk / "kernels" / name, (1000 - number, 1000 - number))
    assert heard(root)[:1] == [f"compiled kernels are kept in {disk}/kernels/{key([CARD], root)}"]
    assert any("room: older" in line for line in heard(root, max_bytes=288 << 20))
    assert {path.name for path in (disk / "kernels").iterdir()} == {"old", key([CARD], root)}


def test_a_disk_that_is_full_or_read_only_is_not_used(root: Path, disk: Path) -> None:
    (disk / "layers").write_bytes(bytes(100 << 20))
    assert any("MiB free" in line for line in heard(root))
    assert (root / "var/lib/kernels").resolve().is_relative_to(root / "var/lib/kernels.memory")
    (disk / "layers").unlink()
    run(["mount", "-o", "remount,ro", disk])
    heard(root)
    assert (root / "var/lib/kernels").resolve().is_relative_to(root / "var/lib/kernels.memory")


def test_directories_of_another_account_or_link_are_made_anew(root: Path) -> None:
    heard(root)
    home = (root / "var/lib/kernels").resolve()
    (root / "elsewhere").mkdir()
    shutil.rmtree(home / "A_CACHE_DIR")
    (home / "A_CACHE_DIR").symlink_to(root / "elsewhere")
    os.chown(home / "B_CACHE_DIR", 1, 1)
    (home / "B_CACHE_DIR/foreign").touch()
    heard(root)
    assert not (home / "A_CACHE_DIR").is_symlink()
    assert (root / "elsewhere").stat().st_uid == 0
    assert list((home / "B_CACHE_DIR").iterdir()) == []


@pytest.fixture
def archive(root: Path) -> dict[str, Any]:
    """One that this node could have packed, in a directory that is served."""
    heard(root)
    compiled(root, content=os.urandom(5000))
    (root / "served").mkdir()
    want = wanted(root) | {"link": str(root / "var/lib/kernels")}
    packer = Path(kernel_cache.__file__).with_name("kernel_archive.py")
    argv = [sys.executable, "-I", str(packer), "pack", json.dumps(want)]
    data = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout
    (root / "served/archive").write_bytes(data)
    shutil.rmtree(root / "var/lib")
    digest = sha256(root / "served/archive")
    return {"key": key([CARD], root), "sha256": digest, "size": len(data)}


@pytest.fixture
def url(root: Path, archive: dict[str, Any]) -> Iterator[str]:
    with serving(partial(Files, directory=str(root / "served"))) as base:
        yield f"{base}/archive"


def test_new_ones_are_filled_from_the_clusters_archive(
    root: Path, archive: dict[str, Any], url: str
) -> None:
    said = heard(root, warm=[{**archive, "url": url}])
    assert any(f"{archive['sha256'][:12]}: 1 files" in line for line in said)
    file = root / "var/lib/kernels/A_CACHE_DIR/0123.cache"
    assert file.stat().st_size == 5000
    assert pwd.getpwuid(file.stat().st_uid).pw_name == ACCOUNT
    compiled(root, "0123.cache", b"compiled here")
    heard(root, warm=[{**archive, "url": url}])
    assert file.read_bytes() == b"compiled here", "what is there was not replaced"
    assert not list((root / "var/lib/kernels.memory").glob(".new-*"))


def test_an_archive_of_another_driver_is_not_used_and_both_keys_are_named(
    root: Path, archive: dict[str, Any], url: str
) -> None:
    other = archive["key"].replace("_i915_", "_xe_")
    said = heard(root, warm=[{**archive, "key": other, "url": url}])
    assert any(other in line and archive["key"] in line for line in said)
    assert list((root / "var/lib/kernels/A_CACHE_DIR").iterdir()) == []


def test_an_archive_that_is_called_by_another_key_than_its_own_is_refused(
    root: Path, archive: dict[str, Any], url: str
) -> None:
    (root / "run/orchestrate/image-id").write_text("c" * 64)
    mine = key([CARD], root)
    with pytest.raises(Unusable, match=f"is for {archive['key']}, this node is {mine}"):
        heard(root, warm=[{**archive, "key": mine, "url": url}])
    assert list((root / "var/lib/kernels.memory").iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sha256": "0" * 64}, "has sha256"),
        ({"size": 1}, "has sha256"),
        ({"size": 1 << 30}, "has sha256"),
        ({"url": "http://127.0.0.1:9/x"}, "cannot be fetched"),
    ],
)
def test_what_is_not_what_the_cluster_says_is_refused(
    root: Path, archive: dict[str, Any], url: str, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(Unusable, match=words):
        heard(root, warm=[{**archive, "url": url, **wrong}])
    assert list((root / "var/lib/kernels.memory").iterdir()) == []
    heard(root)  # without it, the node goes on


def test_the_unit_runs_it_with_the_nodes_own_python(
    root: Path, archive: dict[str, Any], url: str
) -> None:
    """As the unit does: two files in /etc/orchestrate, and what they are told."""
    etc = root / "etc"
    etc.mkdir()
    for module in (kernel_cache, kernel_archive):
        (etc / Path(str(module.__file__)).name).write_text(kernels.source(module))
    # This machine's own key, since its root is /.
    mine = key([], Path("/"))
    (etc / "pack" / mine / "A_CACHE_DIR").mkdir(parents=True)
    (etc / "pack" / mine / "A_CACHE_DIR/x.so").write_bytes(b"library")
    (etc / "link").symlink_to(etc / "pack" / mine)
    with (root / "served/archive").open("wb") as out:
        kernel_archive.pack(wanted(root, link=str(etc / "link")), out)
    warm_cache = {"key": mine, "sha256": sha256(root / "served/archive"),
                  "size": (root / "served/archive").stat().st_size, "url": url}  # fmt: skip
    places = {name: str(root / name) for name in ("disk", "memory", "link")}

    def run_unit(**others: Any) -> subprocess.CompletedProcess[str]:
        want = wanted(root, cards=[], **places, **others)
        (etc / "kernels.json").write_text(json.dumps(want))
        argv = [PYTHON, "-I", str(etc / "kernel_cache.py"), str(etc / "kernels.json")]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    refused = run_unit(warm=[warm_cache | {"sha256": "0" * 64}])
    assert refused.returncode == 1
    assert refused.stderr.startswith("the warm cache has sha256")
    assert refused.stderr.count("\n") == 1
    done = run_unit(warm=[warm_cache])
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 files" in done.stdout
    assert (root / "link/A_CACHE_DIR/x.so").read_bytes() == b"library"
    assert run_unit().returncode == 0
    assert (root / "link/A_CACHE_DIR/x.so").exists()


CACHES = """
  compile_cache:
    max_size: 1MiB
    directories:
      - { variable: A_CACHE_DIR, what: "one" }
      - { variable: B_CACHE_DIR, what: "another", env: { B_CACHE: "1" } }
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    text = PROFILE.replace("service: compute", f"service: {ACCOUNT}")
    text = text.replace("name: compute, uid", f"name: {ACCOUNT}, uid")
    text = text.replace("  args: {dtype: half}\n", "  args: {dtype: half}" + CACHES)
    return load(make_checkout(tmp_path, text))


Clusters = Callable[[str], Cluster]


@pytest.fixture
def cluster(
    profile: Profile, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Clusters]:
    """A cluster whose nodes are this machine, with their caches below ``root``."""
    trust: Trust = open_trust(profile.name)
    link = str(root / "var/lib/kernels")
    monkeypatch.setattr(kernels, "KERNELS", link)
    monkeypatch.setattr(warm, "KERNELS", link)
    identity = trust.host_identity([node.name for node in profile.nodes])

    class Here(Cluster):
        image_id = IMAGE

        def remote(self, node: Any) -> Remote:
            return Remote(node.name, "127.0.0.1", self.trust, port=port)

    driver: Any = SimpleNamespace(running=lambda node: True, network=nullcontext)
    nothing: Any = None
    with sshd(tmp_path / "sshd", identity, trust.user_ca_public) as port:

        def made(image: str = IMAGE) -> Cluster:
            Here.image_id = image
            return Here(profile, tmp_path, nothing, nothing, nothing, trust, driver)

        yield made
        for node in profile.nodes:
            made().remote(node).close()


def test_a_nodes_kernels_are_taken_over_ssh_and_kept_by_their_hash(
    cluster: Clusters, profile: Profile, root: Path
) -> None:
    heard(root)
    compiled(root)
    here = cluster(IMAGE)
    taken = warm.warm(here, profile.server)
    assert taken.changed
    assert taken.cache.key == key([CARD], root)
    assert taken.cache.files == 1
    assert taken.fits == tuple(node.name for node in profile.compute_nodes)
    (kept,) = kernels.shelf(profile.name).iterdir()
    assert kept.name == f"{sha256(kept)}.tar" == taken.cache.file
    assert kernels.stored(profile.name) == (taken.cache,)
    again = warm.warm(here, profile.server)
    assert (again.changed, again.cache) == (False, taken.cache)
    compiled(root, "4567.cache")
    more = warm.warm(here, profile.server)
    assert more.changed
    assert [path.name for path in kernels.shelf(profile.name).iterdir()] == [more.cache.file]
    assert kernels.forget(profile.name, [IMAGE]) == []
    assert kernels.forget(profile.name, ["c" * 64]) == [more.cache]
    assert list(kernels.shelf(profile.name).iterdir()) == []
    assert kernels.stored(profile.name) == ()


def test_nothing_of_another_image_of_none_or_too_much_is_taken(
    cluster: Clusters, profile: Profile, root: Path
) -> None:
    with pytest.raises(UserError, match="keeps no caches"):
        warm.warm(cluster(IMAGE), profile.server)
    heard(root)
    with pytest.raises(UserError, match="compiled nothing yet"):
        warm.warm(cluster(IMAGE), profile.server)
    compiled(root)
    mine = key([CARD], root)
    other = mine.replace("a" * 16, "d" * 16)
    with pytest.raises(UserError, match=f"its key is {mine}.*have {other}"):
        warm.warm(cluster("d" * 64), profile.server)
    compiled(root, "large", bytes(2 << 20))
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        warm.warm(cluster(IMAGE), profile.server)
    assert list(kernels.shelf(profile.name).iterdir()) == []
    assert kernels.stored(profile.name) == ()


def test_what_a_node_sends_instead_of_an_archive_is_refused_and_not_kept(
    cluster: Clusters, profile: Profile, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is not what it should be runs what it likes."""
    heard(root)
    hostile = {
        "import sys, tarfile; t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|');"
        "e = tarfile.TarInfo('A_CACHE_DIR/x'); e.type = tarfile.SYMTYPE; "
        "e.linkname = '/etc/shadow';"
        "t.addfile(e); t.close()": "were refused",
        "import os\nwhile True: os.write(1, bytes(1 << 20))": "more than .* bytes came",
        "raise SystemExit(3)": "exit code",
    }
    for program, words in hostile.items():
        monkeypatch.setattr(kernels, "source", lambda module, text=program: text)
        with pytest.raises(UserError, match=words):
            warm.warm(cluster(IMAGE), profile.server)
        assert list(kernels.shelf(profile.name).iterdir()) == []
