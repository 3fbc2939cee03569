"""A signed image of the user's own: firmware that knows the key runs it, and nothing else.

All that a machine on the boot network can do is to answer with other files: each of these is one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.images import turn_bit
from support.netboot import NAME, Net

from orchestrator.core import paths
from orchestrator.provision import boot_parameters, secure_boot
from orchestrator.provision.boot_parameters import SHIM, signed_image
from orchestrator.provision.netboot import signed

pytestmark = pytest.mark.netboot


@pytest.fixture(scope="module")
def own(net: Net) -> Iterator[Net]:
    """The control node serves signed images."""
    assert json.loads(net.run("trust", "secure-boot", "--json").stdout)["sha256"]
    with net.changed(boot={"secure": "own"}):
        yield net


def file(net: Net) -> Path:
    """The node's signed image, as it is served."""
    return net.served / "netboot/loaders" / signed_image(net.node("compute0"))


@contextlib.contextmanager
def instead(net: Net, make: Callable[[Path], None]) -> Iterator[None]:
    """Another file is served in the place of the signed image, for the body."""
    served = file(net)
    kept = served.with_name("kept")
    served.rename(kept)
    try:
        make(served)
        served.chmod(0o644)
        yield
    finally:
        served.unlink()
        kept.rename(served)


def test_a_signed_image_boots(own: Net) -> None:
    booting = own.boot()
    booting.sees("Secure Boot is enabled")
    line = boot_parameters.command_line(own.cluster.profile, own.node("compute0"), own.image_id)
    booting.sees(f"Command line: {line}")
    # Its boot files are the signed ones: the operator gets in by the authority in them.
    booting.reaches_ssh()
    assert "[none]" not in own.on("compute0", "cat", "/sys/kernel/security/lockdown")


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("a turned bit", marks=pytest.mark.long),
        "another key",
        pytest.param("no signature", marks=pytest.mark.long),
        "shim",
    ],
)
def test_firmware_refuses_anything_else(own: Net, what: str) -> None:
    def make(target: Path) -> None:
        if what == "a turned bit":
            turn_bit(target.with_name("kept"), target)
        elif what == "shim":  # which Microsoft signed
            target.write_bytes(target.with_name(SHIM).read_bytes())
        else:  # the image with a command line of the attacker's
            parts = signed.read(own.served / "images" / own.image_id, own.image_id)
            program = parts.assemble("orchestrate.image=theirs rd.shell", {})
            target.write_bytes(program)
            if what == "another key":
                other = f"{NAME}-other"
                paths.cluster(other).mkdir(exist_ok=True)
                secure_boot.make(other).sign(program, target)

    with instead(own, make):
        booting = own.boot()
        booting.sees("failed to load .*: Access Denied")
    assert "Linux version" not in booting.console
