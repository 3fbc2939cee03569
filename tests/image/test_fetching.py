"""Fetching with a real web server, a real Nix store of its own, and what can go wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support import PROJECT
from support.box import Box, Hold, Site

from orchestrator.core.waiting import as_long_as
from orchestrator.image import seed
from orchestrator.image.lockfile import Deb, Lock, LockedSeed, text
from orchestrator.image.spec import Spec

pytestmark = pytest.mark.nix

DEBIAN = {"suite": "stable", "components": ["main"], "packages": ["alpha"]}
PROGRAM = b"the first program"


def package(content: bytes) -> bytes:
    """A Debian package that holds bin/busybox with ``content``."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        info = tarfile.TarInfo("./bin/busybox")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "data.tar.xz": data.getvalue()}
    out = b"!<arch>\n"
    for name, body in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body
        out += b"\n" * (len(body) % 2)
    return out


def lock_by_hand(box: Box, site: Site, name: str, files: dict[str, bytes]) -> None:
    """An image whose lock names ``files``, which ``site`` serves as a Debian mirror."""
    has_seed = "busybox.deb" in files
    sections = {"seed": {"package": "busybox", "file": "bin/busybox"}} if has_seed else {}
    box.write(name, debian=DEBIAN, **sections)
    image = Spec.model_validate(
        {"description": "", "date": "2026-01-01T00:00:00Z", "debian": DEBIAN, **sections}
    )
    debs = []
    for file, content in files.items():
        (site.root / file).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        debs.append(
            Deb(
                name=file.removesuffix(".deb"),
                version="1",
                architecture="all",
                path=file,
                size=len(content),
                sha256=digest,
                store=file,
            )
        )
    lock = Lock(
        inputs=image.digest(),
        epoch=image.epoch,
        python=None,
        system={},
        seed=LockedSeed(deb="busybox", file="bin/busybox", sha256=seed.nar_hash(PROGRAM))
        if has_seed
        else None,
        debs=tuple(debs),
        wheels=(),
    )
    box.lock(name).write_text(text(lock))


@pytest.fixture
def image(box: Box, site: Site) -> Box:
    """The images 'tools' (with a seed), 'loaders' (nothing in it) and 'demo', locked."""
    box.env["ORCHESTRATE_DEBIAN_MIRROR"] = site.url
    lock_by_hand(box, site, "tools", {"busybox.deb": package(PROGRAM)})
    lock_by_hand(box, site, "loaders", {})
    lock_by_hand(box, site, "demo", {"alpha.deb": os.urandom(300_000), "beta.deb": b"beta"})
    return box


def test_all_is_fetched_once_and_kept_from_collection(image: Box, site: Site) -> None:
    first = image.json("fetch", "demo")
    assert first["files"] == 3
    assert image.stored() == ["alpha.deb", "beta.deb", "busybox.deb", "seed"]
    asked = len(site.gets)
    second = image.run("fetch", "demo")
    assert "nothing to do" in second.stdout
    assert len(site.gets) == asked
    subprocess.run(["nix-store", "--gc"], env=image.env, check=True, capture_output=True)
    assert image.stored() == ["alpha.deb", "beta.deb", "busybox.deb", "seed"]
    assert not list((image.root / "cache/downloads").iterdir())


def test_the_seed_is_one_executable_file(image: Box) -> None:
    image.json("fetch", "demo")
    (directory,) = (image.root / "nix/store").glob("*-seed")
    (program,) = directory.iterdir()
    assert program.read_bytes() == PROGRAM
    assert os.access(program, os.X_OK)


def test_a_cut_off_download_goes_on_where_it_stopped(image: Box, site: Site) -> None:
    site.truncate["alpha.deb"] = 100_000
    image.json("fetch", "demo")
    assert site.ranges == ["bytes=100000-"]
    assert "alpha.deb" in image.stored()


def test_the_next_run_goes_on_where_the_last_one_was_killed(image: Box, site: Site) -> None:
    downloads = image.root / "cache/downloads"
    downloads.mkdir(parents=True)
    (downloads / "alpha.deb.part").write_bytes((site.root / "alpha.deb").read_bytes()[:7])
    image.json("fetch", "demo")
    assert site.ranges == ["bytes=7-"]


def test_wrong_bytes_are_refused_and_everything_else_is_kept(image: Box, site: Site) -> None:
    content = (site.root / "alpha.deb").read_bytes()
    (site.root / "alpha.deb").write_bytes(bytes(len(content)))
    failed = image.run("fetch", "demo")
    assert failed.returncode == 1
    for part in ("alpha.deb", "expected", hashlib.sha256(content).hexdigest(), site.url):
        assert part in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list((image.root / "cache/downloads").glob("alpha.deb*"))
    subprocess.run(["nix-store", "--gc"], env=image.env, check=True, capture_output=True)
    assert image.stored() == ["beta.deb", "busybox.deb"]
    (site.root / "alpha.deb").write_bytes(content)
    assert image.json("fetch", "demo")["files"] == 1


