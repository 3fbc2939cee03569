"""The endpoint of a cluster that others run: its API, its version, its metrics.

The key comes from a variable or a file, never from a command line, and is shown nowhere. Answers
are limited in size and time, since anything may answer there.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from orchestrator.core.connections import kept, public
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.visible import one_line
from orchestrator.node.trust import Secret
from orchestrator.performance import metrics
from orchestrator.profile.existing import Attached, Endpoint

#: Seconds to connect, and for an answer; of a question, as long as a slow model may take.
CONNECT, ANSWER, QUESTION = 10.0, 20.0, 300.0
#: Bytes of an answer.
MOST_BYTES = 8 << 20
#: Names of vLLM's metrics that say what the engine is.
CONFIGURED = re.compile(r"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class NotAnswered(UserError):
    """The endpoint gives no such answer."""


@dataclass(frozen=True)
class EndpointFacts:
    """What the endpoint said. ``unknown``: what it does not say, and why."""

    models: tuple[str, ...]
    #: The longest context, where it says so.
    context: int | None
    #: Files or repositories of the models, by their names.
    roots: Mapping[str, str]
    version: str
    #: Whether its metrics are vLLM's.
    metrics: bool
    configured: Mapping[str, str]
    #: The HTTP status of a request without a key.
    without_key: int
    unknown: tuple[str, ...] = field(default=())


def key(endpoint: Endpoint, base: Path) -> Secret | None:
    """The API key; None where the profile names none. Raises BadInput where it cannot be read."""
    if endpoint.key_env:
        value = os.environ.get(endpoint.key_env, "")
        if not value:
            raise BadInput(
                f"the variable {endpoint.key_env} with the endpoint's API key is not set",
                f"Run: read -rs {endpoint.key_env}; export {endpoint.key_env}",
            )
    elif endpoint.key_file:
        path = at(endpoint.key_file, base)
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the endpoint's API key cannot be read: {path}: {error}") from None
    else:
        return None
    if not re.fullmatch(r"[!-~]+", value):
        raise BadInput("the endpoint's API key is no single word of printable ASCII characters")
    return Secret(value)


def at(name: str, base: Path) -> Path:
    """A file that a profile names: relative to the profile."""
    return base / Path(name).expanduser()


def client(endpoint: Endpoint, base: Path) -> httpx.Client:
    """A client with the endpoint's key and authority. Raises BadInput where they cannot be read."""
    return httpx.Client(**_settings(endpoint, base))


def for_load(profile: Attached) -> httpx.AsyncClient:
    """The same, for as many requests at once as are wanted."""
    return httpx.AsyncClient(**_settings(profile.endpoint, profile.path.parent))


def _settings(endpoint: Endpoint, base: Path) -> dict[str, Any]:
    secret = key(endpoint, base)
    return {
        "base_url": endpoint.url,
        "headers": {"Authorization": f"Bearer {secret.reveal()}"} if secret else {},
        "timeout": httpx.Timeout(QUESTION, connect=CONNECT),
        "verify": _verified(endpoint, base),
        "limits": kept(),
        "trust_env": False,
        "follow_redirects": False,
    }


def client_of(profile: Attached) -> httpx.Client:
    return client(profile.endpoint, profile.path.parent)


def _verified(endpoint: Endpoint, base: Path) -> ssl.SSLContext:
    if not endpoint.ca:
        return public()
    path = at(endpoint.ca, base)
    try:
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        raise BadInput(
            f"the authority of the endpoint's certificate cannot be read: {path}: {error}",
            "It is a file of PEM certificates.",
        ) from None


