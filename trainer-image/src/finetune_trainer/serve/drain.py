"""How a server goes: it is not ready, its callers leave, and it ends when nobody waits for an answer.

It goes on listening until its callers have left: a router takes up to two seconds to see that it is not ready, and a connection that
waits in a listener which is closed is lost with its request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from aiohttp import web

DRAIN_SECONDS: Final = 600.0  # the routers give no answer longer; the pod's grace is above it (docs/contracts.md)
LISTEN_SECONDS: Final = 10.0  # callers who ask nobody whether it is ready are turned away after this
QUIET_SECONDS: Final = 3.5  # routers keep an idle connection for 3 s: after so long without a request they have none left to send one on


class Draining(Protocol):
    """What is known of a server: requests that are under way, when one last came or ended (time.monotonic), and that it shall end: every
    answer is then its connection's last, and it is not ready."""

    held: int
    last_used: float
    draining: bool


async def drain(server: Draining, runner: web.AppRunner) -> float:
    """Wait until nothing more comes and nothing is held, for DRAIN_SECONDS at most; the seconds of these that are left."""
    server.draining = True
    began = server.last_used = time.monotonic()  # as if one came now: routers have yet to see that it is not ready
    await _until(lambda: _quiet(server), began + LISTEN_SECONDS)
    for site in list(runner.sites):
        await site.stop()
    await _until(lambda: _quiet(server) and not server.held, began + DRAIN_SECONDS)
    return began + DRAIN_SECONDS - time.monotonic()


def make_last(response: web.StreamResponse) -> None:
    """The connection ends with this answer, and the answer says so: aiohttp's own header is written before `on_response_prepare`."""
    response.force_close()
    response.headers["Connection"] = "close"


def _quiet(server: Draining) -> bool:
    return time.monotonic() - server.last_used >= QUIET_SECONDS


async def _until(condition: Callable[[], bool], deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
