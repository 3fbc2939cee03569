"""What a profile says about `orchestrate verify`."""

from __future__ import annotations

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import Line, ModelName


class Prompt(Section):
    """A question, and what a correct answer contains."""

    question: Line = Field(description="The question.")
    contains: Line = Field(
        description="Text that a correct answer contains (case-insensitive). A card that computes "
        "wrong produces nonsense."
    )


class Verification(Section):
    """Questions and tolerances of `orchestrate verify`."""

    repeats: int = Field(
        default=3,
        ge=2,
        le=100,
        description="How often the same question is asked: each answer must be the same.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="The seed sent with each question."
    )
    max_tokens: int = Field(
        default=48, ge=1, le=4096, description="Maximum length of an answer, in tokens."
    )
    logprob_tolerance: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="How far a token's log probability may differ between repeats.",
    )
    prompts: tuple[Prompt, ...] = Field(
        default=(),
        description="Questions for a model without known answers. The first one is also asked "
        "`repeats` times.",
    )
    clock_tolerance_s: float = Field(
        default=5,
        gt=0,
        le=3600,
        description="Maximum difference between a node's clock and the control node's, in seconds.",
    )
    first_model: ModelName | None = Field(
        default=None,
        description="A small model that fits one accelerator: a key of `models`, or a directory of "
        "the checkout's `models/`. `verify --hardware` loads it on each node and asks it `prompts`."
        " Default: no such step.",
    )
