"""A model from somebody hostile: a directory with links, a hub that sends nonsense or no end."""

from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.hub import REPOSITORY, REVISION, Hub, serving
from support.profiles import PROFILE, make_checkout

from orchestrator.cli import main
from orchestrator.core import download
from orchestrator.core.errors import UserError
from orchestrator.core.foreign import ForeignDirectory
from orchestrator.models import hub, hub_listing, publish

SECRET = b"the operator's private key"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "secret").write_bytes(SECRET)
    return hub.directory(REPOSITORY, REVISION)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A directory with a model, as somebody hands it over."""
    root = tmp_path / "given"
    (root / "more").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / WEIGHTS).write_bytes(os.urandom(1000))
    return root


#: Ways for a name in the directory to lead to the secret beside it.
Trick = Callable[[Path, Path], None]


def absolute(name: Path, secret: Path) -> None:
    name.symlink_to(secret)


def relative(name: Path, secret: Path) -> None:
    name.symlink_to("../secret")


def by_a_chain(name: Path, secret: Path) -> None:
    (name.parent / "more/second").symlink_to("../../secret")
    name.symlink_to("more/second")


def by_a_directory(name: Path, secret: Path) -> None:
    (name.parent / "up").symlink_to("..")
    name.symlink_to("up/secret")


def by_a_detour(name: Path, secret: Path) -> None:
    name.symlink_to("more/../../given/../secret")


def by_proc(name: Path, secret: Path) -> None:
    name.symlink_to(f"/proc/self/root{secret}")


TRICKS = [absolute, relative, by_a_chain, by_a_directory, by_a_detour, by_proc]


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", WEIGHTS, "config.json"])
@pytest.mark.parametrize("trick", TRICKS)
def test_a_link_out_of_the_directory_is_not_followed(
    trick: Trick, name: str, given: Path, home: Path, tmp_path: Path
) -> None:
    (given / name).unlink(missing_ok=True)
    trick(given / name, tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of the directory"):
        hub.take(REPOSITORY, REVISION, given)
    assert not home.exists() or SECRET not in [path.read_bytes() for path in home.rglob("*")]


@pytest.mark.parametrize("trick", TRICKS)
def test_nor_is_it_by_what_hands_models_out(trick: Trick, given: Path, tmp_path: Path) -> None:
    """A directory that somebody put into the state directory by hand."""
    trick(given / "vocab.txt", tmp_path / "secret")
    with pytest.raises(UserError, match="leads out of the directory"):
        publish.publish(given, "small", "big")
    served = (tmp_path / "state/clusters").rglob("*")
    assert SECRET not in [path.read_bytes() for path in served if path.is_file()]


def test_a_snapshot_alone_does_not_reach_what_lies_beside_it(tmp_path: Path) -> None:
    """The hub's cache has links to its blobs: the whole of it has to be given."""
    snapshot = tmp_path / "models--owner--big/snapshots" / REVISION
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--owner--big/blobs"
    blobs.mkdir()
    for name in ("config.json", WEIGHTS):
        (blobs / name).write_text("{}")
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    with pytest.raises(UserError, match=r"leads out[^\n]*\n.*name that one"):
        hub.take(REPOSITORY, REVISION, snapshot)
    assert hub.take(REPOSITORY, REVISION, blobs.parent).files == 2


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it has no end


@pytest.mark.parametrize("made", [fifo, bound_socket, device])
def test_what_is_no_file_is_not_opened(made: Callable[[Path], None], given: Path) -> None:
    made(given / "vocab.txt")
    for act in (
        lambda: hub.take(REPOSITORY, REVISION, given),
        lambda: publish.publish(given, "small", "big"),
    ):
        with pytest.raises(UserError, match="is neither a file nor a directory"):
            act()


def test_links_in_a_circle_end(given: Path) -> None:
    (given / "vocab.txt").symlink_to("vocab.txt")
    with pytest.raises(UserError, match="too many links"):
        hub.take(REPOSITORY, REVISION, given)


