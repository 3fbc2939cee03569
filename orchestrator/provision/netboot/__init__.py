"""Netboot: what the control node serves to booting machines, and the record of their boots.

images.py         which image a cluster boots, and its files
dhcp.py           values of DHCP's answers, and lines for other DHCP servers
document.py       boot.json, the boot service's input
publish.py        writes the served files and switches to them
signed.py         a node's signed image, for firmware that knows the user's key
state.py          the control node's services for netboot, as resources
boot_service.py   runs on the control node: boot scripts, identities, reports
sources.py        logs as events; probe_boot.py runs on the control node and reads the logs
timeline.py       each node's last boot, from the events
causes.py         why a boot is stuck
look.py           reads the logs and combines all of that, for `status` and `up`
diary.py          the steps that `up` took, in a file
"""

from __future__ import annotations

from pathlib import Path


def boot_service_file() -> Path:
    """The boot service's code, which is sent to the control node and never imported here."""
    return Path(__file__).with_name("boot_service.py")
