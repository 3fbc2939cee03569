"""Golden tests: tests/golden/CASE/profile.yml -> the files and resources of each node, and the
scripts that machines boot by.

A new case is a new directory with a profile.yml. To write what is expected, then read the
difference before committing it:

    PYTHONPATH=. python tests/unit/test_state.py
"""

import dataclasses
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator import wait_for_ray
from orchestrator.identity import boot_files
from orchestrator.netboot import boot_service_file, wire
from orchestrator.netboot.document import document, grub_cfg
from orchestrator.netboot.images import Choice, Image
from orchestrator.profile import Profile, load
from orchestrator.resources import Step
from orchestrator.serving import Layout
from orchestrator.state import Context, ModelFile, NodeState, desired
from orchestrator.templating import env_value, exec_word
from orchestrator.trust import HostIdentity, Secret

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/profile.yml"))

IDENTITY = HostIdentity(Secret("HOST KEY\n"), "HOST KEY, public\n", "HOST CERTIFICATE\n")
#: Sent to a node as it is: a second copy would only have to be kept up.
CODE = {boot_service_file().read_text(), Path(wait_for_ray.__file__).read_text()}
IMAGE = Image("1" * 64, "golden")
HOSTILE = ["", "a b", 'say "x"', "$HOME", "`id`", "back\\slash", "100%", "'", "X; rm -rf ~", "#"]


def context(profile: Profile, token: str = "RAY TOKEN") -> Context:
    accelerators = sum(node.accelerators for node in profile.compute_nodes)
    return Context(
        operator_public="ssh-ed25519 OPERATOR\n",
        ray_token=Secret(token),
        api_key=Secret("API KEY"),
        host_ca=Secret("HOST CA"),
        user_ca_public="USER CA\n",
        layout=Layout(tensor=accelerators, pipeline=1, expert=False, accelerators=accelerators),
        model_files=(
            ModelFile("config.json", "a" * 64, 700),
            ModelFile("model.safetensors", "b" * 64, 2_000_000),
        ),
    )


def states(profile: Profile) -> dict[str, NodeState]:
    return {node.name: desired(profile, node, context(profile)) for node in profile.nodes}


def rendered(case: str) -> dict[str, str]:
    """Path below the case's ``expected`` -> text: NODE/boot/..., NODE/root/..., NODE/resources."""
    profile = load(GOLDEN / case / "profile.yml")
    texts: dict[str, str] = {}
    for node in profile.nodes:
        lines = []
        for path, boot_file in boot_files(profile, node, IDENTITY, "USER CA\n").items():
            texts[f"{node.name}/boot{path}"] = boot_file.content
            lines.append(f"boot {path} {boot_file.mode:04o}")
        state = desired(profile, node, context(profile))
        lines += [f"{item.step} sysctl {item.name} {item.value}" for item in state.sysctls]
        for link in state.links:
            lines.append(f"{link.step} link {link.name} {' '.join(link.addresses)}")
            # What networkd is told is what it was told at boot.
            assert link.content == texts[f"{node.name}/boot{link.file}"]
        for user in state.users:
            lines.append(f"{user.step} user {user.name} {user.uid} {user.shell} {user.groups}")
        for entry in state.directories:
            lines.append(f"{entry.step} directory {entry.path} {entry.owner} {entry.mode}")
            room = f"memory below {entry.shelf}" if entry.in_memory else entry.shelf
            lines += [f"    holds {name} {size} on {room}" for name, size in entry.holds]
        for file in state.files:
            origin = f"from {file.url} {file.sha256}" if file.content is None else ""
            secret = "secret" if file.secret else ""
            words = (file.step, "file", file.path, file.owner, file.mode, secret, origin)
            lines.append(" ".join(word for word in words if word))
            if file.content is not None and file.content not in CODE:
                texts[f"{node.name}/root{file.path}"] = file.content
        for unit in state.units:
            lines.append(f"{unit.step} unit {unit.name} {unit.state}")
            lines += [f"    restarts on {path}" for path in unit.restart_on]
        texts[f"{node.name}/resources"] = "\n".join(lines) + "\n"
    return texts | served(profile)


def served(profile: Profile) -> dict[str, str]:
    """What is served to machines that boot; ``boot.json`` without the texts that stand beside."""
    whole = document(profile, Choice(current=IMAGE), "USER CA\n")
    texts = {"served/unknown.ipxe": whole["unknown"].pop(wire.IPXE)}
    for node in whole["nodes"].values():
        texts[f"served/{node['name']}.ipxe"] = node.pop(wire.IPXE)
        for path, file in node["files"].items():
            texts[f"served/{node['name']}{path}"] = file.pop("content")
    if profile.boot.secure:
        texts["served/grub.cfg"] = grub_cfg(profile, IMAGE, "/images/ID")
    texts["served/boot.json"] = json.dumps(whole, indent=1, sort_keys=True) + "\n"
    return texts


def found(case: str) -> dict[str, str]:
    base = GOLDEN / case / "expected"
    files = (path for path in base.rglob("*") if path.is_file())
    return {str(path.relative_to(base)): path.read_text() for path in files}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    assert rendered(case) == found(case), "to accept: PYTHONPATH=. python tests/unit/test_state.py"


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
    for state in states(load(GOLDEN / case / "profile.yml")).values():
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


def test_secrets_are_in_the_document_but_not_in_what_is_printed() -> None:
    profile = load(GOLDEN / "sim" / "profile.yml")
    state = desired(profile, profile.server, context(profile))
    assert "RAY TOKEN" in json.dumps(state.document())
    assert "RAY TOKEN" not in repr(state)
    assert "API KEY" not in repr(state)
    shown = [file for file in state.files if not file.secret]
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


def regenerate() -> None:
    for case in CASES:
        shutil.rmtree(GOLDEN / case / "expected", ignore_errors=True)
        for path, text in rendered(case).items():
            file = GOLDEN / case / "expected" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


if __name__ == "__main__":
    regenerate()
