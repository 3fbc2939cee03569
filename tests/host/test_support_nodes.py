"""What a support bundle takes from nodes, over a real SSH: this machine is the node."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.bundle import received
from support.profiles import make_checkout
from support.sshd import sshd

from orchestrator.cluster import support
from orchestrator.cluster.cluster import Cluster
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout
from orchestrator.node.remote import Remote
from orchestrator.node.trust import PAIRS, open_trust
from orchestrator.profile import Node, Profile
from orchestrator.provision.machines import PowerState

#: A node that nobody reaches.
DEAD = "right"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(support, "LOGS", {"ray": f"{tmp_path}/session/*.log"})
    return load(make_checkout(tmp_path))


Collect = Callable[..., support.Made]


@pytest.fixture
def collect(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collect]:
    """Makes a bundle of a cluster with a head, a node that answers, and one that does not."""
    trust = open_trust(profile.name)
    identity = trust.host_identity([node.name for node in profile.nodes])

    class Here(Cluster):
        def remote(self, node: Node) -> Remote:
            address = "127.0.0.1"
            return Remote(node.name, address, self.trust, port=1 if node.name == DEAD else port)

    nothing: Any = None

    def ended(cluster: Cluster, bundle: object) -> None:
        raise UserError("no answer from the endpoint")

    monkeypatch.setattr(support, "_verify", ended)
    monkeypatch.setattr(support, "_status", ended)
    with sshd(tmp_path / "sshd", identity, trust.user_ca_public) as port:

        def made(states: dict[str, PowerState] | None = None, opens: bool = True) -> support.Made:
            power = states or {}
            driver: Any = SimpleNamespace(
                network=nullcontext, state=lambda node: power.get(node.name, PowerState.ON)
            )
            layout = Layout(2, 1, expert=False, accelerators=2)
            here = Here(profile, tmp_path, nothing, nothing, layout, trust, driver)
            monkeypatch.setattr(support, "opened", lambda *words: here if opens else None)
            monkeypatch.setattr(support, "reached", lambda *words: here)
            with Board(quiet=True) as board:
                return support.make(profile, tmp_path / "bundle.tar.gz", board)

        yield made
        for node in profile.nodes:
            Remote(node.name, "127.0.0.1", trust, port=port).close()


def test_logs_and_facts_of_nodes_are_there_and_no_secret_of_theirs(
    profile: Profile, collect: Collect, tmp_path: Path
) -> None:
    trust = open_trust(profile.name)
    secrets = [trust.ray_token.reveal(), trust.api_key.reveal()]
    for name in PAIRS:
        secrets += (trust.directory / name).read_text().splitlines()[1:-1]
    (tmp_path / "session").mkdir()
    lines = ["begun", *(f"I 12:00 raylet: using {each}" for each in secrets), "over"]
    (tmp_path / "session/raylet.log").write_text("\n".join(lines) + "\n")
    (tmp_path / "outside").write_text("not a log")
    (tmp_path / "session/link.log").symlink_to(tmp_path / "outside")
    made = collect()
    found = received(tmp_path / "bundle.tar.gz")
    answering = [node.name for node in profile.nodes if node.name != DEAD]
    assert answering
    for name in answering:
        assert found.files[f"nodes/{name}/ray/raylet.log"].startswith("begun\n")
        assert found.files[f"nodes/{name}/ray/raylet.log"].endswith("over\n")
        assert "Linux" in found.files[f"nodes/{name}/uname.txt"]
        assert f"nodes/{name}/ray/link.log" not in found.files
    for secret in secrets:
        assert secret.encode() not in found.data
    assert "SSH does not answer" in made.missing[f"nodes/{DEAD}"]
    assert made.missing["checks/verify.json"] == "no answer from the endpoint"
    assert json.loads(found.files["power.json"]) == {node.name: "on" for node in profile.nodes}


def test_a_node_that_is_off_is_not_asked(profile: Profile, collect: Collect) -> None:
    states = {node.name: PowerState.OFF for node in profile.nodes}
    made = collect(states)
    assert {made.missing[f"nodes/{node.name}"] for node in profile.nodes} == {"it is off"}


def test_nodes_are_asked_even_if_the_cluster_cannot_be_opened(
    profile: Profile, collect: Collect, tmp_path: Path
) -> None:
    collect(opens=False)
    found = received(tmp_path / "bundle.tar.gz")
    assert f"nodes/{profile.server.name}/kernel.txt" in {*found.files, *found.manifest["missing"]}
    assert "status.json" not in found.manifest["missing"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import time; time.sleep(1000)", "timed out"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "more than"),
        ("print('[' * 100000)", "cannot be read"),
        ("print('{}')", "cannot be read"),
        ("raise SystemExit(7)", "exit code"),
    ],
)
def test_a_node_that_hangs_or_sends_anything_else_stops_nothing(
    profile: Profile,
    collect: Collect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    why: str,
) -> None:
    monkeypatch.setattr(support, "SENT_S", 3.0)
    monkeypatch.setattr(support, "SENT_BYTES", 1 << 20)
    (tmp_path / "support_node.py").write_text(program)
    monkeypatch.setattr(support, "__file__", str(tmp_path / "support.py"))
    made = collect()
    found = received(tmp_path / "bundle.tar.gz")
    assert why in made.missing[f"nodes/{profile.control.name}"]
    assert found.manifest["missing"] == made.missing
    assert "versions.json" in found.files


def test_names_and_texts_of_a_hostile_node_stay_in_their_place(
    profile: Profile, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "files": {"../../../etc/cron.d/x": {"text": "* * * * *", "cut": False},
                  "odd": "no document", "number": {"text": 7}},
        "missing": {"../y": 7, "z": "w" * 10_000},
    }  # fmt: skip
    (tmp_path / "support_node.py").write_text(f"print({json.dumps(json.dumps(said))})")
    monkeypatch.setattr(support, "__file__", str(tmp_path / "support.py"))
    made = collect()
    found = received(tmp_path / "bundle.tar.gz")
    name = profile.control.name
    assert found.files[f"nodes/{name}/etc/cron.d/x"] == "* * * * *"
    assert not any(each.endswith(("odd", "number")) for each in found.files)
    assert len(made.missing[f"nodes/{name}/z"]) == 500


def test_ctrl_c_ends_what_hangs_and_leaves_no_file(
    profile: Profile, collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "LOGS", {})
    asked = tmp_path / "asked"
    program = f"import time; open({str(asked)!r}, 'w').close(); time.sleep(60)"
    (tmp_path / "support_node.py").write_text(program)
    monkeypatch.setattr(support, "__file__", str(tmp_path / "support.py"))

    def press() -> None:
        while not asked.exists():
            time.sleep(0.1)
        main = threading.main_thread().ident
        assert main
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        collect()
    thread.join()
    assert not list(tmp_path.glob("*.gz"))
    assert not list(tmp_path.glob(".new-*"))
