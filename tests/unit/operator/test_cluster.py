"""What the API server answers, as the error that says what to do about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import kopf
import pytest
from aiohttp import web
from finetune_operator import cluster as module
from finetune_operator import errors, kinds
from finetune_operator.cluster import Cluster, _classified
from finetune_operator.connection import Connection

ANSWERS = {
    400: errors.Invalid,
    401: errors.Unavailable,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Unavailable,
    422: errors.Invalid,
    429: errors.Unavailable,
    500: errors.Unavailable,
    503: errors.Unavailable,
}


@pytest.mark.parametrize(("status", "wanted"), ANSWERS.items())
def test_an_answer_is_classified(status: int, wanted: type[errors.ClusterError]) -> None:
    assert type(_classified("GET", "/x", status, b"{}", None)) is wanted


def test_the_api_servers_words_and_its_delay_are_kept() -> None:
    error = _classified("POST", "/x", 429, b'{"message": "too many", "reason": "TooManyRequests"}', "7")
    assert (str(error), error.reason, error.retry_after) == ("POST /x: 429 too many", "TooManyRequests", 7.0)
    assert _classified("GET", "/x", 502, b"<html>", "soon").retry_after is None
    assert str(_classified("GET", "/x", 502, b'"gone \xff"', None)) == 'GET /x: 502 "gone \ufffd"'


class Recorded(Cluster):
    """Answers nothing and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(cast(Connection, None))
        self.asked: list[tuple[str, str, Any]] = []

    async def _request(self, method: str, path: str, read: Any, *, body: Any = None, **_: Any) -> Any:
        self.asked.append((method, path, body))
        return read(b'{"kind": "Status", "status": "Success"}')


@pytest.mark.parametrize(("foreground", "policy"), [(False, "Background"), (True, "Foreground")])
async def test_a_deletion_says_of_which_object_and_what_becomes_of_what_it_owns(foreground: bool, policy: str) -> None:
    cluster = Recorded()
    await cluster.delete(kinds.JOB, "ml", "bot-clean-1", uid="u", foreground=foreground)
    assert cluster.asked == [
        ("DELETE", "/apis/batch/v1/namespaces/ml/jobs/bot-clean-1", {"propagationPolicy": policy, "preconditions": {"uid": "u"}})
    ]


@asynccontextmanager
async def serving(said: bytes, *, lasting: float = 0.0) -> AsyncIterator[Cluster]:
    """A client of a server that says that to every GET, and nothing more for so many seconds."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(said)
        await asyncio.sleep(lasting)
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    info = kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with asyncio.timeout(10), Connection(lambda: info) as connection:
            yield Cluster(connection)
    finally:
        await runner.cleanup()


async def test_a_watch_whose_connection_has_died_silently_ends_and_goes_on_from_what_it_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.2)
    event = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    async with serving(json.dumps(event).encode() + b"\n", lasting=60) as cluster:
        told = [found async for found in cluster.watch(kinds.JOB, "ml", "", "5")]
    assert told == [("BOOKMARK", {**event["object"], "apiVersion": "batch/v1", "kind": "Job"})]


async def test_what_ends_a_watch_is_told_in_the_api_servers_words() -> None:
    status = {"kind": "Status", "status": "Failure", "message": "too old resource version: 5 (7)", "reason": "Expired", "code": 410}
    async with serving(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n") as cluster:
        with pytest.raises(errors.Unavailable, match=r"WATCH .*/jobs: 410 too old resource version: 5 \(7\)$") as told:
            [found async for found in cluster.watch(kinds.JOB, "ml", "", "5")]
    assert told.value.reason == "Expired"


@pytest.mark.parametrize("said", [b"", b"<html>", b"[]", b'{"metadata": {"name": "a\xff"}}', b'{"metadata": ', b'{"metadata": 5}'])
async def test_what_is_no_object_is_an_api_server_that_is_not_there(said: bytes) -> None:
    async with serving(said) as cluster:
        with pytest.raises(errors.Unavailable, match=r"^GET /apis/batch/v1/namespaces/ml/jobs/bot: "):
            await cluster.get(kinds.JOB, "ml", "bot")
