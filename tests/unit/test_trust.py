"""Trust with the real ssh-keygen, and SSH end to end against real sshds on loopback."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import trust as trust_module
from orchestrator.remote import (
    AccessDenied,
    HostKeyRefused,
    Remote,
    RemoteFailed,
    Unreachable,
)
from orchestrator.run import run
from orchestrator.trust import HostIdentity, Secret, Trust, open_trust

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
HOSTILE = ["X; rm -rf ~", "$(id)", "a b", "'", '"', "*", "", "back\\slash", "new\nline"]


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state 100%"))
    return open_trust("one")


def contents(trust: Trust) -> dict[str, str]:
    return {path.name: path.read_text() for path in trust.directory.iterdir()}


def test_it_is_made_once_and_is_private(trust: Trust) -> None:
    before = contents(trust)
    assert contents(open_trust("one")) == before
    assert open_trust("two").ray_token != trust.ray_token
    assert trust.directory.stat().st_mode & 0o777 == 0o700
    for name in ("host_ca", "user_ca", "operator", "ray.token", "api.key"):
        assert (trust.directory / name).stat().st_mode & 0o777 == 0o600, name
    assert len(trust.ray_token.reveal()) == 64


@pytest.mark.parametrize(
    "lost", ["host_ca", "user_ca", "operator", "operator-cert.pub", "ray.token", "known_hosts"]
)
def test_what_an_interruption_left_out_is_made_up_for(trust: Trust, lost: str) -> None:
    before = contents(trust)
    (trust.directory / lost).unlink()
    after = contents(open_trust("one"))
    assert after.keys() == before.keys()
    pair = {lost, f"{lost}.pub", "operator-cert.pub", "known_hosts"}
    assert {name for name in before if before[name] != after[name]} <= pair


def test_the_operators_certificate_is_renewed_near_its_end_only(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = trust.directory / "operator-cert.pub"
    before = certificate.read_text()
    open_trust("one")
    assert certificate.read_text() == before
    monkeypatch.setattr(trust_module, "OPERATOR_RENEWAL", timedelta(days=31))
    open_trust("one")
    renewed = certificate.read_text()
    assert renewed != before
    shown = run(["ssh-keygen", "-L", "-f", certificate]).out
    assert [line.strip() for line in shown.splitlines() if "root" in line] != []
    left = trust_module.valid_until(renewed) - datetime.now(UTC)
    assert timedelta(days=29) < left <= timedelta(days=30, minutes=1)


def test_a_directory_that_cannot_be_made_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "file"))
    with pytest.raises(trust_module.UserError, match="cannot be kept in"):
        open_trust("one")


def test_a_host_identity_names_the_node_and_leaves_nothing_behind(trust: Trust) -> None:
    before = contents(trust).keys()
    identity = trust.host_identity(["node0", "10.0.0.1"])
    assert contents(trust).keys() == before
    file = trust.directory.parent / "cert.pub"
    file.write_text(identity.certificate)
    shown = run(["ssh-keygen", "-L", "-f", file]).out
    assert "host certificate" in shown
    assert [line.strip() for line in shown.splitlines()[8:10]] == ["node0", "10.0.0.1"]
    assert "PRIVATE KEY" in identity.private.reveal()
    assert "PRIVATE KEY" not in repr(identity)


def test_a_secret_shows_nowhere() -> None:
    secret = Secret("hunter2")
    shown = f"{secret} {secret!r} {secret:>10} {secret!s} {[secret]}"
    assert "hunter2" not in shown
    assert "hunter2" not in "%s" % secret  # noqa: UP031 - that form too
    with pytest.raises(TypeError):
        "".join([secret])  # type: ignore[list-item]
    assert secret.reveal() == "hunter2"


def test_the_control_socket_path_is_short_enough(trust: Trust) -> None:
    words = trust.ssh_options("node0")
    path = next(word for word in words if word.startswith("-oControlPath=")).split("=", 1)[1]
    # %C is 40 digits; while connecting ssh adds a dot and 16 characters.
    assert len(path.strip('"').replace("%C", "x" * 40)) + 17 < 108


# End to end

Serve = Callable[[HostIdentity, str], int]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start an sshd on loopback with that identity, trusting that user authority; its port."""
    if SSHD is None or os.geteuid() != 0:
        pytest.skip("needs sshd (Debian: openssh-server) and root")
    try:
        pwd.getpwnam("sshd")
    except KeyError:
        pytest.skip("needs the sshd account")
    Path("/run/sshd").mkdir(exist_ok=True)
    processes: list[subprocess.Popen[str]] = []

    def start(identity: HostIdentity, user_ca: str) -> int:
        home = tmp_path / f"sshd-{len(processes)}"
        home.mkdir()
        (home / "key").touch(mode=0o600)
        (home / "key").write_text(identity.private.reveal())
        (home / "cert.pub").write_text(identity.certificate)
        (home / "user_ca.pub").write_text(user_ca)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        (home / "config").write_text(
            f"HostKey {home}/key\nHostCertificate {home}/cert.pub\n"
            f"TrustedUserCAKeys {home}/user_ca.pub\nAuthorizedKeysFile none\n"
            f"ListenAddress 127.0.0.1:{port}\nPermitRootLogin prohibit-password\n"
            f"PasswordAuthentication no\nUsePAM no\nPidFile none\nStrictModes no\n"
        )
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", home / "config"], stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stderr
        # It says so when it listens.
        for line in process.stderr:
            if "listening on" in line:
                return port
        raise AssertionError("sshd did not start")

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=30)
        assert process.stderr
        process.stderr.close()


