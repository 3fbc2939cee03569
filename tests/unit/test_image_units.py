"""What an image leaves out: units of systemd, and drivers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from support import PROJECT

UNITS = "usr/lib/systemd/system"


class Root(dict[str, str]):
    """As much of the build's tree as units touch: path -> text, or "-> TARGET"."""

    def read(self, path: str) -> bytes:
        return self[path].encode()

    def link(self, path: str, target: str) -> None:
        self[path] = f"-> {target}"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The build's module, which reads at import where a build takes place."""
    (tmp_path / "spec.json").write_text("{}")
    for name, path in (("specPath", "spec.json"), ("out", "out"), ("tools", "tools")):
        monkeypatch.setenv(name, str(tmp_path / path))
    monkeypatch.syspath_prepend(str(PROJECT / "images/lib/build"))
    return importlib.import_module("system")


def test_what_is_there_is_masked_unless_it_is_wanted(system: Any) -> None:
    there = ("dev-mqueue.mount", "systemd-binfmt.service", "ssh.service")
    root = Root({f"{UNITS}/{unit}": "" for unit in there})
    for name in ("sysv", "fstab"):
        root[f"usr/lib/systemd/system-generators/systemd-{name}-generator"] = ""
    system.unused(root, ["ssh.service", "systemd-binfmt.service"])
    assert {path for path, text in root.items() if text == "-> /dev/null"} == {
        "etc/systemd/system/dev-mqueue.mount",
        "etc/systemd/system-generators/systemd-sysv-generator",
    }


def test_drivers_that_another_one_needs_stay(system: Any) -> None:
    needs = {
        "kernel/drivers/gpu/drm/xe/xe.ko": "kernel/drivers/media/cec/cec.ko kernel/lib/x.ko",
        "kernel/drivers/media/cec/cec.ko": "",
        "kernel/drivers/media/tuners/tuner.ko": "kernel/drivers/media/mc.ko",
        "kernel/drivers/media/mc.ko": "",
        "kernel/sound/soundcore.ko": "",
        "kernel/net/wireless/cfg80211.ko": "kernel/lib/x.ko",
        "kernel/lib/x.ko": "",
    }
    lines = "".join(f"{module}: {needed}\n" for module, needed in needs.items())
    assert system.unused_drivers(lines) == [
        "kernel/drivers/media/mc.ko",
        "kernel/drivers/media/tuners/tuner.ko",
        "kernel/net/wireless/cfg80211.ko",
        "kernel/sound/soundcore.ko",
    ]
