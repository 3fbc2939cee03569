"""Changes of a node as data: the commands that make one, and those that undo it. Pure.

Each is made from what the node says of its present state, so that undoing gives that state back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.errors import UserError

Argv = tuple[str, ...]

#: What a link's token bucket lets through at once after a pause, in bytes: at least this, and what
#: its rate carries in this many seconds.
BURST, BURST_S = 16384, 0.001
#: Queues that the kernel gives a link by itself have this handle.
KERNELS = "0:"


class NotHere(UserError):
    """It cannot be changed here; the hint says what would be needed."""


@dataclass(frozen=True)
class Edit:
    """Commands for one node."""

    apply: tuple[Argv, ...]
    undo: tuple[Argv, ...]


def queue_command(tc: Sequence[str], link: str) -> Argv:
    """Shows a link's queues; `queue_change` reads them."""
    return (*tc, "-json", "qdisc", "show", "dev", link)


def queue_change(tc: Sequence[str], link: str, shown: str, wanted: Sequence[str]) -> Edit:
    """The link's queue becomes ``wanted``, and then what it was. ``tc``: the program, with the
    words that choose a namespace. Raises NotHere where it has one that cannot be given back."""
    try:
        queues = json.loads(shown or "[]")
        roots = [each for each in queues if each.get("root")]
    except (ValueError, AttributeError):
        raise NotHere(f"{link}: tc does not say what queue it has", "Needs iproute2.") from None
    change = (*tc, "qdisc", "replace", "dev", link, "root", *wanted)
    own = [each for each in roots if each.get("handle") != KERNELS]
    if not own:
        # That there is nothing to delete is no error.
        script = (
            'l=$1; shift; "$@" qdisc delete dev "$l" root || '
            f'! "$@" qdisc show dev "$l" | grep -q "^qdisc {wanted[0]} "'
        )
        return Edit((change,), (("sh", "-c", script, "sh", link, *tc),))
    kind, options = own[0].get("kind"), own[0].get("options", {})
    others = [each for each in queues if not each.get("root") and each.get("handle") != KERNELS]
    if kind != "tbf" or others:
        raise NotHere(
            f"{link} has a queue of its own ({kind}), which could not be given back as it was",
            f"Remove it: tc qdisc delete dev {link} root",
        )
    was = bucket(options["rate"] * 8, burst=options["burst"], waits_us=options.get("lat", 50000))
    return Edit((change,), ((*tc, "qdisc", "replace", "dev", link, "root", *was),))


def limit_of(shown: str) -> float | None:
    """The bits per second that a token bucket in ``shown`` lets through; None without one."""
    try:
        rates = [each["options"]["rate"] for each in json.loads(shown) if each["kind"] == "tbf"]
    except (ValueError, KeyError, TypeError):
        return None
    return min(rates) * 8 if rates else None


def bucket(bits_per_s: float, burst: int | None = None, waits_us: float = 50000) -> Argv:
    """tc's token bucket filter of this rate."""
    most = burst or max(BURST, int(bits_per_s / 8 * BURST_S))
    rate = f"{int(bits_per_s)}bit"
    return ("tbf", "rate", rate, "burst", str(most), "latency", f"{int(waits_us)}us")


def delay(seconds: float) -> Argv:
    """tc's emulator with so much delay, and room for all packets that wait meanwhile."""
    return ("netem", "delay", f"{round(seconds * 1e6)}us", "limit", "100000")


#: Writes the first word into the files that the others name.
WRITE = 'v=$1; shift; for f; do echo "$v" >"$f" || exit 1; done'


def files_command(pattern: str) -> Argv:
    """Prints each file of a shell pattern that may be written, and its value."""
    script = 'for f in $1; do [ -w "$f" ] && echo "$f $(cat "$f")"; done; true'
    return ("sh", "-c", script, "sh", pattern)


def files(text: str) -> dict[str, int]:
    """What `files_command` printed: the files that hold a number."""
    words = [line.split() for line in text.splitlines()]
    return {each[0]: int(each[1]) for each in words if len(each) == 2 and each[1].isdigit()}


def files_change(value: int, was: Mapping[str, int]) -> Edit:
    """Each file holds the value, or less if it held less, and then what it held."""

    def write(number: int, names: Sequence[str]) -> Argv:
        return ("sh", "-c", WRITE, "sh", str(number), *names)

    higher = [name for name, held in was.items() if held > value]
    held = sorted({was[name] for name in higher})
    undo = (write(each, [name for name in higher if was[name] == each]) for each in held)
    return Edit((write(value, higher),) if higher else (), tuple(undo))
