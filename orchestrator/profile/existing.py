"""A cluster that others run (`machines: existing`): where it is, and what it serves.

It has no power, image, netboot or root here, so none of the sections that are about these.
`orchestrate attach` writes such a profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from orchestrator.core.source import Loc
from orchestrator.profile.bench import Bench, workloads_are_possible
from orchestrator.profile.section import Section, WholeFile
from orchestrator.profile.types import (
    Address,
    BaseUrl,
    Destination,
    Environment,
    FlagName,
    FlagValue,
    HostName,
    Line,
    Name,
    VariableName,
)
from orchestrator.profile.verification import Verification

#: The value of `machines` that means this kind of profile.
EXISTING = "existing"
#: The host that is this computer: no SSH.
HERE = "localhost"
#: What probes list the ranks' links under: each node has one address here.
RANKS_NETWORK = "ranks"


class Endpoint(Section):
    """The endpoint of the model's API. The key itself is never in a profile."""

    url: BaseUrl = Field(
        description="Its base URL, without `/v1`, like `https://llm.example:8443`."
    )
    ca: Line | None = Field(
        default=None,
        description="A PEM file of the authority that signed its certificate. Default: the "
        "authorities that Python's certifi lists.",
    )
    key_env: VariableName | None = Field(
        default=None, description="The environment variable that holds the API key."
    )
    key_file: Line | None = Field(default=None, description="The file that holds the API key.")


class AttachedNode(Section):
    """A machine of the cluster."""

    name: HostName = Field(description="Its unique name in this profile.")
    host: Destination = Field(
        description="The SSH destination: USER@HOST, or a name of `~/.ssh/config`. `localhost` is "
        "this computer, without SSH."
    )
    enter: tuple[Line, ...] = Field(
        default=(),
        description="The command that enters the container in which vLLM runs, a list, like "
        "`[docker, exec, -i, vllm]`. It has to pass its standard input on.",
    )
    python: Line = Field(
        default="python3",
        description="The Python there (3.9 or later) that runs what is asked. Standard library "
        "only.",
    )
    engine: Line | None = Field(
        default=None,
        description="The Python that vLLM runs with, in its container if there is one: `probe` "
        "measures with its torch.",
    )
    address: Address | None = Field(
        default=None,
        description="Its address on the network that the ranks use, for `probe`.",
    )
    ranks: int = Field(
        default=0,
        ge=0,
        le=64,
        description="The number of the model's ranks on this machine; `verify` compares it.",
    )


class AttachedServing(Section):
    """What the cluster serves, as `attach` read it from the processes."""

    model: Line = Field(description="The name by which clients ask for the model.")
    tensor_parallel: int = Field(default=1, ge=1, description="Tensor parallel size.")
    pipeline_parallel: int = Field(default=1, ge=1, description="Pipeline parallel size.")
    data_parallel: int = Field(default=1, ge=1, description="Data parallel size.")
    expert_parallel: bool = Field(default=False, description="Whether expert parallelism is on.")
    args: dict[FlagName, FlagValue] = Field(
        default={}, description="The other flags of `vllm serve`, without leading dashes."
    )
    env: Environment = Field(
        default={}, description="Its environment variables that concern the model's speed."
    )


class Attached(WholeFile):
    """A cluster that others run. `orchestrate attach` writes such a profile."""

    name: Name = Field(description="The cluster's name: its runs are kept under it.")
    machines: Literal["existing"] = Field(
        description="`existing`: others run it. It has no power, image or netboot here."
    )
    endpoint: Endpoint = Field(description=Endpoint.__doc__)
    nodes: tuple[AttachedNode, ...] = Field(
        default=(),
        description="Its machines, the one of vLLM's server first. Without any, only the endpoint "
        "is asked.",
    )
    serving: AttachedServing = Field(description=AttachedServing.__doc__)
    verification: Verification = Field(default=Verification(), description=Verification.__doc__)
    bench: Bench = Field(default=Bench(), description=Bench.__doc__)

    def serving_env(self) -> dict[str, str]:
        """The variables of the vLLM server."""
        return self.serving.env


def one_way_to_the_key(endpoint: Endpoint) -> Iterator[tuple[Loc, str]]:
    if endpoint.key_env and endpoint.key_file:
        yield ("endpoint", "key_file"), "key_env names the key too; keep one"


def nodes_have_names_of_their_own(nodes: tuple[AttachedNode, ...]) -> Iterator[tuple[Loc, str]]:
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.name in seen:
            text = f"{node.name} is also the name of another node; names must be unique"
            yield ("nodes", index, "name"), text
        seen.add(node.name)


def no_question_needs_a_checkout(verification: Verification) -> Iterator[tuple[Loc, str]]:
    if verification.first_model:
        text = "has no effect on a cluster that others run; leave it out"
        yield ("verification", "first_model"), text


CHECKS = (
    one_way_to_the_key,
    nodes_have_names_of_their_own,
    no_question_needs_a_checkout,
    workloads_are_possible,
)
