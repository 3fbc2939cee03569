"""What a profile says about the first run, the steps of `orchestrate verify --hardware`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import Line, Size

#: In the order in which they are made.
FirstRunStep = Literal[
    "present",
    "torch",
    "commands",
    "memory",
    "product",
    "int4",
    "triton",
    "pressure",
    "collective",
    "layer",
    "model",
    "serving",
]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class FirstRun(Section):
    """The steps of `orchestrate verify --hardware`: limits, advice, and what they use."""

    in_up: bool = Field(
        default=True,
        description="If the kind has `torch`, `orchestrate up` makes the steps before it starts "
        "Ray, once after each boot.",
    )
    skip: tuple[FirstRunStep, ...] = Field(
        default=(), description="Steps that are not made on such machines."
    )
    limits_s: dict[FirstRunStep, Seconds] = Field(
        default={},
        description="Timeouts in seconds, by step, instead of the built-in ones. A step that takes "
        "longer has failed and is killed.",
    )
    advice: dict[FirstRunStep, Line] = Field(
        default={}, description="By step: advice shown if it fails, after the built-in one."
    )
    pressure: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="The step `pressure` fills this share of a device's free memory.",
    )
    pressure_limit: Size | None = Field(
        default=None,
        description="The most that the step `pressure` fills. Default: no limit on accelerators, "
        "256 MiB on a CPU.",
    )
    backend: Literal["xccl", "ccl", "nccl", "gloo"] | None = Field(
        default=None,
        description="The library of the step `collective`, as torch names it. Default: torch's own "
        "for the device.",
    )
