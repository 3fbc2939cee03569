"""A machine that answers in the control node's place, to a node whose initrd is signed.

The initrd's own functions run, by busybox, in mount namespaces; the hostile server is a web server
on the loopback. What firmware refuses is in tests/netboot/test_signed.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.images import PROJECT

from orchestrator.provision.identity import HOST_CERTIFICATE, USER_CA, BootFile
from orchestrator.provision.netboot.signed import archive

SCRIPTS = PROJECT / "images/initrd"
NONCE = "4f040d6b" * 4


class Hostile(ThreadingHTTPServer):
    """Answers every request with `answer`."""

    answer = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Hostile)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.answer)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Hostile]:
    with Hostile() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def initrd(server: Hostile, home: Path, script: str) -> str:
    """What a script prints that has all of the initrd's functions, with a root of its own."""
    text = (SCRIPTS / "init").read_text()
    functions = text[text.index("\n# --- kernel") : text.rindex("\nbegin\n")]
    known = re.findall(r"^(?:host_key|certificate|signed_files)=\S+", text, re.MULTILINE)
    programs = home / "bin"
    programs.mkdir()
    subprocess.run(["busybox", "--install", "-s", programs], check=True)
    (programs / "chroot").unlink()  # the image's ssh-keygen is not here
    lines = [
        "set -u",
        "for place in /root /run; do mount -t tmpfs none $place; done",
        f"export PATH={programs}",
        f"scratch={home} mac=02:00:0a:4d:00:10 boot= image=abc who=x server={server.url} cause=",
        *(f". {SCRIPTS}/{name}" for name in ("common.sh", "layers.sh", "late.sh")),
        *known,
        functions,
        "mkdir -p /root/etc/ssh $run && echo KEY >/root$host_key.pub",
        script,
    ]
    argv = ["unshare", "--mount", "busybox", "sh", "-c", "\n".join(lines)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    return done.stdout


def test_an_answer_to_the_request_for_a_nonce_does_not_run(server: Hostile, tmp_path: Path) -> None:
    """late.sh writes the nonce into a script that root runs in the started system."""
    trace = tmp_path / "ran"
    script = 'ask_for_boot && who="mac=$mac&boot=$boot"; sources= ; known >$scratch/boot\n'
    script += '. $scratch/boot; echo "boot=$boot"'
    server.answer = f"{NONCE}'; touch {shlex.quote(str(trace))}; x='".encode()
    said = initrd(server, tmp_path, script)
    assert not trace.exists()
    assert said == "boot=\n"


@pytest.mark.parametrize("answer", ["", "4F", f"{NONCE}\n{NONCE}", f"{NONCE}&mac=x", "x" * 10_000])
def test_what_is_no_nonce_is_none(server: Hostile, tmp_path: Path, answer: str) -> None:
    server.answer = answer.encode()
    said = initrd(server, tmp_path, 'ask_for_boot || echo "no: $boot"')
    assert said == "no: \n"


def test_a_nonce_is_taken(server: Hostile, tmp_path: Path) -> None:
    server.answer = NONCE.encode()
    assert initrd(server, tmp_path, 'ask_for_boot && echo "$boot"') == f"{NONCE}\n"


def test_a_signed_image_takes_nothing_from_the_server_but_a_certificate(
    server: Hostile, tmp_path: Path
) -> None:
    """Else whoever answers is the one whose certificates open the node."""
    ours = {USER_CA: BootFile("OURS\n"), "/etc/hostname": BootFile("compute0\n")}
    (tmp_path / "ours.tar").write_bytes(archive(ours))
    theirs = {USER_CA: "THEIRS\n", "/sbin/init": "THEIRS\n", HOST_CERTIFICATE: "CERTIFICATE\n"}
    server.answer = archive({path: BootFile(text) for path, text in theirs.items()})
    look = f"cat /root{USER_CA} /root{HOST_CERTIFICATE}; find /root -type f | sort"
    signed = f"signed_files={tmp_path}/ours.tar; identity; {look}"
    assert initrd(server, tmp_path, signed).splitlines() == [
        "OURS",
        "CERTIFICATE",
        "/root/etc/hostname",
        f"/root{HOST_CERTIFICATE}",
        f"/root{HOST_CERTIFICATE.replace('-cert', '')}",
        f"/root{USER_CA}",
    ]


def test_an_image_that_is_not_signed_takes_its_boot_files(server: Hostile, tmp_path: Path) -> None:
    files = {USER_CA: BootFile("THEIRS\n"), HOST_CERTIFICATE: BootFile("CERTIFICATE\n")}
    server.answer = archive(files)
    look = f"cat /root{USER_CA} /root{HOST_CERTIFICATE}"
    assert initrd(server, tmp_path, f"identity; {look}") == "THEIRS\nCERTIFICATE\n"
