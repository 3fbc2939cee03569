"""`orchestrate support-bundle` where nothing is up: what it has, and that no secret is in it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml
from support.bundle import received
from support.profiles import PROFILE, make_checkout

from orchestrator.cluster import support, support_here
from orchestrator.cluster.known_secrets import known, programs, shown
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board
from orchestrator.models.profiles import load
from orchestrator.node.trust import PAIRS, TOKENS, open_trust
from orchestrator.profile import Profile
from orchestrator.provision.netboot.state import EVENTS

HUB_TOKEN = "hf_" + "Qx7" * 12
NONCE = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
POWER = {
    "driver": "command",
    "on": ["ipmitool", "-H", "{address}", "-U", "operator7", "-P", "calvin", "chassis", "on"],
    "status": ["./plug", "-u", "ada:Sesame-open", "http://plug/{index}?apikey=k3yk3yk3y"],
    "off": ["./off.sh", "--pin=hunter22", "{mac}"],
}  # fmt: skip
WORDS_OF_POWER = ("operator7", "calvin", "Sesame-open", "k3yk3yk3y", "hunter22")
ENV_SECRET = "aGVsbG8gd29ybGQ"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    text = PROFILE.replace("machines: manual", "machines: real")
    text = text.replace("  env: {}", f"  env: {{SOME_SERVICE_KEY: {ENV_SECRET}, PLAIN: visible}}")
    file = make_checkout(tmp_path, text + yaml.safe_dump({"power": POWER}))
    # Says its words, and fails.
    plug = file.with_name("plug")
    plug.write_text('#!/bin/sh\necho "no such outlet: $*" >&2\nexit 3\n')
    plug.chmod(0o755)
    return load(file)


def secrets(profile: Profile) -> list[str]:
    """Every secret that this cluster has."""
    home = paths.cluster(profile.name)
    found = [HUB_TOKEN, NONCE, ENV_SECRET, *WORDS_OF_POWER]
    for name in (*PAIRS, *TOKENS):
        lines = (home / name).read_text().splitlines()
        found += [line for line in lines if not line.startswith("-----")]
    return found


def plant(profile: Profile) -> None:
    """Each secret, in each log and file of the control side, as programs write them."""
    home, lasting = paths.cluster(profile.name), paths.lasting(profile.name)
    open_trust(profile.name)
    (lasting / "boot").mkdir(parents=True)
    boots = {"02:00": [{"boot": NONCE, "time": 1.0, "address": "", "identity": None}]}
    (lasting / "boot/boots.json").write_text(json.dumps(boots))
    words = [str(word) for word in POWER["on"]]
    lines = [
        *(f"Nov 30 12:00:00 host program[1]: read {each} today" for each in secrets(profile)),
        *(json.dumps({"time": 1, "text": each}) for each in secrets(profile)),
        f"  command: timeout 30 {' '.join(words)}",
        *((home / name).read_text() for name in PAIRS),
    ]
    for file in (
        home / "timeline.jsonl",
        lasting / EVENTS / "02-00-0a-4d-00-10.jsonl",
        lasting / EVENTS / "02-00-0a-4d-00-10.1.jsonl",
        home / "machines/left/console.log",
        home / "machines/left/qemu.log",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(["first line", *lines, "last line"]) + "\n")
    (home / "machines/left/ssh_host_ed25519_key").write_text(lines[-1])


def made(profile: Profile, path: Path) -> support.Made:
    with Board(quiet=True) as board:
        return support.make(profile, path, board)


def test_without_a_cluster_it_has_this_machines_part_and_says_what_is_missing(
    profile: Profile, tmp_path: Path
) -> None:
    bundle = made(profile, tmp_path / "new/bundle.tar.gz")
    assert not paths.cluster(profile.name).exists(), "looking makes no keys"
    found = received(tmp_path / "new/bundle.tar.gz")
    assert "never brought up" in bundle.missing["nodes/"]
    assert found.manifest["missing"] == bundle.missing
    assert json.loads(found.files["versions.json"])["image"] == profile.image
    shown_profile = json.loads(found.files["profile.json"])
    assert shown_profile["name"] == profile.name
    assert shown_profile["ray"]["env"]["PLAIN"] == "visible"


def test_it_is_for_its_owner_only_and_replaces_an_older_one(
    profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.tar.gz"
    path.write_text("older")
    path.chmod(0o644)
    bundle = made(profile, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bundle.size == path.stat().st_size > 100


def test_no_secret_of_the_cluster_is_anywhere_in_it(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(profile)

    def not_open(profile: Profile) -> None:
        raise UserError(f"it fails with {HUB_TOKEN}", "and a hint")

    monkeypatch.setattr(support_here, "open_cluster", not_open)
    bundle = made(profile, tmp_path / "bundle.tar.gz")
    found = received(tmp_path / "bundle.tar.gz")
    everything = secrets(profile)
    assert len(everything) > 20
    for secret in everything:
        assert secret.encode() not in found.data, secret
    assert bundle.missing["checks/verify.json"] == "it fails with ***"
    power = json.loads(found.files["power.json"])["left"]
    assert "unknown: " in power
    assert "exit code: 3" in power
    # What is not secret is still there.
    logs = [name for name in found.files if name.startswith(("control/", "machines/"))]
    assert len(logs) == 5
    for name in logs:
        assert "first line" in found.files[name]
        assert "last line" in found.files[name]
    assert not any("boots.json" in name or "host_ed25519" in name for name in found.files)
    assert bundle.redacted > len(everything)


def test_the_profile_is_shown_without_the_words_of_power_commands(profile: Profile) -> None:
    document = shown(profile)
    assert document["power"]["on"] == ["ipmitool", *["***"] * 8]
    assert document["ray"]["env"] == {"SOME_SERVICE_KEY": "***", "PLAIN": "visible"}
    assert programs(profile) == {"ipmitool", "plug", "off.sh"}
    words = set(known(profile))
    assert {*WORDS_OF_POWER} <= words
    assert not {"chassis", "on", "http://plug/"} & words


def test_a_variable_that_only_sounds_secret_takes_no_words_away(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOME_KEY", "/")
    assert not {"false", "/"} & set(known(profile))


def test_long_logs_are_cut_at_a_line(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_here, "LOG_BYTES", 1000)
    log = paths.cluster(profile.name) / "timeline.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f'{{"number": {number}}}\n' for number in range(1000)))
    made(profile, tmp_path / "bundle.tar.gz")
    found = received(tmp_path / "bundle.tar.gz")
    text = found.files["control/timeline.jsonl"]
    assert 900 < len(text) <= 1000
    assert [json.loads(line) for line in text.splitlines()][-1] == {"number": 999}
    (entry,) = (e for e in found.manifest["files"] if e["name"] == "control/timeline.jsonl")
    assert entry["cut"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_no_file_and_the_older_one(
    profile: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def interrupted(*words: object) -> None:
        raise error

    monkeypatch.setattr(support, "opened", interrupted)
    home = tmp_path / "here"
    home.mkdir()
    (home / "bundle.tar.gz").write_text("older")
    with pytest.raises(error):
        made(profile, home / "bundle.tar.gz")
    assert [path.name for path in home.iterdir()] == ["bundle.tar.gz"]
    assert (home / "bundle.tar.gz").read_text() == "older"


def test_a_place_that_cannot_be_written_is_named(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*bundle"):
        made(profile, tmp_path / "file/bundle.tar.gz")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("journal.txt", "journal.txt"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("ray/a b\x1b.log", "ray/a_b_.log"),
        ("units/ray-worker.service.txt", "units/ray-worker.service.txt"),
    ],
)
def test_names_that_a_node_gives_stay_inside(name: str, inside: str) -> None:
    assert support.safe(name) == inside
