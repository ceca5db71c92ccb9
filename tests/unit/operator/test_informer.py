"""What is listed and what happens after it reaches the cache, whatever becomes of the connection: on an API server of one kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import kopf
import pytest
from aiohttp import web
from finetune_operator import errors
from finetune_operator import informer as module
from finetune_operator.cache import Cache, Key
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection
from finetune_operator.informer import Informer
from finetune_operator.kinds import FINETUNE, POD
from finetune_operator.queue import Queue

SECONDS = 20.0
GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


def pod(name: str, version: int, size: int = 0) -> dict[str, Any]:
    meta = {"name": name, "namespace": "ml", "uid": name, "resourceVersion": str(version), "labels": {"finetune.dev/name": name}}
    return {"metadata": meta, "status": {"conditions": [{"type": "Ready", "message": "x" * size}]}}


def finetune(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ml", "uid": f"of-{name}", "resourceVersion": "1"}}


def line(type_: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": type_, "object": obj}).encode() + b"\n"


class Server:
    """Lists `pods` at `version`; each watch writes what is `say`ed, until that is None (its end) or an Exception (it is cut off)."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.version = 10
        self.lists = 0
        self.refused = 0  # the status with which the next requests are answered, until it is 0 again
        self.watched: list[str] = []  # from which version each watch was asked for
        self.selectors: set[str] = set()
        self._said: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def say(self, said: bytes | Exception | None) -> None:
        self._said.put_nowait(said)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.selectors.add(request.query.get("labelSelector", ""))
        if self.refused:
            return web.json_response({"message": "no"}, status=self.refused)
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": self.pods})
        self.watched.append(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        while isinstance(said := await self._said.get(), bytes):
            await response.write(said)
        if said is not None and request.transport is not None:
            request.transport.abort()
        return response


class Followed:
    """An informer that follows the server's pods, its cache and its queue."""

    def __init__(self, server: Server, cluster: Cluster) -> None:
        self.server = server
        self.cache = Cache()
        self.queue: Queue[Key] = Queue(asyncio.get_running_loop().time)
        self.restarts = 0
        self.open = True
        self.informer = Informer(cluster, self.cache, self.queue, self._restarted)

    def _restarted(self) -> None:
        self.restarts += 1

    def has(self, *names: str) -> bool:
        return self.cache.uids(POD) == frozenset(names)


@asynccontextmanager
async def following() -> AsyncIterator[Followed]:
    server, app = Server(), web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        info = kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}")
        async with Connection(lambda: info) as connection:
            made = Followed(server, Cluster(connection))
            task = asyncio.create_task(made.informer.follow(POD, "ml", lambda: made.open))
            try:
                yield made
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        await runner.cleanup()


async def until(what: str, holds: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)


async def test_a_watch_goes_on_from_its_list_and_takes_in_what_it_tells() -> None:
    async with following() as it:
        it.cache.fill(FINETUNE, [finetune("a"), finetune("b")])
        await until("a watch", lambda: it.server.watched == ["10"])
        it.server.say(line("ADDED", pod("a", 11)) + line("ADDED", pod("b", 12)) + line("ADDED", pod("of none", 13)))
        it.server.say(line("DELETED", pod("a", 14)))
        await until("all but a", lambda: it.has("b", "of none"))
        assert {await it.queue.take(), await it.queue.take()} == {("ml", "a"), ("ml", "b")}
        assert len(it.queue) == 0, "whoever is not known, or not any more, is not due for what was its own"
        assert it.server.lists == 1
        assert it.server.selectors == {"app.kubernetes.io/managed-by=finetune-operator"}


async def test_events_come_whole_however_they_are_cut_and_however_long_they_are() -> None:
    async with following() as it:
        await until("a watch", lambda: bool(it.server.watched))
        said = line("ADDED", pod("a", 11, size=300_000)) + line("ADDED", pod("b", 12))
        for start in range(0, len(said), 50_021):
            it.server.say(said[start : start + 50_021])
            await asyncio.sleep(0)
        await until("both", lambda: it.has("a", "b"))


