"""What `up` waits for on a node, from what systemd there says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster.readiness import missing_layer, wait_for_layers
from orchestrator.core.errors import UserError
from orchestrator.core.progress import Board

NODE: Any = SimpleNamespace(name="compute0")
Says = Callable[[str], Any]


def unit(state: str, name: str = "python") -> str:
    """As `systemctl show --property=Id,ActiveState` says it."""
    return f"Id=orchestrate-layer-{name}.service\nActiveState={state}\n"


@pytest.fixture
def cluster() -> Says:
    """A cluster of one node where systemd says this."""

    def make(said: str) -> Any:
        def run(argv: list[str], **_: object) -> SimpleNamespace:
            if argv[0] == "journalctl":
                return SimpleNamespace(out="no route to the server\n")
            return SimpleNamespace(out=said)

        node = SimpleNamespace(run=run)
        driver = SimpleNamespace(boot_timeout=0.0)  # it is looked once more
        return SimpleNamespace(driver=driver, remote=lambda _: node)

    return make


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("", ""),  # an image without late layers
        (unit("active"), ""),
        (unit("activating"), "orchestrate-layer-python.service"),
        (unit("inactive"), "orchestrate-layer-python.service"),
        (unit("failed"), "orchestrate-layer-python.service"),
        (f"{unit('active', 'a')}\n{unit('failed', 'b')}", "orchestrate-layer-b.service"),
    ],
)
def test_a_layer_is_there_when_its_unit_is_active(cluster: Says, said: str, missing: str) -> None:
    assert missing_layer(cluster(said), NODE) == missing


def test_a_node_that_has_its_layers_is_not_waited_for(cluster: Says) -> None:
    heard: list[str] = []
    wait_for_layers(cluster(unit("active")), NODE, Board(quiet=True), heard.append)
    assert not heard


def test_a_layer_that_does_not_come_is_named_with_its_last_word(cluster: Says) -> None:
    heard: list[str] = []
    with pytest.raises(UserError, match=r"compute0 does not have all layers.*python.*no route"):
        wait_for_layers(cluster(unit("failed")), NODE, Board(quiet=True), heard.append)
    assert heard == ["orchestrate-layer-python.service"]


def test_a_wait_for_layers_ends_with_its_node(cluster: Says) -> None:
    def lost(unit: str) -> None:
        raise UserError("compute0 has lost power")

    with pytest.raises(UserError, match="compute0 has lost power"):
        wait_for_layers(cluster(unit("activating")), NODE, Board(quiet=True), lost)
