"""Netboot: what the control node serves to machines that boot, and what is seen of them.

images.py      which image, and its files
wire.py        addresses, URLs, the kernel's command line
dhcp.py        what DHCP answers, by whichever server
document.py    all that the boot service has to know, as one document
publish.py     laid out and switched to
state.py       the services of the control node
boot_service.py   runs there: scripts, identities, reports
timeline.py    each node's boot, from the logs; causes.py: why one does not get on
"""

from __future__ import annotations

from pathlib import Path


def boot_service_file() -> Path:
    """The boot service's code, which is sent to the control node and never imported here."""
    return Path(__file__).with_name("boot_service.py")
