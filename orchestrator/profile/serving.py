"""What a profile says about the model: which one, and how it is served."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import (
    BoolOrAuto,
    Environment,
    FlagName,
    FlagValue,
    HighPort,
    HubName,
    ModelName,
    Port,
    Revision,
    WholeOrAuto,
)


class HubModel(Section):
    """A model of the Hugging Face hub, at one commit."""

    repository: HubName = Field(description="Its repository on the hub, as OWNER/NAME.")
    revision: Revision | None = Field(
        default=None,
        description="The commit, with all its 40 digits. Without it the model is not served: what "
        "a branch holds may be something else tomorrow.",
    )


class Serving(Section):
    """`vllm serve`: on the first compute node, reached through the control node."""

    model: ModelName = Field(
        description="A key of `models`, or a directory of the checkout's `models/`. Clients ask "
        "for the model by this name."
    )
    tensor_parallel: WholeOrAuto = Field(
        default="auto",
        description="Over how many accelerators each layer is spread. `auto` uses as many "
        "accelerators as the model can be spread over.",
    )
    pipeline_parallel: WholeOrAuto = Field(
        default=1, description="Into how many stages the layers are cut, one after the other."
    )
    expert_parallel: BoolOrAuto = Field(
        default="auto",
        description="Whether whole experts are spread instead of slices of each. `auto`: where "
        "the model has experts and the image can.",
    )
    model_cache: Literal["memory", "disk"] = Field(
        default="memory",
        description="Where compute nodes keep the model: in memory, fetched after each boot, or on "
        "the disk that keeps layers, where it is found again and checked by its hash, and where "
        "models served before stay as long as there is room.",
    )
    port: HighPort = Field(description="Where vLLM listens, on the first compute node.")
    endpoint_port: Port = Field(description="Where clients find it, on the control node.")
    args: dict[FlagName, FlagValue] = Field(
        default={},
        description="Further flags of `vllm serve`, as vLLM spells them, without dashes. `true` "
        "is a flag without a value, `false` its `--no-` form.",
    )
    env: Environment = Field(
        default={},
        description="Further variables for the vLLM server, beside those of `ray.env`; "
        "placeholders as there.",
    )
