"""`orchestrate attach`: write the profile of a cluster that others run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.choice import json_option
from orchestrator.core.console import err, out, print_json

if TYPE_CHECKING:
    from orchestrator.attach.find import ClusterFound

OPTIONS = (
    click.option(
        "--node",
        "hosts",
        metavar="HOST",
        multiple=True,
        help="A machine of the cluster, as ssh takes it; repeat it. 'localhost': this computer, "
        "without SSH.",
    ),
    click.option(
        "--enter",
        metavar="WORDS",
        default="",
        help="The command that enters vLLM's container on the nodes, like 'docker exec -i vllm'.",
    ),
    click.option(
        "--python", default="python3", show_default=True, help="Python 3.9 or later on the nodes."
    ),
    click.option("--model", help="The model that is meant, if the endpoint serves several."),
    click.option("--key-env", metavar="VARIABLE", help="The variable that holds the API key."),
    click.option("--key-file", metavar="FILE", help="The file that holds the API key."),
    click.option("--ca", metavar="FILE", help="The authority of its certificate, a PEM file."),
    click.option("--name", help="The cluster's name.  [default: from the URL]"),
)


@dataclass(frozen=True)
class Attaching:
    """What the user says of the cluster."""

    url: str
    hosts: Sequence[str]
    enter: str
    python: str
    model: str | None
    key_env: str | None
    key_file: str | None
    ca: str | None
    name: str | None

    def found(self) -> ClusterFound:
        """Ask the cluster. Raises UserError."""
        from orchestrator.attach.compose import node_names
        from orchestrator.attach.find import find
        from orchestrator.profile.existing import AttachedNode, Endpoint

        files = {"ca": self.ca, "key_file": self.key_file}
        absolute = {
            key: str(Path(each).expanduser().absolute()) for key, each in files.items() if each
        }
        url = self.url.rstrip("/").removesuffix("/v1")
        if self.name:
            _valid_name(self.name)
        endpoint = _made("URL", Endpoint, url=url, key_env=self.key_env, **absolute)
        try:
            enter = tuple(shlex.split(self.enter))
        except ValueError as error:
            raise click.UsageError(f"--enter {self.enter}: {error}") from None
        nodes = [
            _made("--node", AttachedNode, name=name, host=host, enter=enter, python=self.python)
            for host, name in zip(self.hosts, node_names(self.hosts), strict=True)
        ]
        return find(endpoint, nodes, self.model, Path.cwd())

    def profile_name(self, found: ClusterFound) -> str:
        from orchestrator.attach.compose import name_of

        return self.name or name_of(found.endpoint.url)


def asking(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb URL and what describes a cluster, as one parameter `asked`."""

    @wraps(verb)
    def with_asked(**given: Any) -> Any:
        mine = {name: given.pop(name) for name in Attaching.__dataclass_fields__}
        if mine["key_env"] and mine["key_file"]:
            raise click.UsageError("--key-env and --key-file cannot be combined")
        return verb(asked=Attaching(**mine), **given)

    for option in reversed(OPTIONS):
        with_asked = option(with_asked)
    return click.argument("url")(with_asked)


@click.command()
@asking
@click.option(
    "--out",
    "to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The profile's file.  [default: NAME.yml here]",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
def attach(asked: Attaching, to: Path | None, force: bool, as_json: bool) -> None:
    """Ask a cluster that others run what it is, and write its profile.

    URL is the endpoint, like http://box0:8000. It is asked for its models, version and metrics.
    Each node is asked, over your own ssh and as your user, what runs there: vLLM's processes, their
    flags and ranks, interfaces, accelerators, versions. One program is sent on standard input;
    nothing is installed, written or left on a node, and no root is needed. Host keys are always
    checked.

    It prints what it found, and what it could not find out. Exit code 1 if a node did not answer.

    \b
    Example: orchestrate attach http://localhost:8000 --node localhost
    Example: orchestrate attach https://llm.example --key-env LLM_KEY --node box0 --node box1
    """
    from orchestrator.attach import compose
    from orchestrator.attach.find import told
    from orchestrator.core.errors import BadInput, UserError
    from orchestrator.core.files import write

    if to and to.exists() and not force:
        raise BadInput(f"{to} exists", "Name another file with --out, or add --force.")
    found = asked.found()
    name = asked.profile_name(found)
    path = to or Path(f"{name}.yml")
    if path.exists() and not force:
        raise BadInput(f"{path} exists", "Name another file with --out, or add --force.")
    try:
        write(path, compose.text(found, name))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "Name a file elsewhere with --out.") from None
    _check(path)
    if as_json:
        print_json({"profile": str(path.absolute()), **found.document()})
    else:
        for line in told(found):
            out.print(line)
        for line in found.unknown:
            out.print(f"not found out: {line}")
        out.print(f"Written: {path}. Check it: orchestrate verify --profile {_as_option(path)}")
    silent = [each for each in found.nodes if each.facts is None]
    for each in silent:
        err.print(f"no answer: {each.error}")
    raise SystemExit(1 if silent else 0)


def _as_option(path: Path) -> str:
    """A path as --profile takes it: without a / it has to end in .yml."""
    return shlex.quote(str(path if path.suffix in (".yml", ".yaml") else path.absolute()))


def _check(path: Path) -> None:
    """Read what was written: a name that no profile can have is said here. Raises BadInput."""
    from orchestrator.profile.load import load_attached

    load_attached(path)


def _valid_name(name: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from orchestrator.core.errors import BadInput
    from orchestrator.profile.types import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        text = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise BadInput(f"--name: {text}") from None


def _made(what: str, model: Any, **keys: Any) -> Any:
    """A section from options. Raises BadInput where one is wrong."""
    from pydantic import ValidationError

    from orchestrator.core.errors import BadInput

    try:
        return model(**keys)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        text = first["msg"].removeprefix("Value error, ")
        key = str(first["loc"][0])
        option = {"url": "URL", "host": "--node"}.get(key, f"--{key.replace('_', '-')}")
        raise BadInput(f"{option or what}: {text}") from None
