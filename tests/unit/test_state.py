"""Golden tests (support/golden.py says how to add one), and what holds for every node's state."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from support.golden import CASES, GOLDEN, context, found, rendered, states

from orchestrator.cluster import vllm
from orchestrator.cluster.desired import desired
from orchestrator.core.templating import env_value, exec_word, render
from orchestrator.models.profiles import load
from orchestrator.node.paths import LASTING, RAY_ENV, RAY_TOKEN, VLLM_ENV
from orchestrator.node.resources import Step
from orchestrator.node.state import NodeState
from orchestrator.provision.netboot.state import BOOT_STATE

HOSTILE = ["", "a b", 'say "x"', "$HOME", "`id`", "back\\slash", "100%", "'", "X; echo Y", "#"]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    assert rendered(case) == found(case), (
        "to accept: PYTHONPATH=tests .venv/bin/python -m support.golden"
    )


@pytest.mark.parametrize("case", CASES)
def test_a_unit_restarts_when_what_it_reads_changes_and_only_then(case: str) -> None:
    profile = load(GOLDEN / case / "profile.yml")
    for node in profile.nodes:
        before = desired(profile, node, context(profile))
        after = desired(profile, node, context(profile, token="ANOTHER"))
        moved = {
            old.name
            for old, new in zip(before.units, after.units, strict=True)
            if old.revision != new.revision
        }
        assert moved == {unit.name for unit in before.units if unit.step != Step.BASE}


@pytest.mark.parametrize("case", CASES)
def test_units_only_restart_on_files_of_the_node(case: str) -> None:
    found = states(load(GOLDEN / case / "profile.yml")).values()
    assert any(unit.restart_on for state in found for unit in state.units)
    for state in found:
        paths = {file.path for file in state.files}
        assert len(paths) == len(state.files)
        for unit in state.units:
            assert set(unit.restart_on) <= paths


@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_a_partition(case: str) -> None:
    for state in states(load(GOLDEN / case / "profile.yml")).values():
        parts = [item for step in Step for item in state.only(step).resources]
        assert sorted(map(str, parts)) == sorted(map(str, state.resources))
        assert state.only(*Step) == state


@pytest.mark.parametrize("case", CASES)
def test_all_of_it_is_below_directories_of_root(case: str) -> None:
    """The agent refuses anything else; services write to directories of their own."""
    found = states(load(GOLDEN / case / "profile.yml"))
    others = set()
    for state in found.values():
        foreign = {each.path for each in state.directories if each.owner != "root"}
        for path in [*(d.path for d in state.directories), *(f.path for f in state.files)]:
            assert not foreign & {str(parent) for parent in Path(path).parents}, path
            assert not path.startswith(("/home/", "/tmp/", "/var/tmp/")), path
        # What nginx and dnsmasq open as root is not there, either.
        texts = [file.content or "" for file in state.files if file.path.endswith(".conf")]
        assert texts
        assert not [text for text in texts for path in foreign if f"{path}/" in text]
        others |= foreign
    assert f"{LASTING}/{BOOT_STATE}" in others


def test_secrets_are_in_the_document_but_not_in_what_is_printed() -> None:
    profile = load(GOLDEN / "sim" / "profile.yml")
    state = desired(profile, profile.server, context(profile))
    assert "RAY TOKEN" in json.dumps(state.document())
    assert "RAY TOKEN" not in repr(state)
    assert "API KEY" not in repr(state)
    shown = [file for file in state.files if not file.secret]
    assert shown
    assert not any("RAY TOKEN" in str(dataclasses.asdict(file)) for file in shown)
    assert not any("API KEY" in str(dataclasses.asdict(file)) for file in shown)


@pytest.mark.parametrize("value", HOSTILE)
def test_an_environment_value_survives_a_shell(value: str) -> None:
    script = f'V={env_value(value)}; printf %s "$V"'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == value


@pytest.mark.parametrize("value", HOSTILE)
def test_an_exec_word_stays_one_word(value: str) -> None:
    # systemd's own splitting is a subset of a shell's here, once its two doublings are undone.
    word = exec_word(value).replace("%%", "%").replace("$$", "$")
    assert shlex.split(word) == [value] or "$" in value or "`" in value
    assert "\n" not in exec_word(value + "\n")


def test_a_template_without_one_of_its_values_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'address' is undefined"):
        render("sshd.conf", host_key="a", host_certificate="b", user_ca="c", authorized_keys="d")


def served_by(executor: str, nodes: int, copies: int) -> dict[str, NodeState]:
    """The states of so many nodes alike, one accelerator each."""
    profile = load(GOLDEN / "copies/profile.yml")
    first = profile.compute_nodes[0]
    alike = [
        first.model_copy(
            update={
                "name": f"n{number}",
                "links": {
                    "lan": first.links["lan"].model_copy(
                        update={"address": IPv4Address(f"192.168.10.1{number}")}
                    )
                },
            }
        )
        for number in range(nodes)
    ]
    serving = {"executor": executor, "data_parallel": copies}
    return states(
        profile.model_copy(
            update={
                "compute_nodes": tuple(alike),
                "serving": profile.serving.model_copy(update=serving),
            }
        )
    )


def content(state: NodeState, path: str) -> str:
    return next(file.content or "" for file in state.files if file.path == path)


def units(state: NodeState) -> set[str]:
    return {unit.name for unit in state.units if unit.step != Step.BASE}


def test_without_ray_nothing_of_it_is_anywhere_and_each_rank_has_a_unit() -> None:
    found = served_by("mp", 4, 2)
    assert [units(state) for state in found.values()] == [set(), *([{vllm.SERVER_UNIT}] * 4)]
    for name, state in found.items():
        assert not any(file.path == RAY_TOKEN for file in state.files), name
        assert "RAY_" not in content(state, RAY_ENV)
    for number, state in enumerate([*found.values()][1:]):
        unit = content(state, f"/etc/systemd/system/{vllm.SERVER_UNIT}")
        assert "ray-worker" not in unit
        words = unit.replace("\\\n", " ").split()
        leader, rank = number - number % 2, number % 2
        at = words.index(vllm.MEET)
        names = f"n{leader},n{leader + 1}"
        assert words[at + 1 : at + 5] == [f"192.168.10.1{leader}", "8001", str(rank), names]
        assert ("--headless" in words) == bool(rank)
        # The key is only where clients are answered.
        assert ("VLLM_API_KEY" in content(state, VLLM_ENV)) == (rank == 0)
        rules = content(state, "/etc/orchestrate/firewall.nft")
        assert ("tcp dport 8000 ip saddr !=" in rules) == (rank == 0)


def test_copies_in_one_ray_wait_for_and_ask_for_their_own_nodes() -> None:
    found = served_by("ray", 4, 2)
    assert [vllm.SERVER_UNIT in units(state) for state in found.values()] == [
        *[False, True, False, True, False]
    ]
    state = found["n2"]
    words = content(state, f"/etc/systemd/system/{vllm.SERVER_UNIT}").replace("\\\n", " ").split()
    at = words.index(vllm.WAIT_FOR_RAY)
    mine = "192.168.10.12,192.168.10.13"
    assert words[at + 2 : at + 4] == ["2", mine]
    environment = content(state, VLLM_ENV)
    assert f'ORCHESTRATE_NODES="{mine}"' in environment
    assert f'PYTHONPATH="{vllm.PLUGINS}"' in environment
    # Alone, a copy may use all nodes, and Ray chooses.
    alone = content(served_by("ray", 4, 1)["n0"], VLLM_ENV)
    assert "ORCHESTRATE_NODES" not in alone and "PYTHONPATH" not in alone
