"""What a profile says about `orchestrate bench`: its own workloads, and how fast is enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from pydantic import Field

from orchestrator.core.source import Loc
from orchestrator.profile.section import Section
from orchestrator.profile.types import FlagValue, Name

#: Loads beyond these no cluster of this kind is asked for by somebody who means it.
MOST_REQUESTS, MOST_RATE, MOST_CONCURRENCY = 100_000, 10_000, 4096
#: Milliseconds: an hour.
LONGEST = 3_600_000


class Targets(Section):
    """Latency limits of a good request. Goodput counts only requests within all limits."""

    ttft_ms: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST,
        description="Maximum time to first token (TTFT), in milliseconds.",
    )
    tpot_ms: float | None = Field(
        default=None,
        gt=0,
        le=LONGEST,
        description="Maximum time per further output token (TPOT), on average, in milliseconds.",
    )
    e2el_ms: float | None = Field(
        default=None, gt=0, le=LONGEST, description="Maximum end-to-end latency, in milliseconds."
    )


class BenchWorkload(Section):
    """Requests of one size: either `concurrency` at once, or `rate` per second."""

    prompt_tokens: int = Field(ge=1, le=10_000_000, description="Tokens of each prompt.")
    output_tokens: int = Field(ge=1, le=10_000_000, description="Tokens of each answer.")
    requests: int = Field(ge=1, le=MOST_REQUESTS, description="Requests in each repeat.")
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=MOST_CONCURRENCY,
        description="Concurrent requests: a new one starts when another one ends.",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        le=MOST_RATE,
        description="Requests per second, at random times (a Poisson process).",
    )


class Bench(Section):
    """Defaults of `orchestrate bench run`; its options override them."""

    repeats: int = Field(
        default=4, ge=1, le=100, description="How often each workload is measured."
    )
    targets: Targets = Field(default=Targets(), description=Targets.__doc__)
    workloads: dict[Name, BenchWorkload] = Field(
        default={},
        description="Additional workloads, by names of your choice. `orchestrate bench workloads` "
        "lists all.",
    )


class HasFlags(Protocol):
    """A profile's `serving`, of either kind."""

    @property
    def args(self) -> Mapping[str, FlagValue]:
        """Flags of `vllm serve`."""


def workloads_are_possible(bench: Bench, serving: HasFlags) -> Iterator[tuple[Loc, str]]:
    """The check of this section, as in profile/checks.py."""
    flags = {name.replace("_", "-"): value for name, value in serving.args.items()}
    context = flags.get("max-model-len")
    for name, load in bench.workloads.items():
        where = ("bench", "workloads", name)
        if (load.concurrency is None) == (load.rate is None):
            yield where, "needs either concurrency or rate, not both"
        tokens = load.prompt_tokens + load.output_tokens
        if isinstance(context, int) and tokens > context:
            text = f"{load.prompt_tokens} + {load.output_tokens} tokens do not fit"
            yield where, f"{text}; allowed: {context} in all (serving.args.max-model-len)"
