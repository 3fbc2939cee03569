"""vLLM's metrics in Prometheus' text format, read on its own node, where no key is needed."""

from __future__ import annotations

import re

from orchestrator.cluster.cluster import Cluster
from orchestrator.models.serving import copies
from orchestrator.node.paths import PYTHON
from orchestrator.profile import Node, Profile

#: Seconds to fetch the metrics.
TIMEOUT = 30.0
#: A Python program that prints the metrics of the URL in its first argument.
FETCH = (
    "import sys, urllib.request as u;"
    " print(u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=10).read().decode())"
)
PREFIX = "vllm:"
#: vLLM's gauges of running and of waiting requests.
IN_WORK = ("num_requests_running", "num_requests_waiting")
LINE = re.compile(rf"^{PREFIX}(\w+)(?:{{[^}}]*}})? (\S+)$", re.MULTILINE)


def url(profile: Profile, server: Node) -> str:
    """The URL of the metrics of a copy's server."""
    return f"http://{profile.ray_address(server)}:{profile.serving.port}/metrics"


def page(cluster: Cluster) -> str:
    """Fetch the metrics of all copies of all models, one after the other; call it in the cluster's
    network. Raises UserError if that fails."""
    return "\n".join(
        cluster.remote(copy.server)
        .run(
            [PYTHON, "-c", FETCH, url(cluster.profile, copy.server)],
            what="vLLM's metrics",
            timeout=TIMEOUT,
        )
        .out
        for each in cluster.services
        for copy in copies(each.profile, each.layout.data)
    )


def values(text: str) -> dict[str, float]:
    """Values by name without prefix, added over copies, engines and labels.

    Histogram buckets are left out: they are cumulative, so that their sum means nothing.
    """
    found: dict[str, float] = {}
    for name, value in LINE.findall(text):
        if not name.endswith("_bucket"):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def in_work(text: str) -> float | None:
    """The requests that the model works on, or that wait; None where the metrics do not say."""
    found = values(text)
    return sum(found[name] for name in IN_WORK) if found.keys() >= set(IN_WORK) else None
