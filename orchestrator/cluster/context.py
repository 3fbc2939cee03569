"""What the nodes' desired state depends on beside the profile."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.cluster import kernels
from orchestrator.models.catalog import ModelFile
from orchestrator.models.serving import Layout
from orchestrator.node.trust import Secret


@dataclass(frozen=True)
class Context:
    """What a node's state depends on beside the profile."""

    operator_public: str
    ray_token: Secret
    api_key: Secret
    host_ca: Secret
    user_ca_public: str
    layout: Layout
    model_files: tuple[ModelFile, ...] = ()
    warm: tuple[kernels.WarmCache, ...] = ()
    #: With several models: what each depends on, in the order of the profile's `services`.
    each: tuple[Context, ...] = ()

    @property
    def services(self) -> tuple[Context, ...]:
        return self.each or (self,)
