"""What a profile says about the models: which ones, and how each is served."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.core.source import Loc
from orchestrator.profile.section import Section
from orchestrator.profile.types import (
    BoolOrAuto,
    Environment,
    FlagName,
    FlagValue,
    HighPort,
    HubName,
    Line,
    ModelName,
    Name,
    NodeNames,
    Port,
    Revision,
    Size,
    VariableName,
    WholeOrAuto,
)


class HubModel(Section):
    """A model of the Hugging Face hub, at one commit."""

    repository: HubName = Field(description="Its Hugging Face repository, as OWNER/NAME.")
    revision: Revision | None = Field(
        default=None,
        description="The commit hash, all 40 digits. Without it the model cannot be served: a "
        "branch may change at any time.",
    )


class KernelCache(Section):
    """A directory in which a program keeps what it compiled."""

    variable: VariableName = Field(description="The variable that names the directory.")
    what: Line = Field(description="What is in it, for people.")
    env: Environment = Field(
        default={}, description="Further variables that this cache needs, set beside it."
    )


class CompileCache(Section):
    """Compiled kernels outlive a boot: Ray and vLLM keep them in directories for one image, driver
    and card, on the node's cache disk if it has one. `orchestrate image warm` fills new ones."""

    max_size: Size = Field(
        default=2 << 30,
        description="Maximum size of an archive of `orchestrate image warm`, and the free space"
        " wanted on a cache disk: caches of other images, drivers and cards are"
        " removed for it.",
    )
    directories: tuple[KernelCache, ...] = Field(min_length=1, description="The directories.")


class Served(Section):
    """A model, and how it is served: what each of several has of its own."""

    model: ModelName = Field(
        description="A key of `models`, or a directory of the checkout's `models/`. Clients ask "
        "for the model by this name."
    )
    nodes: NodeNames | None = Field(
        default=None,
        description="The compute nodes that the model is served on, like `compute[0-3]`; no other"
        " model is on them. Default, for the first model: all that no entry of `also` names.",
    )
    tensor_parallel: WholeOrAuto = Field(
        default="auto",
        description="The number of accelerators that each layer is split over (tensor parallelism)."
        " `auto`: as many as the model allows.",
    )
    pipeline_parallel: WholeOrAuto = Field(
        default=1, description="The number of pipeline stages that the layers are divided into."
    )
    data_parallel: WholeOrAuto = Field(
        default=1,
        description="The number of copies of the model, each on a group of nodes of its own: the"
        " model's nodes in order, divided evenly. The endpoint sends a request to the copy with"
        " the fewest. `auto`: as many as the nodes hold with the two sizes above.",
    )
    expert_parallel: BoolOrAuto = Field(
        default="auto",
        description="Expert parallelism: each accelerator holds whole experts instead of a slice of"
        " each. `auto`: on if the model has experts and the image supports it.",
    )
    args: dict[FlagName, FlagValue] = Field(
        default={},
        description="Further flags of `vllm serve`, in vLLM's spelling without leading dashes. "
        "`true` is a flag without a value, `false` its `--no-` form.",
    )
    env: Environment = Field(
        default={},
        description="Further environment variables of the vLLM server, in addition to `ray.env`, "
        "with the same placeholders.",
    )


class Serving(Served):
    """`vllm serve`: on the first compute node of each copy, reached through the control node."""

    layout: Literal["auto"] | None = Field(
        default=None,
        description="`auto`: `up` takes the layout that the forecasts rank first for `workload`"
        " within `bench.targets`, writes it down, and keeps it until told otherwise. Default: the"
        " sizes above. Only with one model, on all compute nodes.",
    )
    workload: Name | None = Field(
        default=None,
        description="The workload that the model is served for, a key of `bench.workloads`."
        " `layout: auto` needs it, and `plan --serving` ranks by it.",
    )
    executor: Literal["ray", "mp"] = Field(
        default="ray",
        description="What runs a copy's ranks. `ray`: actors of Ray. `mp`: vLLM's own processes,"
        " started together on the copy's nodes; no Ray runs then.",
    )
    meeting_port: HighPort = Field(
        default=8001,
        description="With `executor: mp`: the port on a copy's first node where its other nodes"
        " meet it.",
    )
    model_cache: Literal["memory", "disk"] = Field(
        default="memory",
        description="Where compute nodes keep the model. `memory`: fetched after each boot. `disk`:"
        " on the layer cache disk. There it survives a reboot, its hash is checked, and"
        " earlier models stay while space permits.",
    )
    compile_cache: CompileCache | None = Field(
        default=None,
        description="Directories of compiled kernels that outlive a boot. Default: each boot"
        " compiles again what is compiled at first use.",
    )
    port: HighPort = Field(description="The port of vLLM on each copy's first compute node.")
    endpoint_port: Port = Field(
        description="The port of the endpoint on the control node, for clients."
    )
    also: tuple[Served, ...] = Field(
        default=(),
        description="Further models, each on compute nodes of its own. The endpoint leads a request"
        " to the model that it names. All else is as for the first model.",
    )

    @property
    def by_ray(self) -> bool:
        """Whether Ray runs the model's ranks."""
        return self.executor == "ray"

    @property
    def entries(self) -> dict[Loc, Served]:
        """Each model's part, by its place in the profile; the first one's first."""
        further: dict[Loc, Served] = {
            ("serving", "also", index): each for index, each in enumerate(self.also)
        }
        return {("serving",): self, **further}
