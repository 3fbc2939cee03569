"""Trust with the real ssh-keygen; tests/host/test_ssh.py has real sshds."""

import fcntl
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.node import trust as trust_module
from orchestrator.node.remote import Remote, Unreachable
from orchestrator.node.trust import Secret, Trust, open_trust


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
    with pytest.raises(UserError, match="cannot be stored in"):
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


def test_a_node_whose_clock_is_a_year_behind_lets_the_operator_in(trust: Trust) -> None:
    """No certificate begins: none is of that node's future."""
    (trust.directory / "host-cert.pub").write_text(trust.host_identity(["node0"]).certificate)
    for name in ("host-cert.pub", "operator-cert.pub"):
        shown = run(["ssh-keygen", "-L", "-f", trust.directory / name]).out
        assert "Valid: before " in shown, shown


def test_waiting_says_for_what_and_ends(trust: Trust) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets it
        remote = Remote("node0", "127.0.0.1", trust, port=taken.getsockname()[1])
        heard: list[str] = []
        with pytest.raises(Unreachable, match=r"node0 .*no SSH within 0 s.*refused"):
            remote.wait_for_ssh(0, heard.append)
    assert len(heard) == 1
    assert "Connection refused" in heard[0]


def test_while_keys_are_made_nobody_else_makes_any(trust: Trust) -> None:
    with (
        trust._lock(),
        (trust.directory / "lock").open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_the_operators_certificate_opens_root_alone_and_forwards_nothing(trust: Trust) -> None:
    shown = run(["ssh-keygen", "-L", "-f", trust.directory / "operator-cert.pub"]).out
    head, _, options = shown.partition("Critical Options:")
    assert head.partition("Principals:")[2].split() == ["root"]
    assert options.split() == ["(none)", "Extensions:", "permit-pty"]


def test_what_boots_during_a_rotation_is_of_the_new_authority(trust: Trust) -> None:
    old = trust.host_ca.reveal()
    successor = trust.prepare_successor()
    assert trust.host_ca.reveal() == successor.host_ca.reveal() != old
    assert trust.user_ca_public.splitlines() == [
        (trust.directory / "user_ca.pub").read_text().strip(),
        successor.user_ca_public.strip(),
    ]


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o770])
def test_open_connections_are_not_kept_where_others_get_at_them(trust: Trust, mode: int) -> None:
    words = trust.ssh_options("node0")
    path = next(word for word in words if word.startswith("-oControlPath=")).split("=", 1)[1]
    sockets = Path(path.strip('"')).parent
    sockets.chmod(mode)
    try:
        with pytest.raises(UserError, match="is not private to this user"):
            trust.ssh_options("node0")
    finally:
        sockets.chmod(0o700)
    assert trust.ssh_options("node0") == words
