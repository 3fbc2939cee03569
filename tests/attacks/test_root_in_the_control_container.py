"""The door: the control node's container, if somebody became root in it.

The container is the product's own. Its layer is this machine's userland, and its PID 1 the
attacker (support/root_in_a_container.py): with namespaces, and where the kernel cannot map ids.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from support import PROJECT, root_in_a_container
from support.bundle import received
from support.root_in_a_container import ATTEMPTS, DONE, RIGHTS

from orchestrator.cluster import known_secrets, support
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.core.waiting import as_long_as
from orchestrator.image.layers import mounts_below, unmount_below
from orchestrator.models.profiles import load
from orchestrator.node.paths import FILES_ROOT, LASTING
from orchestrator.provision.identity import BootFile
from orchestrator.provision.machines import nspawn, real
from orchestrator.provision.netboot.state import BOOTS, EVENTS

EVENT_LOG = f"{EVENTS}/unknown.jsonl"
PYTHON = Path("/usr/bin/python3")
INIT = "/usr/lib/systemd/systemd"
#: Which layers the container gets: such as can be mapped, or such as cannot on any kernel.
MAPPED, SHARED = "user namespace", "this machine's ids"
#: Seconds for all attempts; they take one.
LIMIT = 60.0

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"needs {PYTHON}"),
]


@dataclass
class Attacked:
    """What came of the attempts, and what they left on this machine."""

    kind: str
    machine: nspawn.Container
    found: dict[str, str]
    lasting: Path
    served: Path
    hostname: str


def mount_layer(place: Path, kind: str, empty: Path) -> None:
    place.mkdir(parents=True)
    argv = ["mount", "--bind", "/", str(place)]
    if kind == SHARED:
        empty.mkdir()
        argv = ["mount", "-t", "overlay", "-o", f"lowerdir={empty}:/", "overlay", str(place)]
    subprocess.run(argv, check=True)


@pytest.fixture(scope="module", params=[MAPPED, SHARED])
def attacked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attacked]:
    scratch, kind = tmp_path_factory.mktemp("attacked"), str(request.param)
    name = f"attacked{os.getpid()}"
    profile_file = scratch / f"{name}.yml"
    shipped = (PROJECT / "profiles/sim.yml").read_text()
    profile_file.write_text(shipped.replace("name: sim\n", f"name: {name}\n", 1))
    only_there = scratch / "only-there"
    only_there.mkdir()
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as listener:
        patch.setenv("ORCHESTRATE_STATE", str(scratch / "state"))
        profile = load(profile_file)
        cluster = nspawn.cluster(profile)
        machine = cluster.machines[profile.control.name]
        assert isinstance(machine, nspawn.Container)
        lasting, served = paths.lasting(name), paths.served(name)
        listener.bind("\0" + name)
        listener.listen()
        disk = Path("/").stat().st_dev
        asked = {
            "device": [os.major(disk), os.minor(disk)],
            "only_there": str(only_there / "file"),
            "pid": os.getpid(),
            "interfaces": [each for _, each in socket.if_nameindex() if each != "lo"],
            "socket": name,
            "served": FILES_ROOT,
            "lasting": LASTING,
        }
        words = shlex.join([str(PYTHON), "-I", "/attack.py", json.dumps(asked)])
        files = {
            INIT: BootFile(f"#!/bin/sh\nexec {words}\n", 0o755),
            "/attack.py": BootFile(Path(root_in_a_container.__file__).read_text()),
        }
        try:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", only_there], check=True)
            (only_there / "file").write_text("of this machine\n")
            served.mkdir(parents=True)
            (served / "file").write_text("served\n")
            mount_layer(cluster.home / "layers/base", kind, only_there / "empty")
            (cluster.home / "manifest.json").write_text('{"layers": [{"name": "base"}]}')
            cluster.layers.ident_file.write_text("of the test")
            cluster.cables.make()
            machine.plug()
            hostname = Path("/etc/hostname").read_text()
            machine.power_on(files)
            result = lasting / "found.json"
            as_long_as(lambda: not result.exists() and machine.process.pid(), LIMIT, 0.05)
            said = machine.console.read_text()
            assert result.exists(), f"the attacker does not run: {said}"
            found = json.loads(result.read_text())
            yield Attacked(kind, machine, found, lasting, served, hostname)
        finally:
            machine.power_off(0)
            cluster.cleanup()
            unmount_below(scratch)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_root_gets_no_hold_of_this_machine(attacked: Attacked, attempt: str) -> None:
    assert not attacked.found[attempt].startswith(DONE), attacked.found[attempt]


@pytest.mark.parametrize("right", RIGHTS)
def test_root_has_what_it_needs(attacked: Attacked, right: str) -> None:
    # Without a user namespace that one would be a right on this machine.
    is_refused = (attacked.kind, right) == (SHARED, "own mounts")
    assert (attacked.found[right] == DONE) is not is_refused


def test_nothing_of_this_machine_changed(attacked: Attacked) -> None:
    assert Path("/etc/hostname").read_text() == attacked.hostname
    assert {path.name: path.read_text() for path in attacked.served.iterdir()} == {
        "file": "served\n"
    }
    assert (attacked.served / "file").stat().st_uid == 0


def test_a_look_leaves_the_running_container_as_it_is(attacked: Attacked) -> None:
    before = mounts_below(attacked.machine.home)
    assert bool(attacked.machine.why_shared()) == (attacked.kind == SHARED)
    assert mounts_below(attacked.machine.home) == before


def test_a_program_that_it_leaves_is_of_nobody_here(attacked: Attacked) -> None:
    if attacked.kind == SHARED:
        pytest.skip("then it is root's, in a directory that only root enters")
    left = (attacked.lasting / "program").stat()
    assert left.st_mode & 0o4000
    with pytest.raises(KeyError):
        pwd.getpwuid(left.st_uid)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *product(("link", "pipe"), (EVENT_LOG, BOOTS)),
        *product(("linked directory",), (EVENT_LOG, BOOTS)),
    ],
)
def test_what_it_leaves_leads_the_operator_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    """A support bundle reads what lasts, and is sent to others."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    profile = load(PROJECT / "profiles/sim.yml")
    path, secret = paths.lasting(profile.name) / name, tmp_path / "secret" / Path(name).name
    path.parent.mkdir(parents=True)
    secret.parent.mkdir()
    secret.write_text('{"02:00": [{"boot": "of the operator"}]}\n')
    match how:
        case "link":
            path.symlink_to(secret)
        case "linked directory":
            path.parent.rmdir()
            path.parent.symlink_to(secret.parent)
        case "pipe":
            os.mkfifo(path)
    assert "of the operator" not in list(known_secrets.known(profile))
    with Board(quiet=True) as board:
        support.make(profile, tmp_path / "bundle.tar.gz", board)
    files = received(tmp_path / "bundle.tar.gz").files
    assert "versions.json" in files
    assert not any("of the operator" in text for text in files.values())