def test_what_takes_a_files_place_after_it_was_found_is_not_read(
    given: Path, tmp_path: Path
) -> None:
    """Between the look and the use, a file becomes a link: what was opened is what is read."""
    directory = ForeignDirectory(given)
    with directory.open("config.json") as file:
        (given / "config.json").unlink()
        (given / "config.json").symlink_to(tmp_path / "secret")
        assert file.read() == b"{}"
    with pytest.raises(UserError, match="leads out"):
        directory.open("config.json")


def test_a_manifest_names_nothing_outside(given: Path, home: Path, tmp_path: Path) -> None:
    entry = {"size": len(SECRET), "sha256": "0" * 64}
    manifest = {
        "revision": REVISION,
        "files": {"../secret": entry, str(tmp_path / "secret"): entry},
    }
    (given / hub_listing.MANIFEST).write_text(json.dumps(manifest))
    hub.take(REPOSITORY, REVISION, given)
    assert set(hub.manifest(home)) == {"config.json", WEIGHTS}


class Endless(http.server.BaseHTTPRequestHandler):
    """Each answer goes on until somebody hangs up; it says a size where it is ``told``."""

    told: int | None = None
    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        if self.told is not None:
            self.send_header("Content-Length", str(self.told))
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"[" * (1 << 16))
                type(self).sent += 1 << 16
        except OSError:
            return

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endless() -> Iterator[str]:
    Endless.sent, Endless.told = 0, None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("told", [None, 300 << 20])
def test_a_download_stops_at_the_first_byte_too_many(
    told: int | None, endless: str, tmp_path: Path
) -> None:
    Endless.told = told
    gained: list[int] = []
    with download.client() as web:
        loader = download.Downloader(web, gained.append, pauses=())
        with pytest.raises(download.TooLong, match="sends more bytes"):
            loader.fetch(f"{endless}/file", tmp_path / "file", 1000, "0" * 64)
    assert sum(gained) == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("file")]
    assert Endless.sent < 32 << 20  # what buffers on the way hold


@pytest.mark.parametrize("known", [False, True])
def test_where_nobody_knows_the_size_it_stops_too(
    known: bool, endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MOST", 1 << 20)
    with download.client() as web, pytest.raises(download.TooLong):
        if known:
            download.Downloader(web).fetch(f"{endless}/file", tmp_path / "file", None, "0" * 64)
        else:
            download.plain(web, f"{endless}/file", tmp_path / "file")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("file")]


def test_a_hub_that_does_not_stop_talking_is_left(
    endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_listing, "LISTING", 1 << 20)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endless)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        hub_listing.listed(REPOSITORY, REVISION)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "siblings",
    [
        [{"size": 1}], [{"rfilename": None}], [{"rfilename": "a\0.json"}], [1], {"a": 1},
        [{"rfilename": "a.json", "size": "many"}], [{"rfilename": "a.json", "size": -1}],
        [{"rfilename": "a.json", "lfs": 1}], [{"rfilename": "\x1b[2J.json", "size": 1}], DEEP,
    ],
)  # fmt: skip
def test_a_listing_that_is_nonsense_is_an_error_in_words(
    siblings: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nonsense(Hub):
        def listing(self, revision: str) -> dict[str, object]:
            return {"id": REPOSITORY, "sha": revision, "siblings": siblings}

    with serving(Nonsense({})) as web:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.url)
        if siblings is DEEP:
            monkeypatch.setattr("json.dumps", lambda *_: DEEP)
        with pytest.raises(UserError, match="hub"):
            hub_listing.listed(REPOSITORY, REVISION)


def test_a_config_that_is_too_deep_is_an_error_in_words(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    models = f"models:\n  big: {{repository: {REPOSITORY}, revision: {REVISION!r}}}\nserving:"
    text = PROFILE.replace("model: tiny", "model: big").replace("serving:", models)
    make_checkout(tmp_path, text)
    home.mkdir(parents=True)
    (home / "config.json").write_text(DEEP)
    with pytest.raises(SystemExit) as ended:
        main(["profile", "check", "small"])
    assert ended.value.code == 2
    assert "config.json" in (said := capsys.readouterr().err) and "nested" in said, said
