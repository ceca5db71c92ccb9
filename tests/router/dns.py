"""A name server on loopback whose answers a test changes while Envoy runs, as CoreDNS does when pods come and go."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

A, SERVFAIL, NXDOMAIN = 1, 2, 3
TTL = 30  # as kubeadm sets it: routers must not wait for so long


class Zone(asyncio.DatagramProtocol):
    """Answers A questions from `records` (name → addresses); anything else does not exist. Remembers what was asked."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.asked: set[str] = set()
        self.port = 0
        self.broken = False  # the server answers, but cannot say

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        name, kind, end = _question(data)
        self.asked.add(name)
        addresses = self.records.get(name, []) if kind == A else []
        code = SERVFAIL if self.broken else 0 if name in self.records else NXDOMAIN
        addresses = [] if code else addresses
        head = data[:2] + struct.pack(">HHHHH", 0x8580 | code, 1, len(addresses), 0, 0)
        answers = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", A, 1, TTL, 4) + socket.inet_aton(a) for a in addresses)
        self._transport.sendto(head + data[12:end] + answers, address)


def _question(data: bytes) -> tuple[str, int, int]:
    labels, at = [], 12
    while length := data[at]:
        labels.append(data[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    return ".".join(labels), struct.unpack(">H", data[at + 1 : at + 3])[0], at + 5


async def serve() -> tuple[Zone, asyncio.DatagramTransport]:
    """A running name server; close the transport to end it."""
    transport, zone = await asyncio.get_running_loop().create_datagram_endpoint(Zone, local_addr=("127.0.0.1", 0))
    return zone, transport
