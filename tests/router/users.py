"""Users of the Service before the routers, each with a connection that is kept."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from finetune_operator import names
from finetune_operator.build.router import ARM_HEADER

from tests.router.harness import CHAT, Router

BETWEEN_SECONDS = 0.05


class Service(AbstractResolver):
    """As kube-proxy: a new connection goes to one of the endpoints, in turn; one that is kept stays where it is."""

    def __init__(self, *routers: Router) -> None:
        self.endpoints = [*routers]
        self._turns = itertools.count()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        router = self.endpoints[next(self._turns) % len(self.endpoints)]
        port = router.ports[names.TRAFFIC_PORT]
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST)]

    async def close(self) -> None: ...


@dataclass
class User:
    """What one user met: arms, or what went wrong; and how often the answer was a connection's last."""

    name: str
    service: Service
    met: list[str] = field(default_factory=list)
    told: int = 0

    async def go_on(self, ended: asyncio.Event) -> None:
        """Ask again and again."""
        async with self._session() as session:
            while not ended.is_set():
                try:
                    async with session.post(f"http://bot{CHAT}", json={}, headers={"x-user-id": self.name}) as answer:
                        text = await answer.text()
                        self.met.append(answer.headers[ARM_HEADER] if answer.status == 200 else f"{answer.status}: {text}")
                        self.told += answer.headers.get("connection") == "close"
                except aiohttp.ClientError as error:
                    self.met.append(type(error).__name__)
                await asyncio.sleep(BETWEEN_SECONDS)

    async def stream(self, begun: asyncio.Semaphore) -> bytes:
        """One streamed answer; what was received when it ends before its end."""
        received = b""
        async with self._session() as session:
            try:
                async with session.post(f"http://bot{CHAT}", json={"stream": True}, headers={"x-user-id": self.name}) as answer:
                    async for chunk in answer.content.iter_any():
                        received += chunk
                        begun.release()
                return received
            except aiohttp.ClientError as error:
                begun.release()
                return received + type(error).__name__.encode()

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(resolver=self.service, use_dns_cache=False, limit=1)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60))


@asynccontextmanager
async def asking(service: Service, count: int = 12) -> AsyncIterator[list[User]]:
    """So many users who ask all the time."""
    users, ended = [User(f"user-{n}", service) for n in range(count)], asyncio.Event()
    going = [asyncio.create_task(user.go_on(ended)) for user in users]
    try:
        yield users
    finally:
        ended.set()
        await asyncio.gather(*going)


async def streaming(users: Sequence[User]) -> list[asyncio.Task[bytes]]:
    """A stream of each, of which all have begun."""
    begun = asyncio.Semaphore(0)
    streams = [asyncio.create_task(user.stream(begun)) for user in users]
    for _ in users:
        await begun.acquire()
    return streams