@pytest.fixture
def unmappable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory on a file system whose ids no kernel maps."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "seen/state"))
    seen, upper = tmp_path / "seen", tmp_path / "upper"
    for directory in (seen, upper):
        directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", upper], check=True)
    (upper / "u").mkdir()
    (upper / "w").mkdir()
    lower = f"lowerdir={seen},upperdir={upper}/u,workdir={upper}/w"
    subprocess.run(["mount", "-t", "overlay", "-o", lower, "overlay", seen], check=True)
    try:
        yield tmp_path
    finally:
        unmount_below(tmp_path)


@pytest.mark.parametrize("accepted", [False, True])
def test_a_real_control_node_asks_before_it_shares_its_root(
    unmappable: Path, accepted: bool
) -> None:
    file = unmappable / "bare.yml"
    text = (PROJECT / "profiles/sim.yml").read_text().replace("name: sim\n", "name: bare\n", 1)
    text = text.replace("machines: nspawn", "machines: real")
    file.write_text(text + "accept_root_on_host: true\n" * accepted)
    profile = load(file)
    cluster = real.cluster(profile)
    (cluster.home / "layers/base").mkdir(parents=True)
    (cluster.home / "manifest.json").write_text('{"layers": [{"name": "base"}]}')
    machine = cluster.machines[profile.control.name]
    if accepted:
        assert "root in containers is root here" in machine.why_shared()
        return
    for act in (machine.why_shared, lambda: machine.power_on({})):
        with pytest.raises(UserError, match=r"bare\.yml:\d+: machines: .* would be root") as told:
            act()
        assert "accept_root_on_host: true" in told.value.hint
