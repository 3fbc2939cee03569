"""The desired state of the endpoint: nginx on the control node, before vLLM.

With several models it reads which one a request is for. nginx cannot parse JSON. But inside a JSON
string quotes are escaped: "model": "NAME" stands in a body only where a key says so. A first
server finds the name in the body and sends it along in a header; a second one, which only the
first asks, leads the request to that model's servers. vLLM checks the name again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.templating import render
from orchestrator.models.serving import copies
from orchestrator.node.paths import ETC
from orchestrator.node.resources import File, Resource, Step, service
from orchestrator.provision.netboot import state as netboot

if TYPE_CHECKING:
    from orchestrator.cluster.context import Context
    from orchestrator.profile import Profile

FRONT_UNIT = "nginx.service"
FRONT_KEY = f"{ETC}/endpoint-key.conf"
#: With several models: where the second server listens. The directory is systemd's, which removes
#: it with the unit: a socket that is left behind would keep nginx from starting.
ROUTER = "orchestrate-router"
ROUTER_SOCKET = f"/run/{ROUTER}/socket"


@dataclass(frozen=True)
class Routed:
    """A model behind the endpoint: its upstreams' names end with ``id``; ``servers`` by node."""

    id: str
    name: str
    servers: Mapping[str, str]

    @property
    def pattern(self) -> str:
        """What a request for it has in its body: a regular expression inside quotes of nginx's."""
        # A JSON writer may escape the slash.
        name = re.escape(self.name).replace("/", r"\\?/")
        return rf'(?<!\\)"model"\s*:\s*"{name}"'.replace(r"\\", r"\\\\")


def resources(profile: Profile, context: Context) -> Iterable[Resource]:
    """The endpoint's web server. It has the API key, so that nothing of strangers reaches vLLM."""
    key = render("endpoint-key.conf", key=context.api_key.reveal())
    yield File(Step.BASE, FRONT_KEY, key, mode="0600", secret=True)
    views = list(zip(profile.services, context.services, strict=True))
    models = [
        Routed(
            f"-{number}" if len(views) > 1 else "",
            view.serving.model,
            {
                copy.server.name: f"{view.ray_address(copy.server)}:{view.serving.port}"
                for copy in copies(view, own.layout.data)
            },
        )
        for number, (view, own) in enumerate(views)
    ]
    text = render(
        "nginx.conf",
        pid=netboot.WEB_PID,
        key=FRONT_KEY,
        endpoint=f"{profile.ray_address(profile.control)}:{profile.serving.endpoint_port}",
        models=models,
        socket=ROUTER_SOCKET,
        listed=json.dumps(_listed(models), separators=(",", ":")),
        unknown=json.dumps(_unknown(models), separators=(",", ":")),
    )
    files = {netboot.WEB_CONFIG: text}
    if len(models) > 1:
        unit = render("nginx-router.conf", directory=ROUTER)
        files[f"/etc/systemd/system/{FRONT_UNIT}.d/50-orchestrate.conf"] = unit
    yield from service(Step.BASE, FRONT_UNIT, files, [FRONT_KEY])


def _listed(models: Iterable[Routed]) -> object:
    """What OpenAI's API says of its models."""
    data = [
        {"id": each.name, "object": "model", "created": 0, "owned_by": "vllm"} for each in models
    ]
    return {"object": "list", "data": data}


def _unknown(models: Iterable[Routed]) -> object:
    """What a request without a known model is told, as vLLM would."""
    text = f"The request names no model that is served here: {', '.join(x.name for x in models)}."
    return {"error": {"message": text, "type": "NotFoundError", "param": "model", "code": 404}}