def test_a_file_that_the_mirror_lacks_is_named(image: Box, site: Site) -> None:
    (site.root / "beta.deb").unlink()
    failed = image.run("fetch", "demo")
    assert failed.returncode == 1
    assert f"{site.url}/beta.deb: HTTP 404" in failed.stderr
    assert "--from" in failed.stderr


def test_what_no_mirror_has_can_be_left_out(image: Box, site: Site) -> None:
    lock = json.loads(image.lock("demo").read_text())
    url = f"{site.url}/nowhere/beta.deb"
    lock["debs"][1] |= {"elsewhere": True, "size": None, "url": url}
    image.lock("demo").write_text(json.dumps(lock))
    failed = image.run("fetch", "demo")
    assert failed.returncode == 1
    assert url in failed.stderr
    fetched = image.run("fetch", "demo", "--available")
    assert fetched.returncode == 0, fetched.stderr
    assert "all 3 available inputs" in image.run("fetch", "demo", "--available").stdout
    assert "alpha.deb" in image.stored() and "beta.deb" not in image.stored()


def test_a_directory_is_enough(image: Box, site: Site, tmp_path: Path) -> None:
    brought = tmp_path / "brought"
    site.root.rename(brought)
    image.json("fetch", "demo", "--from", brought)
    assert "alpha.deb" in image.stored()
    assert site.gets == []


