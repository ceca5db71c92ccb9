"""Model servers of a few lines: they say who they are, and break in the ways that real ones do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from aiohttp import web
from finetune_trainer.serve.drain import drain, make_last


class Backend:
    """One pod of an arm at `address`; its behaviour is changed by setting its fields."""

    def __init__(self, name: str, address: str, port: int) -> None:
        self.name, self.address, self.port = name, address, port
        self.ready = True
        self.ready_delay = 0.0  # a busy server answers its probe late
        self.status = 200
        self.delay = 0.0
        self.abort = False  # close the connection instead of an answer
        self.gate = asyncio.Event()  # a stream waits here between its first and its second event
        self.events = (b"data: first\n\n", b"data: second\n\n")
        self.document: Mapping[str, object] | None = None  # what is answered; absent: who it is
        self.headers: Mapping[str, str] = {}
        self.paths: Counter[str] = Counter()
        self.largest = 0
        self.last: tuple[Mapping[str, str], bytes] = ({}, b"")  # headers and body of the last request of a user
        self.held = 0  # requests of users that are under way
        self.draining = False
        self.last_request = 0.0
        self._runner: web.AppRunner | None = None

    async def start(self) -> Backend:
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.on_response_prepare.append(self._say_goodbye)
        application.add_routes([web.get("/readyz", self._readyz), web.route("*", "/{path:.*}", self._answer)])
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, self.port).start()
        return self

    async def stop(self) -> None:
        """As a killed pod: the port is closed and so is every connection."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def drain(self) -> None:
        """As the embedded server on SIGTERM."""
        assert self._runner is not None
        await drain(self, self._runner)
        await self.stop()

    @property
    def idle_for(self) -> float:
        """Seconds since the last request of a user came."""
        return time.monotonic() - self.last_request

    @property
    def served(self) -> int:
        """Requests of users."""
        return sum(self.paths.values())

    async def _say_goodbye(self, _: web.Request, response: web.StreamResponse) -> None:
        if self.draining:
            make_last(response)

    async def _readyz(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.ready_delay)
        return web.Response(status=200 if self.ready and not self.draining else 503)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.paths[request.path] += 1
        self.last_request = time.monotonic()
        self.held += 1
        try:
            response = await self._respond(request)
        finally:
            self.held -= 1
        return response

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.largest, self.last = max(self.largest, len(body)), (request.headers, body)
        if self.abort:
            assert request.transport is not None
            request.transport.abort()
        if self.delay:
            await asyncio.sleep(self.delay)
        if b'"stream"' in body:
            return await self._stream(request, cut=b'"cut"' in body)
        return web.json_response(self.document or {"pod": self.name, "path": request.path}, status=self.status, headers=self.headers)

    async def _stream(self, request: web.Request, cut: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(self.events[0])
        if cut:
            assert request.transport is not None
            request.transport.abort()
            return response
        with suppress(ConnectionResetError):
            await self.gate.wait()
            await response.write(self.events[1])
        return response
