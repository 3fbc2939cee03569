"""The desired state of a node: what has to be on it and run on it, computed from the profile.

Pure: the same profile and context give the same documents. The agent (agent.py) makes a node so;
a resource's ``step`` lets ``up`` bring first the base everywhere, then Ray, then serving.
What an earlier document had and a new one leaves out, the agent removes.

Every path here has only root's directories above it: the agent refuses others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.cluster import front, kernels, vllm
from orchestrator.cluster.context import Context
from orchestrator.cluster.vllm import (
    WORKER_UNIT,
    environment_file,
    model_directory,
    ray_head,
)
from orchestrator.core.templating import render
from orchestrator.models.serving import copy_of
from orchestrator.node.firewall import IN_FORCE, firewall
from orchestrator.node.paths import (
    CACHE,
    ETC,
    LASTING,
    MODELS,
    RAY_ENV,
    RAY_TABLES,
    RAY_TOKEN,
    VENV,
    WITH_ENVIRONMENT,
)
from orchestrator.node.resources import (
    Directory,
    File,
    NetworkLink,
    Resource,
    Step,
    Sysctl,
    Unit,
    User,
    service,
)
from orchestrator.node.state import NodeState
from orchestrator.provision import boot_parameters
from orchestrator.provision.identity import (
    AUTHORIZED_KEYS,
    RESOLVERS,
    USER_CA,
    hosts,
    network_file,
    resolvers,
)
from orchestrator.provision.netboot import state as netboot

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

MODELS_UNIT = "orchestrate-models.service"
HEAD_UNIT = "ray-head.service"

#: Seconds that Ray's workers, and vLLM with them, go on without a head. Theirs comes back with its
#: tables; another one refuses them at once. So this only has to be longer than a repair takes.
HEAD_AWAY = 24 * 3600

#: Groups that own accelerators' devices, where an image has them.
DEVICE_GROUPS = ("render", "video")


def desired(profile: Profile, node: Node, context: Context) -> NodeState:
    """The state that ``node`` has to be in."""
    models = list(zip(profile.services, context.services, strict=True))
    # What a compute node serves: no other model is on it, and none at all on some.
    served = next((each for each in models if node in each[0].compute_nodes), None)
    copy = copy_of(served[0], served[1].layout, node) if served else None
    items: list[Resource] = [
        *_kernel(profile),
        *_links(profile, node),
        *_accounts(profile, context),
        *_base_files(profile, node, context),
        *_clock(profile, node),
        *firewall(profile, node, serves=copy is not None and copy.server is node),
        *_ray(profile, node, context),
    ]
    if profile.is_control(node):
        items += front.resources(profile, context)
        items += netboot.control(profile, context.host_ca)
    else:
        items += netboot.compute(profile, node, front.FRONT_UNIT)
        items += _model_cache(profile)
        server = boot_parameters.server(profile)
        items += kernels.resources(profile, node, context.warm, server)
    if served:
        items += _model(*served)
    if served and copy:
        items += vllm.resources(served[0], node, copy, served[1])
    files = tuple(item for item in items if isinstance(item, File))
    return NodeState(
        node=node.name,
        sysctls=tuple(item for item in items if isinstance(item, Sysctl)),
        links=tuple(item for item in items if isinstance(item, NetworkLink)),
        users=tuple(item for item in items if isinstance(item, User)),
        directories=tuple(item for item in items if isinstance(item, Directory)),
        files=files,
        units=tuple(_revised(item, files) for item in items if isinstance(item, Unit)),
    )


def _kernel(profile: Profile) -> Iterable[Resource]:
    for name, value in profile.sysctls.items():
        yield Sysctl(Step.BASE, name, str(value))


def _links(profile: Profile, node: Node) -> Iterable[Resource]:
    """Each link as it was at boot; one that the profile got since comes without a boot."""
    for network, link in node.links.items():
        path, content = network_file(profile, node, network)
        address = f"{link.address}/{profile.networks[network].subnet.prefixlen}"
        yield NetworkLink(Step.BASE, link.interface, (address,), path, content)


def _accounts(profile: Profile, context: Context) -> Iterable[Resource]:
    yield Directory(Step.BASE, AUTHORIZED_KEYS)
    for account in profile.users.accounts:
        is_service = account.name == profile.users.service
        groups = DEVICE_GROUPS if is_service else ()
        yield User(Step.BASE, account.name, account.uid, groups=groups)
        # Root's, not the account's: whoever has it cannot let others in, nor lead root astray.
        keys = "".join(f"{key.strip()}\n" for key in (*account.keys, context.operator_public))
        yield File(Step.BASE, f"{AUTHORIZED_KEYS}/{account.name}", keys)


def _base_files(profile: Profile, node: Node, context: Context) -> Iterable[Resource]:
    yield Directory(Step.BASE, ETC)
    # As at boot, except after a rotation. sshd reads it at each login.
    yield File(Step.BASE, USER_CA, context.user_ca_public)
    yield File(Step.BASE, "/etc/hosts", hosts(profile, node))
    if profile.boot.dns:
        yield File(Step.BASE, RESOLVERS, resolvers(profile))
    text = render("profile.sh", venv=VENV, ray_env=RAY_ENV, ray_address=ray_head(profile))
    yield File(Step.BASE, "/etc/profile.d/orchestrate.sh", text)


def _clock(profile: Profile, node: Node) -> Iterable[Resource]:
    """Nodes follow the control node's clock, which its own host keeps.

    Where the node is a container without the right to set a clock, Debian's unit declines to
    start, which is right: the host's clock is its clock. The control node's serves all the same.
    """
    control = profile.is_control(node)
    unit = "chrony.service"
    files = {
        "/etc/chrony/chrony.conf": render(
            "chrony.conf",
            control=control,
            server=profile.boot_link(profile.control).address,
            subnets=[network.subnet for network in profile.networks.values()],
        )
    }
    if control:
        files[f"/etc/systemd/system/{unit}.d/50-orchestrate.conf"] = render("chrony-serve.conf")
    yield from service(Step.BASE, unit, files)


def _ray(profile: Profile, node: Node, context: Context) -> Iterable[Resource]:
    account = profile.users.service
    yield File(Step.RAY, RAY_ENV, environment_file(_ray_environment(profile, node)))
    if not profile.serving.by_ray:
        return
    yield File(
        Step.RAY,
        RAY_TOKEN,
        context.ray_token.reveal(),
        owner=account,
        group=account,
        mode="0600",
        secret=True,
    )
    if profile.is_control(node):
        path = f"{LASTING}/{RAY_TABLES}"
        yield Directory(Step.RAY, path, owner=account, group=account, mode="0700")
    unit = HEAD_UNIT if profile.is_control(node) else WORKER_UNIT
    text = render(
        unit,
        venv=VENV,
        with_environment=WITH_ENVIRONMENT,
        user=account,
        environment=RAY_ENV,
        address=profile.ray_address(node),
        head=ray_head(profile),
        accelerators=node.accelerators,
        ray=profile.ray,
        firewall=IN_FORCE,
    )
    yield from service(Step.RAY, unit, {f"/etc/systemd/system/{unit}": text}, [RAY_ENV, RAY_TOKEN])


def _model_cache(profile: Profile) -> Iterable[Resource]:
    """Before the model's files come: where they lie."""
    if profile.serving.model_cache == "disk":
        text = render(MODELS_UNIT, cache=CACHE, models=MODELS)
        yield from service(Step.BASE, MODELS_UNIT, {f"/etc/systemd/system/{MODELS_UNIT}": text})


