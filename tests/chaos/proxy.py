"""An HTTP proxy between one operator and the API server: it knows every write and its answer, and does harm where it is told to.

A write counts once the API server has answered it, also when the operator does not live to see the answer.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import web

HOP: Final = {"host", "connection", "accept-encoding", "content-length", "transfer-encoding", "keep-alive"}
GONE: Final = {
    "type": "ERROR",
    "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"},
}
FAILED: Final = {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "code": 500, "message": "etcdserver: no leader"}}
LEAVE_SECONDS: Final = 0.25  # for connections that were being made as their handler was cancelled: the session does not know them
UNCOUNTED: Final = ("leases", "secrets")  # of the process, not of a life


@dataclass(frozen=True)
class Call:
    """A request of the operator; `code` is 0 until it is answered."""

    method: str
    resource: str
    namespace: str
    name: str
    watch: bool = False
    token: str = ""
    code: int = 0

    @property
    def write(self) -> bool:
        """Does it change something of a FineTune?"""
        return self.method != "GET" and self.resource not in UNCOUNTED

    def __str__(self) -> str:
        return f"{self.method} {self.resource} {self.name}"


class Cut(Exception):
    """The connection ends in place of an answer."""


async def pass_on(_: Call) -> None:
    """No harm."""


class Proxy:
    """Listens on loopback while the `async with` block lasts.

    `before` may answer in place of the API server; `after` is told what it answered, and may answer something else.
    """

    def __init__(self, server: str, context: ssl.SSLContext) -> None:
        self.server = server
        self.calls: list[Call] = []
        self.before: Callable[[Call], Awaitable[web.StreamResponse | None]] = pass_on
        self.after: Callable[[Call], Awaitable[web.StreamResponse | None]] = pass_on
        self.watching = 0
        self._context = context
        self._ends: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._context), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await self.listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end_watches()
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(LEAVE_SECONDS)

    async def listen(self, address: str, port: int, context: ssl.SSLContext | None = None) -> None:
        """Listen there too."""
        await web.TCPSite(self._runner, address, port, ssl_context=context).start()

    @property
    def writes(self) -> list[Call]:
        """The writes that the API server has answered."""
        return [c for c in self.calls if c.write]

    def end_watches(self, last: dict[str, Any] | None = None) -> None:
        """Close every open watch, after a last line if one is given."""
        self._ends.set_result(json.dumps(last).encode() + b"\n" if last else b"")
        self._ends = asyncio.get_running_loop().create_future()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = _read(request, body)
        if (instead := await self.before(call)) is not None:
            return instead
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP} | {"Accept-Encoding": "identity"}
        try:
            async with self._session.request(
                request.method, self.server + request.raw_path, headers=headers, data=body or None
            ) as upstream:
                if call.watch and upstream.status == 200:
                    return await self._stream(request, upstream)
                text = await upstream.read()
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"the proxy did not reach the API server: {error}")
        call = replace(call, code=upstream.status)
        self.calls.append(call)
        try:
            answer = await self.after(call)
        except Cut:
            if request.transport is not None:
                request.transport.abort()
            answer = None
        kept = {k: v for k, v in upstream.headers.items() if k in ("Content-Type", "Retry-After")}
        return answer if answer is not None else web.Response(status=upstream.status, body=text, headers=kept)

    async def _stream(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        ends = self._ends
        self.watching += 1
        try:
            while True:
                chunk = asyncio.ensure_future(upstream.content.readany())
                chunk.add_done_callback(lambda c: c.cancelled() or c.exception())
                await asyncio.wait({chunk, ends}, return_when=asyncio.FIRST_COMPLETED)
                if ends.done():
                    chunk.cancel()
                    await answer.write(ends.result())
                    break
                if not chunk.result():
                    break
                await answer.write(chunk.result())
        except (aiohttp.ClientError, ConnectionError):
            pass  # one of the two is gone
        finally:
            self.watching -= 1
        return answer


def refused(code: int, *, after: int | None = None) -> web.Response:
    """A failing API server's answer."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": f"chaos says {code}", "code": code}
    return web.json_response(body, status=code, headers={"Retry-After": str(after)} if after is not None else {})


def _read(request: web.Request, body: bytes) -> Call:
    """`/api/v1/namespaces/NS/RESOURCE/NAME/SUB` or `/apis/GROUP/VERSION/…`."""
    parts = request.path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    resource, name, sub = (*parts, "", "", "")[:3]
    if request.method == "POST" and not name:
        name = json.loads(body)["metadata"].get("name", "")
    return Call(
        request.method, f"{resource}/{sub}" if sub else resource, namespace, name, "watch" in request.query,
        request.headers.get("Authorization", "").rpartition(" ")[2],
    )  # fmt: skip
