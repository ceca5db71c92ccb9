"""Calls side by side, by processes of their own with blocking sockets: neither an event loop nor another caller stands in their way."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

from tests.bench.router.client import parsed

Address = tuple[str, int]
Pair = tuple[float, float]  # seconds of a direct call, and of the call through a router that followed
PAUSE_SECONDS: Final = 0.002  # on average, between two calls of one caller: the machine shall not be full
COLD: Final = 100  # pairs, while connections and caches are cold


class Caller:
    """One connection, made anew when the other side has said that it ends it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> float:
        """Seconds until the answer was complete, connecting left out; raises OSError where there is no good one."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=10)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        began = time.perf_counter()
        self._socket.sendall(request)
        while (answer := parsed(received)) is None:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the connection was closed before the answer was complete")
            received += data
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}")
        if not answer.goes_on:
            self.close()
        return seconds

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def call_in_turn(direct: Address, routers: Sequence[Address], requests: Sequence[bytes], count: int, seed: int) -> tuple[list[Pair], int]:
    """`count` pairs, by the routers in turn, and how many failed besides."""
    pauses = random.Random(seed)
    callers = [Caller(address) for address in (direct, *routers)]
    pairs: list[Pair] = []
    failed = 0
    for turn in range(count + COLD):
        request, router = requests[turn % len(requests)], callers[1 + turn % len(routers)]
        times = []
        for caller in (callers[0], router):
            time.sleep(pauses.uniform(0, 2 * PAUSE_SECONDS))
            try:
                times.append(caller.ask(request))
            except OSError:
                failed += 1
                caller.close()
        if len(times) == 2 and turn >= COLD:
            pairs.append((times[0], times[1]))
    for caller in callers:
        caller.close()
    return pairs, failed


def side_by_side(
    direct: Address, routers: Sequence[Address], requests: Sequence[bytes], count: int, callers: int
) -> tuple[list[Pair], int]:
    """The same by several callers at once, `count` pairs in all."""
    each = -(-count // callers)
    with ProcessPoolExecutor(callers, mp_context=get_context("spawn")) as pool:
        going = [pool.submit(call_in_turn, direct, routers, requests[n::callers], each, n) for n in range(callers)]
        done = [job.result() for job in going]
    return [pair for pairs, _ in done for pair in pairs], sum(failed for _, failed in done)
