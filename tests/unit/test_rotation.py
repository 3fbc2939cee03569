"""The keys of a rotation on disk, killed before each change that it makes there.

What nodes see of a rotation is in tests/sim/test_trust.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import DATA

from orchestrator.cluster.certificates import Certificate
from orchestrator.cluster.rotate import KeyKind
from orchestrator.cluster.rotate import rotate as rotate_cluster
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.node.trust import HOST_LIFETIME, PAIRS, Trust, open_trust
from orchestrator.provision.machines import PowerState

#: What changes a disk, by its names in `os`; what the standard library is built on.
CHANGES = ("mkdir", "open", "chmod", "fsync", "rename", "replace", "unlink", "rmdir")
PROFILE = DATA / "golden/sim/profile.yml"
#: More than a step of a rotation makes.
MANY = 200


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path))
    return open_trust("one")


def killed_before(number: int, action: Callable[[], object]) -> bool:
    """Do it in a process that is killed before its Nth change on disk; whether it came to that."""
    child = multiprocessing.get_context("fork").Process(target=_die, args=(number, action))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def _die(number: int, action: Callable[[], object]) -> None:
    left = iter(range(number - 1, -1, -1))

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    action()


def kept(trust: Trust) -> dict[str, str]:
    """The public keys in use; each has its private half, and the operator a certificate by it."""
    keys = {}
    for name in PAIRS:
        keys[name] = run(["ssh-keygen", "-y", "-f", trust.directory / name]).out.split()[1]
        assert (trust.directory / f"{name}.pub").read_text().split()[1] == keys[name]
    shown = run(["ssh-keygen", "-L", "-f", trust.directory / "operator-cert.pub"]).out
    assert trust.fingerprint("operator") in shown and trust.fingerprint("user_ca") in shown
    return keys


def believed(trust: Trust) -> list[str]:
    """The keys of authorities over hosts in known_hosts."""
    lines = (trust.directory / "known_hosts").read_text().splitlines()
    return [line.split()[3] for line in lines]


def rotate(trust: Trust) -> None:
    trust.prepare_successor()
    trust.take_over()


def test_a_preparation_killed_anywhere_leaves_the_old_keys_in_use(trust: Trust) -> None:
    old = kept(trust)
    for number in range(1, MANY):
        died = killed_before(number, trust.prepare_successor)
        again = open_trust("one")
        assert kept(again) == old
        assert believed(again)[0] == old["host_ca"]
        if again.successor:
            assert believed(again)[1] == kept(again.successor)["host_ca"]
            assert len(again.user_ca_public.splitlines()) == 2
            break
    assert died, "it was never killed after the new keys were there"
    rotate(again)
    assert not set(kept(open_trust("one")).values()) & set(old.values())
    assert not left_over(trust)


def test_a_takeover_killed_anywhere_is_finished_by_the_next_use(
    trust: Trust, tmp_path: Path
) -> None:
    for number in range(1, MANY):
        old, new = kept(trust), kept(trust.prepare_successor())
        died = killed_before(number, trust.take_over)
        again = open_trust("one")
        assert kept(again) in (old, new), number  # all of one, nothing between
        assert set(believed(again)) >= {kept(again)["host_ca"]}
        if again.successor:
            assert kept(again) == old and set(believed(again)) == {old["host_ca"], new["host_ca"]}
            again.take_over()
        assert kept(open_trust("one")) == new and believed(again) == [new["host_ca"]]
        assert not left_over(trust)
        if not died:
            return
    pytest.fail("it never came to an end")


def left_over(trust: Trust) -> list[str]:
    """What an interruption left in the directory: keys that nobody needs."""
    found = (path.name for path in trust.directory.iterdir())
    return [name for name in found if name == "successor" or name.startswith(".")]


@pytest.mark.parametrize("state", [PowerState.SILENT, PowerState.WAKING])
def test_a_node_that_may_be_on_is_named_before_a_key_is_made(
    trust: Trust, state: PowerState
) -> None:
    states = {"control": PowerState.ON, "compute0": PowerState.OFF, "compute1": state}
    driver = SimpleNamespace(state=lambda node: states[node.name])
    cluster = SimpleNamespace(driver=driver, profile=load(PROFILE), trust=trust)
    before = kept(trust)
    with pytest.raises(UserError, match=r"Power state unknown: compute1. Nothing was changed."):
        rotate_cluster(cluster, Board(quiet=True), list(KeyKind))  # type: ignore[arg-type]
    assert kept(trust) == before and trust.successor is None


@pytest.mark.parametrize(
    "node, left, soon",
    [
        ("compute0", HOST_LIFETIME, False),
        ("compute0", HOST_LIFETIME / 3 + timedelta(hours=1), False),
        ("compute0", HOST_LIFETIME / 3 - timedelta(hours=1), True),
        ("compute0", -timedelta(hours=1), True),
        ("", timedelta(days=11), False),  # the operator's, which is renewed when it is used
    ],
)
def test_a_hosts_certificate_is_due_in_its_last_third(
    node: str, left: timedelta, soon: bool
) -> None:
    assert Certificate(node, datetime.now(UTC) + left).ends_soon is soon


def test_a_certificate_that_could_not_be_read_says_why() -> None:
    certificate = Certificate("compute0", None, "no answer")
    assert certificate.told == "no answer" and not certificate.ends_soon
