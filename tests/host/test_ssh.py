"""SSH end to end, against real sshds on loopback: who is let in, and who is not."""

import itertools
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.sshd import sshd

from orchestrator.node import trust as trust_module
from orchestrator.node.remote import AccessDenied, HostKeyRefused, Remote, RemoteFailed
from orchestrator.node.trust import HostIdentity, Trust, open_trust

HOSTILE = ["X; echo Y", "$(id)", "a b", "'", '"', "*", "", "back\\slash", "new\nline"]


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state 100%"))
    return open_trust("one")


Serve = Callable[..., int]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start an sshd on loopback with that identity, trusting that user authority; its port."""
    with ExitStack() as stack:
        started = itertools.count()

        def start(identity: HostIdentity, user_ca: str, port: int = 0) -> int:
            home = tmp_path / f"sshd-{next(started)}"
            return stack.enter_context(sshd(home, identity, user_ca, port))

        yield start


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
    assert (again.returncode, again.stdout) == (3, "to out\n")
    assert again.stderr.endswith("to err\n")  # after what the account's own .bashrc has to say
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
    with pytest.raises(AccessDenied, match=r"node0.*root may not log in"):
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
    with pytest.raises(AccessDenied, match=r"node0.*root may not log in.*\n.*its clock is past"):
        Remote("node0", "127.0.0.1", trust, port=port).wait_for_ssh(60)


def test_a_host_certificate_that_has_ended_is_refused_and_said_to_have(
    trust: Trust, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_module, "HOST_LIFETIME", -timedelta(hours=1))
    port = serve(trust.host_identity(["node0"]), trust.user_ca_public)
    with pytest.raises(HostKeyRefused, match=r"node0.*its host certificate has expired"):
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


def test_a_node_that_is_not_up_yet_is_waited_for(trust: Trust, serve: Serve) -> None:
    """Its sshd starts when the first try was in vain."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    remote = Remote("node0", "127.0.0.1", trust, port=port)
    heard: list[str] = []

    def start(reason: str) -> None:
        heard.append(reason)
        if len(heard) == 1:
            serve(trust.host_identity(["node0"]), trust.user_ca_public, port)

    remote.wait_for_ssh(60, start)
    remote.close()
    assert "Connection refused" in heard[0]
