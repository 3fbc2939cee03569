"""What a node's hardware is against what its profile says it has to have: facts in, verdicts out.

Pure, and without a machine's name: what is expected, and the advice where it is not so, are data
of the profile (profile.hardware). Each judge takes what is expected first, the facts last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

from orchestrator.core.sizes import human_size
from orchestrator.profile import Node, Profile
from orchestrator.profile.hardware import (
    Command,
    Hardware,
    LinkSpeed,
    PciDevice,
    Sign,
    Torch,
    Upstream,
)
from orchestrator.verify.facts import HardwareFacts, PciFacts
from orchestrator.verify.judge import Rule, Verdict

MEMORY = "check in the firmware setup that it detects every module, and the graphics memory size"
SLOT = "check its slot and power cable, and that the firmware setup does not disable it"
RESIZABLE_BAR = "turn on 'Above 4G Decoding' and 'Re-Size BAR Support' in the firmware setup"
DEVICE_FILE = "the kernel driver creates it; on {node}: journalctl --dmesg"
LEVEL_ZERO = "the driver's checks above; on {node}: clinfo -l; ls -l /dev/dri"
GONE = "device not found"

#: What is in the machine and how it is driven; what computes with it.
PRESENT, TORCH, COMMANDS = "present", "torch", "commands"
LAYERS = (PRESENT, TORCH, COMMANDS)

Judge = Callable[[HardwareFacts], Verdict]


@dataclass(frozen=True)
class Look:
    """A check, before there are facts: its rule, and the way from facts to a verdict."""

    rule: Rule
    judge: Judge


def looks(profile: Profile, node: Node, of: Collection[str] = LAYERS) -> list[Look]:
    """The checks of a node's hardware, in the order shown; none where the profile names none.

    ``of``: some of LAYERS only.
    """
    kind = profile.hardware.get(node.hardware or "")
    if kind is None:
        return []
    every = {
        PRESENT: (*_machine(kind), *_links(profile, node, kind), *_level_zero(kind)),
        TORCH: _torch(kind),
        COMMANDS: _commands(kind),
    }
    found = [each for layer in LAYERS if layer in of for each in every[layer]]
    warnings = {sign.name for sign in kind.signs if sign.severity == "warning"}
    return [
        Look(Rule(f"hardware: {name}", braces(look), warning=name in warnings), judge)
        for name, look, judge in found
    ]


def _machine(kind: Hardware) -> Iterator[tuple[str, str, Judge]]:
    """(name, advice, judge) of what is in the machine, and of its drivers."""
    if kind.memory is not None:
        yield "memory", MEMORY, partial(memory, kind.memory)
    for device in kind.pci:
        yield device.name, SLOT, partial(present, device)
        yield f"{device.name}: driver", device.advice, partial(driver, device)
        for number in device.bars:
            yield f"{device.name}: BAR {number}", RESIZABLE_BAR, partial(bar, device, number)
        if device.upstream:
            link = device.upstream
            yield f"{device.name}: link", link.advice, partial(upstream, link)
    for name in kind.modules:
        yield f"module {name}", f"on {{node}}: modprobe {name}", partial(module, name)
    for path in kind.devices:
        yield path, DEVICE_FILE, partial(device_file, path)
    for index, sign in enumerate(kind.signs):
        yield sign.name, sign.advice, partial(line, sign, index)


def _links(profile: Profile, node: Node, kind: Hardware) -> Iterator[tuple[str, str, Judge]]:
    for network, speed in kind.links.items():
        if network not in node.links:
            continue
        interface, mtu = node.links[network].interface, profile.networks[network].mtu
        name = f"link {network}"
        look = f"on {{node}}: networkctl status {interface}; check the cable"
        yield name, look, partial(up, interface)
        if speed.ethernet or speed.usb4:
            yield f"{name}: speed", speed.advice, partial(fast, interface, speed)
        if mtu is not None:
            look = f"on {{node}}: networkctl status {interface}; networks.{network}.mtu"
            yield f"{name}: MTU", look, partial(packets, interface, mtu)


def _level_zero(kind: Hardware) -> Iterator[tuple[str, str, Judge]]:
    if kind.level_zero is not None:
        yield "Level Zero", LEVEL_ZERO, partial(level_zero, kind.level_zero)


def _torch(kind: Hardware) -> Iterator[tuple[str, str, Judge]]:
    if kind.torch is not None:
        name = f"torch {kind.torch.device}"
        yield name, kind.torch.advice, partial(torch, kind.torch)
        yield f"{name} computes", kind.torch.advice, torch_computes


def _commands(kind: Hardware) -> Iterator[tuple[str, str, Judge]]:
    for index, command in enumerate(kind.commands):
        yield command.name, command.advice, partial(output, command, index)


def memory(least: int, facts: HardwareFacts) -> Verdict:
    return Verdict(facts.memory >= least, f"{human_size(least)} or more", human_size(facts.memory))


def present(device: PciDevice, facts: HardwareFacts) -> Verdict:
    there = [each.address for each in _those(device, facts)]
    expected = f"{device.count} PCI device(s) {device.id}"
    seen = f"{len(there)}: {', '.join(there)}" if there else f"no PCI device {device.id}"
    return Verdict(len(there) == device.count, expected, seen)


def driver(device: PciDevice, facts: HardwareFacts) -> Verdict:
    there = _those(device, facts)
    wrong = [
        f"{each.address}: {f'{each.driver} is bound' if each.driver else 'no driver is bound'}"
        for each in there
        if each.driver != device.driver
    ]
    seen = device.driver if there else GONE
    return Verdict(bool(there) and not wrong, device.driver, "; ".join(wrong) or seen)


def bar(device: PciDevice, number: str, facts: HardwareFacts) -> Verdict:
    least, there = device.bars[number], _those(device, facts)
    sizes = {each.address: each.bars.get(number, 0) for each in there}
    small = [
        f"resizable BAR is off: BAR {number} of {address} is {human_size(found)}"
        for address, found in sizes.items()
        if found < least
    ]
    seen = "; ".join(small) or ", ".join(map(human_size, sizes.values())) or GONE
    return Verdict(bool(there) and not small, f"{human_size(least)} or more", seen)


def upstream(want: Upstream, facts: HardwareFacts) -> Verdict:
    """The links of all such bridges: each card has one of its own."""
    there = [each for each in facts.pci if each.id == want.id]
    slow = [
        each for each in there if (each.width or 0) < want.width or (each.speed or 0) < want.speed
    ]
    said = [f"{each.address}: {_lanes(each.width, each.speed)}" for each in slow or there]
    nothing = f"no bridge {want.id} is visible: not judged"
    return Verdict(
        not slow, f"{_lanes(want.width, want.speed)} or more", "; ".join(said) or nothing
    )


def module(name: str, facts: HardwareFacts) -> Verdict:
    loaded = facts.modules[name]
    return Verdict(loaded, "loaded", "loaded" if loaded else "not loaded")


def device_file(path: str, facts: HardwareFacts) -> Verdict:
    count = facts.devices[path]
    return Verdict(count > 0, "a device file", f"{count} found" if count else "none")


def line(sign: Sign, index: int, facts: HardwareFacts) -> Verdict:
    found, place = facts.signs[index], sign.file or "the kernel's log"
    nothing = f"no such line in {place}"
    expected = f"a line in {place} that matches {sign.matches}" if sign.wanted else nothing
    if not found.read:  # no bad sign, but no good one either
        return Verdict(False, expected, f"nothing to read in {place}")
    return Verdict((found.line is not None) == sign.wanted, expected, found.line or nothing)


def up(interface: str, facts: HardwareFacts) -> Verdict:
    link = facts.links[interface]
    state = f"{interface} is {link.state or 'unknown'}"
    seen = state if link.there else f"there is no interface {interface}"
    return Verdict(link.there and link.state == "up", f"{interface} is up", seen)


def fast(interface: str, speed: LinkSpeed, facts: HardwareFacts) -> Verdict:
    link = facts.links[interface]
    kinds = ((speed.ethernet, link.ethernet, "Mb/s"), (speed.usb4, link.usb4, "Gb/s"))
    wanted = [(least, seen, unit) for least, seen, unit in kinds if least]
    return Verdict(
        all((seen or 0) >= least for least, seen, _ in wanted),
        ", ".join(f"{least} {unit} or more" for least, _, unit in wanted),
        ", ".join(f"{seen:g} {unit}" if seen else "speed unknown" for _, seen, unit in wanted),
    )


def packets(interface: str, mtu: int, facts: HardwareFacts) -> Verdict:
    return Verdict(facts.links[interface].mtu == mtu, f"{mtu}", f"{facts.links[interface].mtu}")


def level_zero(least: int, facts: HardwareFacts) -> Verdict:
    seen = facts.level_zero
    said = (seen.error or f"{seen.devices} GPU(s)") if seen else "not checked"
    return Verdict(bool(seen and seen.devices >= least), f"{least} GPU(s) or more", said)


def torch(want: Torch, facts: HardwareFacts) -> Verdict:
    seen = facts.torch
    said = (seen.error or ", ".join(seen.names) or "no device") if seen else "not checked"
    return Verdict(bool(seen and len(seen.names) == want.count), f"{want.count} device(s)", said)


def torch_computes(facts: HardwareFacts) -> Verdict:
    seen, right = facts.torch, "every product is correct"
    if seen is None or not seen.names:
        return Verdict(False, right, "no device")
    return Verdict(not seen.wrong, right, seen.wrong or right)


def output(command: Command, index: int, facts: HardwareFacts) -> Verdict:
    ran = facts.commands[index]
    found = [each.strip() for each in ran.out.splitlines() if re.search(command.matches, each)]
    fits = ran.code == 0 and bool(found)
    wrong = ran.error or "no line of its output matches"
    expected = f"output with a line that matches {command.matches}"
    return Verdict(fits, expected, found[0] if fits else wrong)


def _those(device: PciDevice, facts: HardwareFacts) -> list[PciFacts]:
    return [each for each in facts.pci if each.id == device.id]


def _lanes(width: int | None, speed: float | None) -> str:
    shown = f"{speed:g} GT/s" if speed else "speed unknown"
    return f"x{width} at {shown}" if width else f"width unknown, {shown}"


def braces(look: str) -> str:
    """Advice is the profile's own text: of its braces, only those of {node} mean something."""
    return look.replace("{", "{{").replace("}", "}}").replace("{{node}}", "{node}")
