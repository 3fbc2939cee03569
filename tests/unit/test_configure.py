"""What is made of an agent's report; tests/host/test_configure.py runs agents."""

from __future__ import annotations

from orchestrator.node.configure import _applied


def test_what_only_time_makes_is_no_change_and_what_was_not_reached_is_a_failure() -> None:
    entries = [
        {"id": "link:usb4", "status": "pending", "changes": ["absent"]},
        {"id": "file:/a", "status": "changed", "changes": ["create"]},
        {"id": "file:/b", "status": "unchanged", "changes": []},
        {"id": "file:/c", "status": "failed", "changes": [], "error": "no room"},
        {"id": "unit:d", "status": "skipped", "changes": [], "error": "needs file:/c"},
    ]
    found = _applied({"facts": {}, "resources": entries})
    assert (found.changed, found.unchanged, found.pending) == (("file:/a",), 1, ("link:usb4",))
    assert found.failed == (("file:/c", "no room"), ("unit:d", "needs file:/c"))
    assert found.summary == (
        "1 changed, 1 unchanged, 1 pending: link:usb4, 2 failed: file:/c: no room"
    )
    assert _applied({"facts": {}, "resources": entries[:1]}).ok
