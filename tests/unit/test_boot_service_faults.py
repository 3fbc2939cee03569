"""The boot service when something around it is broken, and when it restarts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.boot_service import (
    DOCUMENT,
    MAC,
    OTHER_ADDRESS,
    OTHER_MAC,
    Running,
    new_key,
)

from orchestrator.provision.netboot import boot_service


def test_it_goes_on_where_it_was_after_a_restart(service: Running, tmp_path: Path) -> None:
    used, key = service.boot(), new_key(tmp_path)
    service.identity(used, key)
    open_one = service.boot(OTHER_MAC, OTHER_ADDRESS)
    service.stop()
    service.start()
    assert service.identity(used, key).status_code == 409
    answer = service.identity(open_one, key, OTHER_MAC, OTHER_ADDRESS)
    assert answer.status_code == 200


def test_boots_that_are_long_over_are_forgotten(service: Running) -> None:
    for _ in range(boot_service.REMEMBERED + 5):
        service.boot()
    boots = json.loads((service.state / "boots.json").read_text())
    assert len(boots[MAC]) == boot_service.REMEMBERED


@pytest.mark.parametrize("text", ["", "{"])
def test_a_document_that_is_no_document(service: Running, text: str) -> None:
    (service.home / "boot.json").write_text(text)
    assert service.script().status_code == 503
    (service.home / "boot.json").unlink()
    assert service.script().status_code == 503
    service.publish(DOCUMENT)
    assert service.script().status_code == 200


def test_without_its_authority_it_hands_out_nothing(service: Running, tmp_path: Path) -> None:
    nonce, key = service.boot(), new_key(tmp_path)
    ca = (service.home / "host_ca").read_text()
    (service.home / "host_ca").unlink()
    assert service.identity(nonce, key).status_code == 503
    (service.home / "host_ca").touch(0o600)
    (service.home / "host_ca").write_text(ca)
    assert service.identity(nonce, key).status_code == 200


def test_the_log_of_events_does_not_grow_for_ever(tmp_path: Path) -> None:
    events = boot_service.Events(tmp_path)
    line = "x" * 1000
    for _ in range(2 * boot_service.EVENTS_SIZE // 1000 + 10):
        events.add("report", MAC, "compute0", text=line)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) < 2.1 * boot_service.EVENTS_SIZE
