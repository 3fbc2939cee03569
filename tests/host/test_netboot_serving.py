"""What the control node's web server gives, and what not: a real nginx in a network of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest
from support.golden import GOLDEN, states
from support.web import NFT, NGINX, SPACE, Web, start, stop, text, until_it_listens

from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.provision.machines import netns

ID = "a" * 64

needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: nginx-light)")


class BootService(BaseHTTPRequestHandler):
    """Stands where the boot service does: says who asked, and for what."""

    def do_GET(self) -> None:
        said = f"{self.headers['X-Real-IP']} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Nothing: a unix socket's other end has no address to print."""


@pytest.fixture
def space(tmp_path: Path) -> Iterator[None]:
    netns.delete(SPACE)
    netns.create(SPACE)
    try:
        yield
    finally:
        netns.delete(SPACE)


@pytest.fixture
def web(tmp_path: Path, space: None) -> Iterator[Web]:
    """The control node's, with an image, loaders, a model, the document, and something private."""
    profile = load(GOLDEN / "sim/profile.yml")
    contents = {
        f"files/images/{ID}/base.squashfs": "0123456789",
        "files/.netboot-1/loaders/ipxe.efi": "loader",
        "files/.netboot-1/boot.json": "{}",
        "files/models/tiny/config.json": "model",
        "files/kernels/0123.tar": "kernels",
        "private": "private",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "files/netboot").symlink_to(".netboot-1")
    service = ThreadingUnixStreamServer(str(tmp_path / "socket"), BootService)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    servers = start(profile, states(profile)[profile.control.name], tmp_path)
    web = Web(profile.boot_server, tmp_path)
    try:
        until_it_listens(web)
        yield web
    finally:
        stop(servers)
        service.shutdown()
        service.server_close()


@needs_nginx
def test_what_is_served(web: Web) -> None:
    layer = f"/images/{ID}/base.squashfs"
    assert web.get(layer) == (200, b"0123456789")
    assert web.get(layer, Range="bytes=4-") == (206, b"456789")
    assert web.get("/loaders/ipxe.efi") == (200, b"loader")
    assert web.get("/models/tiny/config.json") == (200, b"model")
    assert web.get("/kernels/0123.tar") == (200, b"kernels")
    status, said = web.get("/boot/ipxe?mac=02:00:0a:4d:00:10", **{"X-Real-IP": "6.6.6.6"})
    assert (status, said) == (200, b"10.77.0.1 /boot/ipxe?mac=02:00:0a:4d:00:10")


@needs_nginx
def test_nothing_else_is(web: Web) -> None:
    for path in (
        "/", "/images", "/images/", f"/images/{ID}", f"/images/{ID}/", "/loaders", "/loaders/",
        "/models/", "/netboot/boot.json", "/.netboot-1/boot.json", "/loaders/../boot.json",
        "/loaders../boot.json", "/loaders/%2e%2e/boot.json", "/loaders/..%2fboot.json",
        "/images/../../private", "/images/..%2f..%2fprivate", "/images/%2e%2e/%2e%2e/private",
        "/models../private", "/kernels/", "/kernels../private",
        "/private", "/boot.json", "//netboot/boot.json",
    ):  # fmt: skip
        status, said = web.get(path)
        assert status in (301, 400, 403, 404), (path, said)
        assert not any(word in said for word in (b"private", b"ipxe.efi", ID.encode())), path


@needs_nginx
def test_what_machines_fetch_is_written_down_without_secrets(web: Web) -> None:
    web.get(f"/images/{ID}/base.squashfs", Range="bytes=4-")
    web.get("/boot/ipxe?mac=02:00:0a:4d:00:10&boot=SECRET")
    web.get("/models/tiny/config.json")
    deadline = time.monotonic() + 5
    while len(web.log()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    layer, script = web.log()
    assert layer["uri"] == f"/images/{ID}/base.squashfs"
    assert (layer["status"], layer["bytes"], layer["range"]) == (206, 6, "bytes=4-")
    assert layer["address"] == "10.77.0.1"
    assert abs(float(str(layer["time"])) - time.time()) < 60
    assert script["uri"] == "/boot/ipxe"
    assert "SECRET" not in (web.root / "boot-access.jsonl").read_text()


@needs_nginx
def test_a_node_gives_its_layers_to_its_peers(tmp_path: Path, space: None) -> None:
    profile = load(GOLDEN / "proxy/profile.yml")
    node = profile.compute_nodes[0]
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers/base.squashfs").write_text("layer")
    (tmp_path / "private").write_text("private")
    servers = start(profile, states(profile)[node.name], tmp_path)
    web = Web(f"{profile.boot_link(node).address}:{profile.boot.http_port}", tmp_path)
    try:
        until_it_listens(web)
        assert web.get(f"/images/{ID}/base.squashfs") == (200, b"layer")
        for path in (
            "/", "/images/", f"/images/{ID}/", f"/images/{ID}/../private",
            f"/images/{ID}/..%2fprivate", "/images/x/base.squashfs", "/private",
        ):  # fmt: skip
            assert web.get(path)[0] in (403, 404), path
        with pytest.raises(OSError), netns.entered(SPACE):  # on its boot address only
            socket.create_connection(("127.0.0.1", profile.boot.http_port), timeout=2)
    finally:
        stop(servers)


@pytest.mark.skipif(NFT is None, reason="needs nft (Debian: nftables)")
def test_nat_can_be_set_twice(tmp_path: Path, space: None) -> None:
    profile = load(GOLDEN / "proxy/profile.yml")
    rules = tmp_path / "nat.nft"
    rules.write_text(text(states(profile)[profile.control.name], "nat.nft"))
    argv = ["ip", "netns", "exec", SPACE, str(NFT)]
    for _ in range(2):
        run([*argv, "-f", rules])
    shown = run([*argv, "list", "ruleset"]).out
    assert shown.count("masquerade") == 1
    assert "policy drop" in shown