@pytest.mark.parametrize("end", [None, OSError()], ids=["at its end", "cut off"])
async def test_a_watch_that_ends_goes_on_from_the_last_version_it_told_without_a_list(end: Exception | None) -> None:
    async with following() as it:
        await until("a watch", lambda: bool(it.server.watched))
        it.server.say(line("ADDED", pod("a", 11)))
        it.server.say(line("BOOKMARK", {"metadata": {"resourceVersion": "20"}}))
        it.server.say(line("MODIFIED", pod("a", 21))[:-20])  # half a line is none
        await until("a", lambda: it.has("a"))
        it.server.say(end)
        await until("another watch", lambda: it.server.watched == ["10", "20"])
        assert (it.server.lists, it.restarts) == (1, 0)
        it.server.say(line("DELETED", pod("a", 22)))
        await until("its deletion", lambda: it.has())


async def test_what_a_watch_no_longer_knows_is_listed_also_what_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: Any) -> None:
        return None

    monkeypatch.setattr(Cluster, "get", none)
    async with following() as it:
        await until("a watch", lambda: bool(it.server.watched))
        it.cache.fill(FINETUNE, [finetune("a"), finetune("b")])
        it.server.say(line("ADDED", pod("a", 11)))
        await until("a", lambda: it.has("a"))
        it.server.pods, it.server.version = [pod("b", 15), pod("of none", 16)], 30
        it.server.say(line("ERROR", GONE))
        it.server.say(None)
        await until("another watch", lambda: "30" in it.server.watched)
        assert it.has("b", "of none")
        assert (it.server.lists, it.restarts) == (2, 1)
        assert {await it.queue.take(), await it.queue.take()} == {("ml", "a"), ("ml", "b")}
        assert len(it.queue) == 0


@pytest.mark.parametrize("status", [410, 429, 500, 401, 403])
async def test_a_watch_that_is_refused_is_asked_for_again_after_a_list(status: int) -> None:
    async with following() as it:
        await until("a watch", lambda: bool(it.server.watched))
        it.server.refused = status
        it.server.say(None)
        await until("refusals", lambda: it.restarts >= 2)
        it.server.pods, it.server.refused = [pod("a", 15)], 0
        await until("another watch", lambda: len(it.server.watched) == 2)
        assert it.has("a")


@pytest.mark.parametrize(("error", "last"), [(None, 1.2 * module.SHORTEST_PAUSE), (errors.Unavailable("503"), 1.2 * module.LONGEST_PAUSE)])
async def test_a_watch_that_fails_is_paused_ever_longer_and_one_that_ends_is_not(
    error: Exception | None, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where connections are cut every second, what happened must be known within the next one."""
    pauses: list[float] = []

    async def ended(*_: Any) -> None:
        if len(pauses) == 30:
            raise asyncio.CancelledError
        if error:
            raise error

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    informer = Informer(Cluster(cast(Connection, None)), Cache(), Queue[Key](lambda: 0.0))
    monkeypatch.setattr(informer, "_watch", ended)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await informer.follow(POD, None, lambda: True)
    assert pauses[0] <= 2.4 * module.SHORTEST_PAUSE
    assert last / 1.5 <= pauses[-1] <= last


async def test_a_watch_that_is_refused_waits_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def refused(*_: Any) -> None:
        raise errors.Unavailable("429", retry_after=33.0)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    informer = Informer(Cluster(cast(Connection, None)), Cache(), Queue[Key](lambda: 0.0))
    monkeypatch.setattr(informer, "_watch", refused)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await informer.follow(POD, None, lambda: True)
    assert pauses == [33.0]


async def test_in_a_closed_namespace_nothing_is_asked_for_until_it_is_open_again() -> None:
    async with following() as it:
        await until("a watch", lambda: bool(it.server.watched))
        it.open = False
        it.server.refused = 403
        it.server.say(None)
        await asyncio.sleep(3 * module.SHORTEST_PAUSE)
        assert (it.server.lists, it.restarts) == (1, 0), "it was asked for"
        it.server.refused = 0
        it.open = True
        await until("another watch", lambda: len(it.server.watched) == 2)


async def test_finetunes_are_listed_whoever_made_them() -> None:
    async with following() as it:
        await it.informer.compare(FINETUNE, "ml")
        assert "" in it.server.selectors
