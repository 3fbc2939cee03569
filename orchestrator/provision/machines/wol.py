"""Wake-on-LAN: the packet that switches a machine on."""

from __future__ import annotations

import socket
import time
from ipaddress import IPv4Address

from orchestrator.core.errors import UserError

#: Wake-on-LAN's Ethernet type, and the UDP port that is usual for it ("discard").
ETHER_TYPE, PORT = 0x0842, 9
#: Number of packets, and seconds between them: nobody answers, so a loss would go unnoticed.
TIMES, PAUSE = 3, 0.1
EVERYBODY = b"\xff" * 6


def magic_packet(mac: str) -> bytes:
    """Six bytes ff, then the machine's hardware address 16 times."""
    return EVERYBODY + bytes.fromhex(mac.replace(":", "")) * 16


def send(interface: str, broadcast: IPv4Address, mac: str) -> None:
    """Send the packet from an interface in the calling thread's network namespace.

    It goes both as an Ethernet frame and by UDP, since some firmware accepts only one of them.
    Raises UserError if it cannot be sent.
    """
    packet = magic_packet(mac)
    try:
        with (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        ):
            raw.bind((interface, ETHER_TYPE))
            source: bytes = raw.getsockname()[4]
            frame = EVERYBODY + source + ETHER_TYPE.to_bytes(2, "big") + packet
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            # Use this interface, whatever the routing table says.
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            for number in range(TIMES):
                time.sleep(PAUSE if number else 0)
                raw.send(frame)
                datagrams.sendto(packet, (str(broadcast), PORT))
    except OSError as error:
        raise UserError(
            f"cannot send a Wake-on-LAN packet for {mac} on {interface}: {error.strerror}",
            "Check the control node and its cable. Run: orchestrate up --until control",
        ) from None
