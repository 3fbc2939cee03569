"""What a profile says about `orchestrate verify`."""

from __future__ import annotations

from pydantic import Field

from orchestrator.profile.section import Section
from orchestrator.profile.types import Line


class Prompt(Section):
    """A question, and what a right answer to it has."""

    question: Line = Field(description="The question.")
    contains: Line = Field(
        description="Text that a right answer has, in capitals or not: where a card computes "
        "wrong, the answer is nonsense."
    )


class Verification(Section):
    """What `orchestrate verify` asks, and what it tolerates."""

    repeats: int = Field(
        default=3, ge=2, le=100, description="How often a question is asked for the same answer."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="The seed sent with each.")
    max_tokens: int = Field(default=48, ge=1, le=4096, description="The longest answer, in tokens.")
    logprob_tolerance: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="How far a token's log probability may differ between repeats.",
    )
    prompts: tuple[Prompt, ...] = Field(
        default=(),
        description="What a model without known answers is asked. The first one is also the "
        "question that is asked `repeats` times.",
    )
    clock_tolerance_s: float = Field(
        default=5,
        gt=0,
        le=3600,
        description="How far a node's clock may be from the control node's, in seconds.",
    )
