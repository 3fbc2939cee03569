"""The accelerator of QEMU machines: KVM, or QEMU's own translation (TCG).

A person chooses, or a trial decides. That /dev/kvm exists proves little: some nested KVMs run
simple code but fail in the firmware or the kernel. So the trial runs the real firmware and kernel
(trial.py). Its result is kept in a file, together with the facts that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.files import write_json
from orchestrator.core.run import run
from orchestrator.provision.machines.firmware import Firmware

QEMU = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
#: The values of `--accel` and of `simulation.accel` in profiles.
AUTO, CHOICES = "auto", ("auto", "kvm", "tcg")
#: The number of trial results that are kept.
KEPT = 20


@dataclass(frozen=True)
class Accelerator:
    """How QEMU runs a guest's instructions.

    Limits in seconds. `boot_timeout`: from power-on to SSH. `silence`: from power-on to the
    firmware's first output.
    """

    name: str
    argv: tuple[str, ...]
    boot_timeout: float
    silence: float


KVM = Accelerator("kvm", ("-accel", "kvm", "-cpu", "host"), 600.0, 30.0)
TCG = Accelerator("tcg", ("-accel", "tcg,thread=multi", "-cpu", "max"), 1200.0, 120.0)
WAYS = {way.name: way for way in (KVM, TCG)}


@dataclass(frozen=True)
class Decision:
    """The accelerator that a machine is started with, and the reason.

    `by`: the option or profile key by which a person chose it; empty if a trial decided. `why`: why
    the trial decided for translation. `facts`: what the trial depended on; empty without a trial.
    """

    way: Accelerator
    by: str = ""
    why: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def tried(self) -> bool:
        """Whether it is KVM because a trial succeeded."""
        return self.way.name == KVM.name and bool(self.facts)

    def write(self, record: Path) -> None:
        """Save the decision, for later commands that find the machine running."""
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(
            json.dumps({"way": self.way.name, "by": self.by, "facts": dict(self.facts)})
        )


def read(record: Path) -> Decision | None:
    """The decision that a machine was started with; None if there is no readable record."""
    try:
        found = json.loads(record.read_text())
        return Decision(WAYS[found["way"]], found["by"], facts=found["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


#: Machines start in parallel: one runs the trial, the others wait for its result.
_ONE_AT_A_TIME = threading.Lock()
_SAID: set[str] = set()


def decide(facts: Callable[[], Mapping[str, str]], tried: Callable[[], str]) -> Decision:
    """KVM if it runs such machines, else translation, with a message once per command.

    `tried` runs the trial and returns why KVM does not work, empty if it works. `facts` returns
    what the trial's result depends on.
    """
    with _ONE_AT_A_TIME:
        decision = _decide(facts, tried)
        if decision.why and decision.why not in _SAID:
            _SAID.add(decision.why)
            err.print(
                f"{decision.why}; using translation (TCG), several times slower."
                " To override: --accel kvm",
                markup=False,
            )
        return decision


def _decide(facts: Callable[[], Mapping[str, str]], tried: Callable[[], str]) -> Decision:
    if not DEVICE.exists():
        return Decision(TCG, why=f"This machine has no {DEVICE}")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Decision(TCG, why=f"This user has no access to {DEVICE}")
    known = facts()
    why = recall(known)
    if why is None:
        err.print("Trying KVM with these machines' firmware and kernel, once.", markup=False)
        why = tried()
        remember(known, why)
    if why:
        return Decision(TCG, why=f"KVM does not run these machines here ({why})", facts=known)
    return Decision(KVM, facts=known)


def facts(firmware: Firmware, kernel: Path | None) -> dict[str, str]:
    """The facts on which it depends whether KVM works. Raises UserError if QEMU is missing."""
    system = platform.uname()
    return {
        "machine": _text(Path("/etc/machine-id")).strip(),
        "system": f"{system.release} {system.version}",
        "processor": _value("model name", _text(Path("/proc/cpuinfo"))),
        "modules": " ".join(sorted(path.name for path in Path("/sys/module").glob("kvm*"))),
        "qemu": run([QEMU, "--version"], what="ask QEMU's version").out.partition("\n")[0],
        "way": " ".join((*KVM.argv, firmware.machine, *firmware.argv)),
        "firmware": _hash(firmware.code),
        "kernel": _hash(kernel),
    }


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _value(key: str, text: str) -> str:
    """The value of the first line `KEY : VALUE`; empty if there is none."""
    values = (line.partition(":")[2] for line in text.splitlines() if line.startswith(key))
    return next(values, "").strip()


def _hash(path: Path | None) -> str:
    if path is None or not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def memory() -> Path:
    """The file with the results of trials."""
    return paths.state() / "kvm-tries.json"


def recall(facts: Mapping[str, str]) -> str | None:
    """Why KVM failed with these facts; empty if it worked, None if there was no trial of them."""
    for each in reversed(_tries()):
        if each["facts"] == facts:
            return f"{each['why']}; tried on {each['date']}" if each["why"] else ""
    return None


def remember(facts: Mapping[str, str], why: str) -> None:
    """Save a trial's result in place of an earlier one with the same facts."""
    date = datetime.now(UTC).date().isoformat()
    others = [each for each in _tries() if each["facts"] != facts]
    tries = [*others, {"facts": dict(facts), "why": why, "date": date}][-KEPT:]
    write_json(memory(), {"tries": tries})


def _tries() -> list[dict[str, Any]]:
    """The saved results; none if the file is missing or damaged: a new trial takes seconds."""
    try:
        tries = json.loads(memory().read_text())["tries"]
        return [
            each
            for each in tries
            if isinstance(each["why"], str) and each["date"] and each["facts"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