def _model(profile: Profile, context: Context) -> Iterable[Resource]:
    if context.model_files:
        yield Directory(
            Step.SERVING,
            model_directory(profile),
            holds=tuple((file.path, file.size) for file in context.model_files),
            shelf=MODELS,
            in_memory=profile.serving.model_cache == "memory",
        )
    base = f"{boot_parameters.server(profile)}/models/{profile.serving.model}"
    for file in context.model_files:
        yield File(
            Step.SERVING,
            f"{model_directory(profile)}/{file.path}",
            url=f"{base}/{file.path}",
            sha256=file.sha256,
            size=file.size,
        )


def _revised(unit: Unit, files: Sequence[File]) -> Unit:
    read = [
        (file.path, file.digest, file.owner, file.group, file.mode)
        for file in files
        if file.path in unit.restart_on
    ]
    return replace(unit, revision=hashlib.sha256(json.dumps(sorted(read)).encode()).hexdigest())


def _ray_environment(profile: Profile, node: Node) -> dict[str, str]:
    """What Ray's processes inherit, and vLLM's workers from them: set before `ray start`."""
    return {
        **(_of_ray(profile, node) if profile.serving.by_ray else {}),
        "VLLM_HOST_IP": profile.ray_address(node),
        "GLOO_SOCKET_IFNAME": node.links[profile.ray.network].interface,
        **kernels.environment(profile, node),
        **profile.ray_env(node),
    }


def _of_ray(profile: Profile, node: Node) -> dict[str, str]:
    """Ray's own variables."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": RAY_TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its logs are in memory, and by default may have 3 GiB each.
        "RAY_ROTATION_MAX_BYTES": str(16 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "1",
        # Nothing is drained to another node; a stop would only take 30 s longer.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_AWAY),
        # Ray runs workers as nice as 15. The model's ranks are such, and wait for each other at
        # each layer: whatever else a node does would hold up all of them.
        "RAY_worker_niceness": "0",
        **(_head_tables() if profile.is_control(node) else {}),
    }


def _head_tables() -> dict[str, str]:
    """The head keeps its tables on the control host's disk: it restarts, its workers do not."""
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{LASTING}/{RAY_TABLES}"}
