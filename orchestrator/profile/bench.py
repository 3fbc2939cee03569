"""What a profile says about `orchestrate bench`: its own workloads, and how fast is enough."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from orchestrator.core.source import Loc
from orchestrator.profile.section import Section
from orchestrator.profile.serving import Serving
from orchestrator.profile.types import Name

#: Loads beyond these no cluster of this kind is asked for by somebody who means it.
MOST_REQUESTS, MOST_RATE, MOST_CONCURRENCY = 100_000, 10_000, 4096
#: Milliseconds: an hour.
LONGEST = 3_600_000


class Targets(Section):
    """Latencies that a request has to keep to count as good: goodput is of those that keep all."""

    ttft_ms: float | None = Field(
        default=None, gt=0, le=LONGEST, description="Until its first token, in milliseconds."
    )
    tpot_ms: float | None = Field(
        default=None, gt=0, le=LONGEST, description="For each further token, on average."
    )
    e2el_ms: float | None = Field(default=None, gt=0, le=LONGEST, description="For all of it.")


class BenchWorkload(Section):
    """Requests of one size; either `concurrency` of them at once, or `rate` a second."""

    prompt_tokens: int = Field(ge=1, le=10_000_000, description="Tokens of each prompt.")
    output_tokens: int = Field(ge=1, le=10_000_000, description="Tokens of each answer.")
    requests: int = Field(ge=1, le=MOST_REQUESTS, description="Requests of each repeat.")
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=MOST_CONCURRENCY,
        description="Requests at once: one begins as another ends.",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        le=MOST_RATE,
        description="Requests a second, at random moments (a Poisson process).",
    )


class Bench(Section):
    """What `orchestrate bench run` does where its options do not say it."""

    repeats: int = Field(
        default=4, ge=1, le=100, description="How often each workload is measured."
    )
    targets: Targets = Field(default=Targets(), description=Targets.__doc__)
    workloads: dict[Name, BenchWorkload] = Field(
        default={},
        description="Workloads beside those that fit every model (`orchestrate bench workloads`), "
        "by names of your choice.",
    )


def workloads_are_possible(bench: Bench, serving: Serving) -> Iterator[tuple[Loc, str]]:
    """The check of this section, as in profile/checks.py."""
    flags = {name.replace("_", "-"): value for name, value in serving.args.items()}
    context = flags.get("max-model-len")
    for name, load in bench.workloads.items():
        where = ("bench", "workloads", name)
        if (load.concurrency is None) == (load.rate is None):
            yield where, "needs one of concurrency and rate, and not both"
        tokens = load.prompt_tokens + load.output_tokens
        if isinstance(context, int) and tokens > context:
            text = f"{load.prompt_tokens} + {load.output_tokens} tokens do not fit"
            yield where, f"{text}; allowed: {context} in all (serving.args.max-model-len)"
