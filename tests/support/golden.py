"""The golden tests' cases: data/golden/CASE/profile.yml -> the files and resources of each node,
and the scripts that machines boot by.

A new case is a new directory with a profile.yml. To write what is expected, then read the
difference before committing it:

    PYTHONPATH=tests .venv/bin/python -m support.golden
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from orchestrator.cluster import kernels, meet, on_nodes, wait_for_ray
from orchestrator.cluster.context import Context
from orchestrator.cluster.desired import desired
from orchestrator.models.catalog import ModelFile
from orchestrator.models.profiles import load
from orchestrator.models.serving import Layout
from orchestrator.node import kernel_archive, kernel_cache
from orchestrator.node.state import NodeState
from orchestrator.node.trust import HostIdentity, Secret
from orchestrator.profile import Profile
from orchestrator.provision import boot_parameters
from orchestrator.provision.identity import boot_files
from orchestrator.provision.netboot import boot_service_file
from orchestrator.provision.netboot.document import document, grub_cfg
from orchestrator.provision.netboot.images import Image, ImageChoice
from support import DATA

GOLDEN = DATA / "golden"
#: Every directory: one whose profile.yml leads nowhere has to fail, not to be left out.
CASES = sorted(path.name for path in GOLDEN.iterdir())

IDENTITY = HostIdentity(Secret("HOST KEY\n"), "HOST KEY, public\n", "HOST CERTIFICATE\n")
#: Sent to a node as it is: a second copy would only have to be kept up.
CODE = {
    boot_service_file().read_text(),
    *(
        Path(str(each.__file__)).read_text()
        for each in (wait_for_ray, meet, on_nodes, kernel_archive, kernel_cache)
    ),
}
IMAGE = Image("1" * 64, "golden")


def context(profile: Profile, token: str = "RAY TOKEN") -> Context:
    made = [one_context(view, token) for view in profile.services]
    return replace(made[0], each=tuple(made))


def one_context(profile: Profile, token: str) -> Context:
    """Of a profile of one model."""
    accelerators = sum(node.accelerators for node in profile.compute_nodes)
    copies = int(profile.serving.data_parallel)
    return Context(
        operator_public="ssh-ed25519 OPERATOR\n",
        ray_token=Secret(token),
        api_key=Secret("API KEY"),
        host_ca=Secret("HOST CA"),
        user_ca_public="USER CA\n",
        layout=Layout(accelerators // copies, 1, False, accelerators, copies),
        model_files=(
            ModelFile("config.json", "a" * 64, 700),
            ModelFile("model.safetensors", "b" * 64, 2_000_000),
        ),
        warm=(kernels.WarmCache("KEY", "c" * 64, 3_000_000, 40, "compute0", 0.0),),
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
    whole = document(profile, ImageChoice(current=IMAGE), "USER CA\n")
    texts = {"served/unknown.ipxe": whole["unknown"].pop(boot_parameters.IPXE)}
    for node in whole["nodes"].values():
        texts[f"served/{node['name']}.ipxe"] = node.pop(boot_parameters.IPXE)
        for path, file in node["files"].items():
            texts[f"served/{node['name']}{path}"] = file.pop("content")
    if boot_parameters.boots_shim(profile):
        texts["served/grub.cfg"] = grub_cfg(profile, IMAGE, "/images/ID")
    texts["served/boot.json"] = json.dumps(whole, indent=1, sort_keys=True) + "\n"
    return texts


def found(case: str) -> dict[str, str]:
    base = GOLDEN / case / "expected"
    files = (path for path in base.rglob("*") if path.is_file())
    return {str(path.relative_to(base)): path.read_text() for path in files}


def regenerate() -> None:
    for case in CASES:
        shutil.rmtree(GOLDEN / case / "expected", ignore_errors=True)
        for path, text in rendered(case).items():
            file = GOLDEN / case / "expected" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


if __name__ == "__main__":
    regenerate()
