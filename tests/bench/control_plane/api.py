"""The load generator's client of the API server, as administrator: JSON in, JSON out, and watches of metadata alone."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

Object = dict[str, Any]
Seen = Callable[[str, Object, float], None]  # type of event, metadata, time of arrival
JSON: Final = "application/json"
METADATA: Final = f"{JSON};as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
METADATA_LIST: Final = f"{JSON};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
IN_FLIGHT: Final = 32


class ApiError(Exception):
    """The API server refused."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:400]}")
        self.status = status


class Api:
    """Connections to one API server for as long as the `async with` block lasts."""

    def __init__(self, server: str, pki: Path) -> None:
        self._server = server
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls, keepalive_timeout=3600)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: object = None, accept: str = JSON) -> Object:
        """The decoded answer, {} where it is no JSON object; ApiError from 300 on."""
        headers = {"Accept": accept, **({} if body is None else {"Content-Type": JSON})}
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, self._server + path, data=data, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise ApiError(answer.status, text)
            return dict(json.loads(text)) if text.startswith("{") else {}

    async def warm(self) -> None:
        """Open the connections that a burst uses, so that no handshake is measured."""
        await asyncio.gather(*(self.call("GET", "/readyz") for _ in range(2 * IN_FLIGHT)))

    async def list_metadata(self, path: str) -> tuple[list[Object], str]:
        """The collection's metadata, and its resourceVersion."""
        answer = await self.call("GET", path, accept=METADATA_LIST)
        return [item["metadata"] for item in answer["items"] or []], answer["metadata"]["resourceVersion"]

    async def watch_metadata(self, path: str, version: str, seen: Seen) -> None:
        """Tell of every event until cancelled; goes on where a broken connection stopped."""
        while True:
            try:
                version = await self._watch(path, version, seen)
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)

    async def _watch(self, path: str, version: str, seen: Seen) -> str:
        query, rest = {"watch": "1", "resourceVersion": version}, b""
        async with self._session.get(self._server + path, headers={"Accept": METADATA}, params=query) as answer:
            async for chunk in answer.content.iter_any():
                now = time.monotonic()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of {path} ended: {event['object']}")
                    version = event["object"]["metadata"]["resourceVersion"]
                    seen(event["type"], event["object"]["metadata"], now)
        return version


async def pooled(names: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Do the work for each name, so many at a time."""
    left = iter(names)

    async def worker() -> None:
        for name in left:
            await work(name)

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