def test_keep_makes_a_directory_for_another_machine(image: Box) -> None:
    image.json("fetch", "demo", "--keep")
    kept = {path.name for path in (image.root / "cache/downloads").iterdir()}
    assert kept == {"alpha.deb", "beta.deb", "busybox.deb"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("full", ["cache", "nix/store"])
def test_a_full_disk_is_said_before_anything_is_fetched(image: Box, site: Site, full: str) -> None:
    disk = image.root / full
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        failed = image.run("fetch", "demo")
        assert failed.returncode == 1
        assert "not enough space" in failed.stderr
        assert site.gets == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half(image: Box, site: Site) -> None:
    lock_by_hand(image, site, "demo", {"alpha.deb": os.urandom(3 << 20)})
    image.json("ls")  # Nix makes its database, which is larger than the limit
    argv = ["prlimit", f"--fsize={2 << 20}", sys.executable, "-m", "orchestrator", "image", "fetch"]
    failed = subprocess.run(
        [*argv, "demo"], env=image.env, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "no space left while writing" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "alpha.deb" not in image.stored()
    assert image.json("fetch", "demo")["files"] >= 1
    assert site.ranges == [f"bytes={2 << 20}-"]


def test_ctrl_c_leaves_only_what_can_be_resumed(image: Box, site: Site) -> None:
    content = (site.root / "alpha.deb").read_bytes()
    hold = site.holds["alpha.deb"] = Hold()
    argv = [sys.executable, "-m", "orchestrator", "image", "fetch", "demo"]
    process = subprocess.Popen(argv, env=image.env, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    try:  # the rest is held back until the end: on a busy machine it could come before the signal
        assert hold.reached.wait(60)
        downloads = image.root / "cache/downloads"
        while not any(file.stat().st_size for file in downloads.glob("alpha.deb*")):
            time.sleep(0.01)  # at most as long as the server holds the reply: 60 s
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        hold.released.set()
        process.kill()
    assert process.returncode != 0
    assert "Traceback" not in said
    (left,) = downloads.glob("alpha.deb*")  # it came half-way
    assert 0 < left.stat().st_size < len(content) and content.startswith(left.read_bytes())
    assert site.gets.count("alpha.deb") == 1
    assert image.json("fetch", "demo")["files"] >= 1
    assert "alpha.deb" in image.stored()


def test_two_at_once_fetch_each_file_once(image: Box, site: Site) -> None:
    """The second one waits: else they write and remove the same files under each other."""
    hold = site.holds["alpha.deb"] = Hold()
    argv = [sys.executable, "-m", "orchestrator", "image", "fetch", "demo", "--json"]
    first, second = (
        subprocess.Popen(
            argv, env=image.env, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )  # fmt: skip
    try:
        assert hold.reached.wait(60)
        waiting = as_long_as(lambda: not _waits(first.pid, second.pid), 60, 0.05)
        assert not waiting, "neither waits for the other's lock"
        hold.released.set()
        said = [each.communicate(timeout=60) for each in (first, second)]
    finally:
        hold.released.set()
        first.kill()
        second.kill()
    assert [each.returncode for each in (first, second)] == [0, 0], said
    assert sorted(json.loads(told)["files"] for told, _ in said)[0] == 0
    text = "waiting for another command that fetches files of images"
    assert sum(text in told for _, told in said) == 1
    assert site.gets.count("alpha.deb") == 1


def _waits(*pids: int) -> bool:
    """Whether one of them waits for a lock."""
    waiting = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(words[1] == "->" and int(words[5]) in pids for words in waiting)


def test_a_stale_lock_is_refused(image: Box, site: Site) -> None:
    image.write("demo", debian=DEBIAN | {"packages": ["alpha", "gamma"]})
    failed = image.run("fetch", "demo")
    assert "image.yml changed since its lock" in failed.stderr
    assert "orchestrate image lock demo" in failed.stderr
    assert site.gets == []
    assert [row["lock"] for row in image.json("ls", "demo")] == ["stale"]


def test_ls_and_gc_tell_what_is_there(image: Box) -> None:
    (before,) = image.json("ls", "demo")
    assert before["missing"] == ["alpha.deb", "beta.deb"]
    assert before["missing_size"] == 300_004
    image.json("fetch", "demo")
    (after,) = image.json("ls", "demo")
    assert after["missing"] == []
    assert image.json("gc", "demo")["collectable"] == 300_004
    subprocess.run(["nix-store", "--gc"], env=image.env, check=True, capture_output=True)
    assert image.stored() == ["busybox.deb", "seed"]


def test_without_nix_the_message_says_how_to_get_it(image: Box) -> None:
    failed = image.run("fetch", "demo", PATH="")
    assert failed.returncode == 1
    assert "Nix is not installed" in failed.stderr
    assert "apt-get install nix-bin" in failed.stderr
    failed = image.run("build", "demo", PATH="")
    assert "Nix is not installed" in failed.stderr


def test_a_lock_from_elsewhere_is_refused(image: Box) -> None:
    image.lock("demo").write_text(json.dumps({"schema": 99}))
    failed = image.run("fetch", "demo")
    assert "not a lock of this version" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_exported_files_outlive_the_mirrors_and_are_read_back(image: Box, site: Site) -> None:
    """All that the mirror has is gone, and the store is another one: as on a new machine."""
    image.json("fetch", "demo")
    kept = image.root / "kept"
    first = image.json("export", "demo", kept)
    assert (first["files"], first["present"]) == (3, 0)
    for file in kept.iterdir():
        digest, _, name = file.name.partition("-")
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
        assert file.read_bytes() == (site.root / name).read_bytes()
    shutil.rmtree(site.root)
    anew = {"NIX_STORE_DIR": str(image.root / "nix/other"), "NIX_STATE_DIR": f"{image.root}/nix/v2"}
    assert image.run("fetch", "demo", **anew).returncode == 1
    done = image.json("fetch", "demo", "--from", kept, **anew)
    assert done["files"] == 3
    assert "nothing to do" in image.run("fetch", "demo", "--from", kept, **anew).stdout


def test_a_directory_keeps_the_files_of_older_locks_beside_the_new_ones(
    image: Box, site: Site
) -> None:
    kept = image.root / "kept"
    image.json("fetch", "demo")
    image.json("export", "demo", kept)
    lock_by_hand(image, site, "demo", {"alpha.deb": b"alpha 2", "beta.deb": b"beta"})
    image.json("fetch", "demo")
    again = image.json("export", "demo", kept)
    assert (again["files"], again["present"]) == (1, 2)
    assert len([file for file in kept.iterdir() if file.name.endswith("-alpha.deb")]) == 2
    assert "0 files written" in image.run("export", "demo", kept).stdout


def test_a_damaged_copy_is_refused_when_read_and_replaced_when_exported(
    image: Box, site: Site
) -> None:
    kept = image.root / "kept"
    image.json("fetch", "demo")
    image.json("export", "demo", kept)
    (beta,) = kept.glob("*-beta.deb")
    beta.write_bytes(b"rot!")
    anew = {"NIX_STORE_DIR": str(image.root / "nix/other"), "NIX_STATE_DIR": f"{image.root}/nix/v2"}
    failed = image.run("fetch", "demo", "--from", kept, **anew)
    assert failed.returncode == 1
    assert "beta.deb: wrong content" in failed.stderr
    assert image.json("export", "demo", kept)["files"] == 1
    assert beta.read_bytes() == b"beta"


def test_what_the_store_lacks_cannot_be_exported_and_is_named(image: Box) -> None:
    failed = image.run("export", "demo", image.root / "kept")
    assert failed.returncode == 1
    assert "3 of 3 files are not in the Nix store" in failed.stderr
    assert "beta.deb" in failed.stderr
    assert "orchestrate image fetch demo" in failed.stderr
    assert not (image.root / "kept").exists()


def test_what_no_mirror_has_can_be_left_out_of_an_export(image: Box, site: Site) -> None:
    lock = json.loads(image.lock("demo").read_text())
    lock["debs"][1] |= {"elsewhere": True, "size": None, "url": f"{site.url}/nowhere/beta.deb"}
    image.lock("demo").write_text(json.dumps(lock))
    image.json("fetch", "demo", "--available")
    kept = image.root / "kept"
    assert image.run("export", "demo", kept).returncode == 1
    assert image.json("export", "demo", kept, "--available")["files"] == 2
