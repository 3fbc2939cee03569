"""KVM or QEMU's own translation (TCG): who decides, and what a try of KVM found before.

A device node says little, and a boot sector that runs says little more: nested KVMs run simple
code and stop at the firmware or at the kernel. So the very firmware and kernel are tried
(trial.py). What that found is kept in a file, by all that it depends on.
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
from typing import TYPE_CHECKING, Any

from orchestrator.core import paths
from orchestrator.core.console import err
from orchestrator.core.files import write_json
from orchestrator.core.run import run

if TYPE_CHECKING:
    from orchestrator.provision.machines.firmware import Firmware

QEMU = "qemu-system-x86_64"
DEVICE = Path("/dev/kvm")
#: What a person can choose: `--accel`, and `simulation.accel` in profiles.
AUTO, CHOICES = "auto", ("auto", "kvm", "tcg")
#: Tries that are kept: the newest.
KEPT = 20


@dataclass(frozen=True)
class Accelerator:
    """How QEMU runs a guest's instructions.

    `boot_timeout`: seconds from power to SSH; `silence`: from power to the firmware's first output.
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
    """What a machine is started with.

    `by`: where a person chose it, empty otherwise. `why`: why it is translation, where nobody chose
    that. `facts`: what a try of KVM depends on, empty where none was asked for.
    """

    way: Accelerator
    by: str = ""
    why: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def tried(self) -> bool:
        """Whether it is KVM because a try of it succeeded."""
        return self.way.name == KVM.name and bool(self.facts)

    def write(self, record: Path) -> None:
        """Keep it beside the machine, for the commands that find it running."""
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(
            json.dumps({"way": self.way.name, "by": self.by, "facts": dict(self.facts)})
        )


def read(record: Path) -> Decision | None:
    """What a machine was started with; None where it was not, or that cannot be read."""
    try:
        found = json.loads(record.read_text())
        return Decision(WAYS[found["way"]], found["by"], facts=found["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


#: Machines start side by side: one of them tries, the others wait for what it found.
_ONE_AT_A_TIME = threading.Lock()
_SAID: set[str] = set()


def decide(facts: Callable[[], Mapping[str, str]], tried: Callable[[], str]) -> Decision:
    """KVM where it runs such machines, else translation, which is said once in a command.

    `tried` tries it and returns why it does not work; `facts` is what that depends on.
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
    """What decides whether KVM works. Raises UserError where QEMU is missing."""
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
    """What a line `KEY : VALUE` says, the first of them."""
    values = (line.partition(":")[2] for line in text.splitlines() if line.startswith(key))
    return next(values, "").strip()


def _hash(path: Path | None) -> str:
    if path is None or not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def memory() -> Path:
    """The file that keeps what tries found."""
    return paths.state() / "kvm-tries.json"


def recall(facts: Mapping[str, str]) -> str | None:
    """Why KVM did not work with these facts, empty where it did; None where nobody knows."""
    for each in reversed(_tries()):
        if each["facts"] == facts:
            return f"{each['why']}; tried on {each['date']}" if each["why"] else ""
    return None


def remember(facts: Mapping[str, str], why: str) -> None:
    """Keep what was found, in place of what was found before."""
    date = datetime.now(UTC).date().isoformat()
    others = [each for each in _tries() if each["facts"] != facts]
    tries = [*others, {"facts": dict(facts), "why": why, "date": date}][-KEPT:]
    write_json(memory(), {"tries": tries})


def _tries() -> list[dict[str, Any]]:
    """What is kept; nothing where the file is missing or damaged: a try costs seconds."""
    try:
        tries = json.loads(memory().read_text())["tries"]
        return [
            each
            for each in tries
            if isinstance(each["why"], str) and each["date"] and each["facts"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