@pytest.fixture
def remote(trust: Trust, serve: Serve) -> Iterator[Remote]:
    port = serve(trust.host_identity(["node0"]), trust.user_ca_public)
    remote = Remote("node0", "127.0.0.1", trust, port=port)
    yield remote
    remote.close()


def test_the_right_node_lets_the_operator_in(remote: Remote) -> None:
    remote.wait_for_ssh(30)
    assert remote.run(["cat"], stdin="through\n").out == "through\n"
    for word in HOSTILE:
        assert remote.run(["printf", "%s", word]).out == word


def test_a_failed_command_says_all_and_how_to_repeat_it(remote: Remote) -> None:
    script = "echo to out; echo to err >&2; exit 3"
    with pytest.raises(RemoteFailed) as caught:
        remote.run(["sh", "-c", script], what="the example")
    text = str(caught.value)
    assert text.splitlines()[0] == "the example failed on node0"
    for part in ("node0 (root@127.0.0.1)", script, "3", "to out", "to err"):
        assert part in text
    repeat = text.splitlines()[-1].split("repeat:")[1]
    again = subprocess.run(repeat, shell=True, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout, again.stderr) == (3, "to out\n", "to err\n")
    assert remote.run(["sh", "-c", script], ok=(3,)).code == 3


def test_a_node_of_another_authority_is_refused_by_name(trust: Trust, serve: Serve) -> None:
    other = open_trust("two")
    port = serve(other.host_identity(["node0"]), trust.user_ca_public)
    with pytest.raises(HostKeyRefused, match="node0"):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)


def test_another_node_at_the_address_is_refused(trust: Trust, serve: Serve) -> None:
    port = serve(trust.host_identity(["node1", "127.0.0.1"]), trust.user_ca_public)
    with pytest.raises(HostKeyRefused, match="node0"):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)


def test_a_node_that_does_not_know_the_operator_is_final(trust: Trust, serve: Serve) -> None:
    port = serve(trust.host_identity(["node0"]), open_trust("two").user_ca_public)
    with pytest.raises(AccessDenied, match=r"node0.*root is not let in"):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)


def test_a_node_whose_clock_is_a_year_ahead_lets_nobody_in_and_the_clock_is_named(
    trust: Trust, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To such a node the operator's certificate ended long ago. Processes of one machine share its
    clock, so here it is the certificate that is shifted."""
    monkeypatch.setattr(
        trust_module, "OPERATOR_LIFETIME", trust_module.OPERATOR_LIFETIME - timedelta(days=365)
    )
    (trust.directory / "operator-cert.pub").unlink()
    port = serve(trust.host_identity(["node0"]), open_trust("one").user_ca_public)
    with pytest.raises(AccessDenied, match=r"node0.*root is not let in.*\n.*its clock is past"):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)


def test_a_node_whose_clock_is_a_year_behind_lets_the_operator_in(trust: Trust) -> None:
    """No certificate begins: none is of that node's future."""
    (trust.directory / "host-cert.pub").write_text(trust.host_identity(["node0"]).certificate)
    for name in ("host-cert.pub", "operator-cert.pub"):
        shown = run(["ssh-keygen", "-L", "-f", trust.directory / name]).out
        assert "Valid: before " in shown, shown


def test_a_host_certificate_that_has_ended_is_refused_and_said_to_have(
    trust: Trust, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_module, "HOST_LIFETIME", -timedelta(hours=1))
    port = serve(trust.host_identity(["node0"]), trust.user_ca_public)
    with pytest.raises(HostKeyRefused, match=r"node0.*its host certificate has ended"):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)


def test_an_operators_certificate_that_has_ended_opens_nothing_and_is_renewed(
    trust: Trust, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trust_module, "OPERATOR_LIFETIME", -timedelta(hours=1))
        trust.renew_operator()
    assert trust.operator_until < datetime.now(UTC)
    with pytest.raises(AccessDenied, match="node0"):
        remote.wait_for_ssh(60)
    open_trust("one")
    remote.wait_for_ssh(60)


def test_during_a_rotation_nodes_of_both_authorities_are_believed_and_let_the_operator_in(
    trust: Trust, serve: Serve
) -> None:
    old = trust.host_identity(["node0"])
    before = serve(old, trust.user_ca_public)
    successor = trust.prepare_successor()
    told = serve(old, trust.user_ca_public)
    moved = serve(successor.host_identity(["node0"]), trust.user_ca_public)
    for port in (before, told, moved):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)
    # What boots now gets the new one, so that it need not boot again when the old one is forgotten.
    assert trust.host_ca == successor.host_ca
    trust.take_over()
    for port in (before, told, moved):
        Remote("node0", "127.0.0.1", trust, port=port).close()
    Remote("node0", "127.0.0.1", trust, port=moved).wait_for_ssh(60)
    with pytest.raises(HostKeyRefused, match="node0"):
        Remote("node0", "127.0.0.1", trust, port=told).wait_for_ssh(60)
    Remote("node0", "127.0.0.1", trust, port=moved).close()


def test_waiting_says_for_what_and_ends(trust: Trust) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets it
        remote = Remote("node0", "127.0.0.1", trust, port=taken.getsockname()[1])
        heard: list[str] = []
        with pytest.raises(Unreachable, match=r"node0 .*no SSH within 0 s.*refused"):
            remote.wait_for_ssh(0, heard.append)
    assert len(heard) == 1
    assert "Connection refused" in heard[0]