def find(asked: httpx.Client) -> EndpointFacts:
    """Ask for everything that is told without asking the model. Raises NotAnswered."""
    listed = _models(asked)
    unknown: list[str] = []
    version = _version(asked)
    if not version:
        unknown.append("its version: /version does not answer as vLLM's does (a router in front?)")
    page = _page(asked, "/metrics")
    has_metrics = bool(metrics.values(page)) if page else False
    if not has_metrics:
        unknown.append("its metrics: /metrics has none of vLLM's (a router in front?)")
    configured = CONFIGURED.search(page or "")
    names = [str(each.get("id", "")) for each in listed]
    lengths = [each.get("max_model_len") for each in listed]
    context = next((each for each in lengths if isinstance(each, int)), None)
    return EndpointFacts(
        models=tuple(filter(None, names)),
        context=context,
        roots={
            str(each["id"]): str(each["root"])
            for each in listed
            if each.get("id") and each.get("root")
        },
        version=version,
        metrics=has_metrics,
        configured=dict(LABEL.findall(configured[1])) if configured else {},
        without_key=_without_key(asked),
        unknown=tuple(unknown),
    )


def _models(asked: httpx.Client) -> list[Mapping[str, Any]]:
    """The entries of /v1/models. Raises NotAnswered where they are none of an OpenAI-like API."""
    status, text = get(asked, "/v1/models")
    url = f"{asked.base_url}".rstrip("/")
    if status in (401, 403):
        given = (
            "the API key is wrong" if "authorization" in asked.headers else "it wants an API key"
        )
        raise NotAnswered(
            f"{url}/v1/models: HTTP {status}: {given}",
            "Name where the key is: --key-env VARIABLE or --key-file FILE; never on the command "
            "line.",
        )
    document = _json(text) if status == httpx.codes.OK else None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        seen = f"HTTP {status}" if status != httpx.codes.OK else "no list of models"
        raise NotAnswered(
            f"{url}/v1/models: {seen}: this is not an OpenAI-like API, as vLLM serves it",
            "Give the base URL without /v1, like http://HOST:8000.",
        )
    if not data:
        raise NotAnswered(f"{url} serves no model", "Start one, or ask the server behind it.")
    return data


def _version(asked: httpx.Client) -> str:
    text = _page(asked, "/version")
    document = _json(text) if text else None
    return str(document.get("version", "")) if isinstance(document, dict) else ""


def _without_key(asked: httpx.Client) -> int:
    request = asked.build_request("GET", "/v1/models")
    request.headers.pop("Authorization", None)
    return _sent(asked, request)[0]


def metrics_page(asked: httpx.Client) -> str:
    """The page of metrics; empty where there is none."""
    return _page(asked, "/metrics") or ""


def _page(asked: httpx.Client, path: str) -> str | None:
    """A page; None where it does not answer as asked."""
    try:
        status, text = get(asked, path)
    except NotAnswered:
        return None
    return text if status == httpx.codes.OK else None


def get(asked: httpx.Client, path: str) -> tuple[int, str]:
    """A page's status and text. Raises NotAnswered where nothing answers."""
    return _sent(asked, asked.build_request("GET", path))


def _sent(asked: httpx.Client, request: httpx.Request) -> tuple[int, str]:
    end = time.monotonic() + 2 * ANSWER
    request.extensions["timeout"] = httpx.Timeout(ANSWER, connect=CONNECT).as_dict()
    try:
        response = asked.send(request, stream=True)
        try:
            found = b""
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) > MOST_BYTES:
                    limit = f"more than {MOST_BYTES >> 20} MiB came"
                    raise NotAnswered(f"{request.url}: {limit}; ended")
                if time.monotonic() > end:
                    raise NotAnswered(f"{request.url}: no end after {2 * ANSWER:g} s; ended")
            return response.status_code, found.decode(errors="replace")
        finally:
            response.close()
    except httpx.HTTPError as error:
        raise NotAnswered(f"{request.url}: {why(error)}", _hint(error)) from None


def why(error: httpx.HTTPError) -> str:
    """An error of the connection in one line."""
    return one_line(str(error) or type(error).__name__)


def _hint(error: httpx.HTTPError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "Name the authority that signed its certificate: --ca FILE, a PEM file."
    return "Is it the right host and port, and does the server run? Try: curl URL/v1/models"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
