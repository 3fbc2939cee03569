"""What vLLM tells of itself, in Prometheus' text format. Its own node may ask, without a key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.node.paths import PYTHON

if TYPE_CHECKING:
    from orchestrator.cluster.cluster import Cluster
    from orchestrator.profile import Profile

#: Seconds for a page.
TIMEOUT = 30.0
#: Prints it.
FETCH = (
    "import sys, urllib.request as u;"
    " print(u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=10).read().decode())"
)
PREFIX = "vllm:"
LINE = re.compile(rf"^{PREFIX}(\w+)(?:{{[^}}]*}})? (\S+)$", re.MULTILINE)


def url(profile: Profile) -> str:
    """Where the page is."""
    return f"http://{profile.ray_address(profile.server)}:{profile.serving.port}/metrics"


def page(cluster: Cluster) -> str:
    """The page as it is now; to be called in the cluster's network. Raises UserError."""
    argv = [PYTHON, "-c", FETCH, url(cluster.profile)]
    remote = cluster.remote(cluster.profile.server)
    return remote.run(argv, what="vLLM's metrics", timeout=TIMEOUT).out


def values(text: str) -> dict[str, float]:
    """By name without prefix, values added over engines and labels: so not of a histogram's bars,
    each of which has those below it in it."""
    found: dict[str, float] = {}
    for name, value in LINE.findall(text):
        if not name.endswith("_bucket"):
            found[name] = found.get(name, 0.0) + float(value)
    return found
