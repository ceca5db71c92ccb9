"""A client that costs little beside what it measures: kept connections, one request at a time on each, answers read by hand."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any, Final, NamedTuple

from finetune_operator.build.router import ARM_HEADER
from finetune_operator.traffic import Source

from tests.router.harness import CHAT

COMPLETION: Final = {"model": "bot", "messages": [{"role": "user", "content": "How many orders came in today?"}], "max_tokens": 64}
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_POD: Final = re.compile(rb"\r\nx-pod: ([^\r]*)\r\n")
_ARM: Final = re.compile(rb"\r\n" + ARM_HEADER.encode() + rb": ([^\r]*)\r\n")


class Head(NamedTuple):
    """What an answer says. `pod` is the address of who gave it, `arm` what the router says of that ("" without a router)."""

    status: int
    arm: str
    pod: str
    goes_on: bool  # the connection is kept


class Answer(NamedTuple):
    """`NONE` where the connection was lost instead; times are seconds of `time.perf_counter`."""

    head: Head
    began: float
    ended: float


NONE: Final = Head(0, "", "", goes_on=False)


def request_of(user: str, source: Source) -> bytes:
    """A chat completion that this user asks for, who is named where the source says."""
    body = json.dumps(COMPLETION | ({source.body_field: user} if source.body_field else {}))
    named = f"{source.header}: {user}\r\n" if source.header else ""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: bot\r\n{named}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def parsed(received: bytes) -> Head | None:
    """What the answer says; None while something of it is missing."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[: end + 2]
    length = _LENGTH.search(head)
    if length is None:
        raise ValueError(f"an answer without a length: {head[:200]!r}")
    if len(received) < end + 4 + int(length[1]):
        return None
    arm, pod = (found[1].decode() if (found := field.search(head)) else "" for field in (_ARM, _POD))
    return Head(int(head[9:12]), arm, pod, goes_on=b"\r\nconnection: close\r\n" not in head)


class _Wire(asyncio.Protocol):
    """One TCP connection."""

    def __init__(self) -> None:
        self.alive = True
        self._received = b""
        self._answer: asyncio.Future[Head] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    async def ask(self, request: bytes) -> Head:
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is not None and not self._answer.done() and (head := parsed(self._received)) is not None:
            self._answer.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(NONE)


class Connection:
    """A kept connection to `address`, made anew when the other side has ended it between two requests."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._wire: _Wire | None = None

    async def ask(self, request: bytes) -> Answer:
        """Send it and wait for the whole answer; connecting is no part of the time."""
        if self._wire is None or not self._wire.alive:
            _, self._wire = await asyncio.get_running_loop().create_connection(_Wire, *self._address)
        began = time.perf_counter()
        head = await self._wire.ask(request)
        ended = time.perf_counter()
        if not head.goes_on:
            self.close()
        return Answer(head, began, ended)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.transport.close()
            self._wire = None
