"""kopf's watch, when it fails, is begun anew, and nothing else of the process ends with it: on an API server that answers kopf alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import kopf
import pytest
import yaml
from aiohttp import web
from finetune_operator import process
from finetune_operator.cluster import Cluster, Page
from finetune_operator.connection import Connection
from finetune_operator.informer import Informer
from finetune_operator.kinds import FINETUNE, Kind
from finetune_operator.process import Operator
from finetune_operator.settings import Settings

# kopf waits until it has found these, too.
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
CRDS = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
KNOWN = (FINETUNE, NAMESPACES, CRDS)
SECONDS = 30.0
HALF = b'{"type": "MODIFIED", "object": {"metadata": {"name": "bo'
ERROR = b'{"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}}\n'


class Server:
    """Discovery, empty lists, and watches that stay open; `fail` ends those of FineTunes with words at which kopf gives up."""

    def __init__(self, last: bytes = ERROR) -> None:
        self.begun = 0
        self.listed: list[dict[str, Any]] = []
        self.last = last
        self._fail = asyncio.Event()

    def fail(self) -> None:
        self._fail.set()
        self._fail = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/").split("/")
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            groups = sorted({(k.group, k.version) for k in KNOWN if k.group})
            version = [{"name": g, "versions": [{"version": v, "groupVersion": f"{g}/{v}"}]} for g, v in groups]
            return web.json_response({"groups": [{**g, "preferredVersion": g["versions"][0]} for g in version]})
        if (path[0], len(path)) in (("api", 2), ("apis", 3)):
            return web.json_response({"resources": [_resource(k) for k in KNOWN if k.path() == f"{request.path}/{k.plural}"]})
        if "watch" not in request.query:
            items = self.listed if request.path.endswith(f"/{FINETUNE.plural}") else []
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
        return await self._watch(request)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if request.path.endswith(f"/{FINETUNE.plural}"):
            self.begun += 1
            await self._fail.wait()
        else:
            await asyncio.Event().wait()
        await response.write(self.last)
        return response


def _resource(kind: Any) -> dict[str, Any]:
    verbs = ["get", "list", "watch", "patch"]
    return {"name": kind.plural, "singularName": kind.kind.lower(), "kind": kind.kind, "namespaced": kind.namespaced, "verbs": verbs}


class Empty:
    """A cluster without objects."""

    async def pages(self, *_: Any, **__: Any) -> AsyncIterator[Page]:
        yield Page("1", [])


@asynccontextmanager
async def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, last: bytes = ERROR) -> AsyncIterator[Server]:
    server, app = Server(last), web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    document = {
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    try:
        yield server
    finally:
        await runner.cleanup()


async def until(what: str, holds: Any) -> None:
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("last", [ERROR, HALF], ids=["an internal error", "half a line"])
async def test_a_watch_that_fails_takes_no_worker_with_it(last: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    slow = asyncio.Event()

    async def reconcile(key: tuple[str, str]) -> None:
        if key[1] == "slow":  # as a cycle that asks pods
            await asyncio.gather(slow.wait(), asyncio.sleep(0))
        done.append(key[1])

    async with serving(tmp_path, monkeypatch, last) as server:
        operator = Operator(cast(Connection, None), Settings("trainer", "router"))
        operator.informer = Informer(cast(Cluster, Empty()), operator.cache, operator.queue)
        tasks = [asyncio.create_task(t) for t in (operator._watch(), *(operator._work(reconcile) for _ in range(3)))]
        try:
            await until("a watch", lambda: server.begun == 1)
            operator.queue.add(("ml", "slow"))
            server.fail()
            await until("another watch", lambda: server.begun >= 2)
            slow.set()
            operator.queue.add(("ml", "next"))
            await until("the work of before and the next", lambda: sorted(done) == ["next", "slow"])
            assert [t.done() for t in tasks] == [False] * 4
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_kopf_lists_is_known_by_what_is_read_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, monkeypatch) as server:
        meta = {"name": "bot", "namespace": "ml", "uid": "u", "resourceVersion": "1"}
        server.listed = [{"metadata": {**meta, "managedFields": [{"manager": "kubectl"}]}, "spec": {"model": {}}}]
        operator = Operator(cast(Connection, None), Settings("trainer", "router"))
        operator.informer = Informer(cast(Cluster, Empty()), operator.cache, operator.queue)
        watching = asyncio.create_task(operator._watch())
        try:
            assert await asyncio.wait_for(operator.queue.take(), SECONDS) == ("ml", "bot")
            known = {"apiVersion": FINETUNE.api_version, "kind": "FineTune", "metadata": meta, "spec": {"model": {}}}
            assert operator.cache.owner(("ml", "bot")) == known
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_without_an_open_namespace_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    async def kopf_operator(*, namespaces: list[str], **_: Any) -> None:
        asked.append(namespaces)
        await asyncio.Event().wait()

    monkeypatch.setattr(kopf, "operator", kopf_operator)
    operator = Operator(cast(Connection, None), Settings("trainer", "router", namespaces=("ml", "nlp")))
    operator.closed = {"ml", "nlp"}
    watching = asyncio.create_task(operator._watch())
    try:
        await asyncio.sleep(0.1)
        assert asked == [], "kopf would watch the whole cluster"
        operator.closed = {"nlp"}
        operator.begin_anew.set()
        await until("watches", lambda: asked)
        assert asked == [["ml"]]
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_kopf_that_does_not_end_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when it waits for new credentials while it ends."""
    begun: list[threading.Event] = []
    over = threading.Event()

    async def kopf_operator(*, registry: kopf.OperatorRegistry, stop_flag: threading.Event, **_: Any) -> None:
        begun.append(stop_flag)
        (clean_up,) = [h.fn for h in registry._activities.get_all_handlers() if h.id == "clean_up"]
        if len(begun) == 1:
            await clean_up()
        while not over.is_set():
            await asyncio.sleep(0.01)

    monkeypatch.setattr(kopf, "operator", kopf_operator)
    monkeypatch.setattr(process, "ENDING_SECONDS", 0.1)
    operator = Operator(cast(Connection, None), Settings("trainer", "router"))
    operator.informer = Informer(cast(Cluster, Empty()), operator.cache, operator.queue)
    watching = asyncio.create_task(operator._watch())
    try:
        await until("another kopf", lambda: len(begun) == 2)
        assert [flag.is_set() for flag in begun] == [True, False]
        assert not watching.done()
    finally:
        over.set()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
