"""Settings → leadership → fill the caches → workers → watches. Exits when leadership is lost; a successor goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Final

import kopf
from aiohttp import web
from prometheus_client import generate_latest

from finetune_operator import errors, handlers, logs, signing
from finetune_operator.cache import Cache, Key
from finetune_operator.clock import SystemClock
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection
from finetune_operator.events import Events
from finetune_operator.extras import Extras
from finetune_operator.informer import LONGEST_PAUSE, Informer, patiently
from finetune_operator.kinds import CHILDREN, EXTRAS, FINETUNE, UNWATCHED, WATCHED, Kind
from finetune_operator.leadership import Elector
from finetune_operator.metrics import Metrics
from finetune_operator.pods import PodClient
from finetune_operator.queue import Queue
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings

log = logging.getLogger("finetune_operator")
WATCH_FAILURES: Final = 20  # in a row, before the process gives up and is started anew
WATCH_HEALTHY_SECONDS: Final = 60.0
ENDING_SECONDS: Final = 15.0  # for kopf to end; it may not, once its connections are closed
GARBAGE_AFTER: Final = (10_000, 20, 20)  # new objects


class Operator:
    """One process: a leader that reconciles, or a candidate that waits."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.metrics = Metrics()
        self.cache = Cache()
        self.queue: Queue[Key] = Queue(self.clock.monotonic)
        self.elector = Elector(Cluster(connection), self.clock, settings.lease_namespace, settings.lease_name, settings.identity)
        self.cluster = Cluster(connection, may_write=self.elector.may_write, count=self.metrics.count_write)
        self.informer = Informer(self.cluster, self.cache, self.queue, self.metrics.watch_restarts.inc)
        self.extras = Extras(self.informer.fill, self.clock.monotonic, everywhere=not settings.namespaces)
        self.pods = PodClient()
        self.filled = False
        self.closed: set[str] = set()  # namespaces that the settings name and the API server refuses
        self.begin_anew = threading.Event()  # the watches must (other namespaces are open now), or do, for kopf is at its end
        self.lacking = asyncio.Event()  # a list of kopf's lacks what was known

    async def run(self) -> None:
        """Serve health and metrics, wait for the Lease, then work until it is lost or the process is asked to stop."""
        _collect_garbage()  # a candidate may wait for months
        runners = [await _serve(self.settings.health_port, self._health()), await _serve(self.settings.metrics_port, self._metrics())]
        try:
            await self.elector.acquire()
            self.metrics.leading.set(1)
            await self._lead()
        finally:
            await self.elector.release()
            await self.pods.close()
            for runner in runners:
                await runner.cleanup()

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.elector.keep())  # first: to fill the caches may take longer than the Lease lasts
            reconciler = await self._prepared()
            tasks.create_task(self._sweep())
            tasks.create_task(self._after_lists())
            tasks.create_task(self._watch())
            for namespace, kind in product(self._namespaces(), WATCHED):
                tasks.create_task(self.informer.follow(kind, namespace, partial(self._is_open, namespace)))
            for namespace, kind in product(self._namespaces(), EXTRAS):
                tasks.create_task(self.informer.follow(kind, namespace, partial(self._is_followed, kind, namespace)))
            for _ in range(self.settings.workers):
                tasks.create_task(self._work(reconciler.reconcile))

    async def _prepared(self) -> Reconciler:
        """With the key and full caches, also from an API server that is busy: a process that ends for that is started ever later."""
        key = await patiently(partial(signing.key, self.cluster, self.settings.lease_namespace))
        gc.disable()  # a list is all new objects and no garbage
        try:
            await self._each_kind(self.informer.begin, CHILDREN)
        finally:
            _collect_garbage()
        self.filled = True
        log.info("filled")
        events = Events(self.cluster, self.clock, self.settings.identity)
        return Reconciler(self.cluster, self.cache, self.pods, self.clock, self.settings, self.metrics, events, key, self.extras)

    async def _sweep(self) -> None:
        """Hold what no watch tells for sure against what is there: some kinds have none, and kopf's may have missed something."""
        while True:
            await asyncio.sleep(self.settings.sweep_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            await self._compare(UNWATCHED)

    async def _after_lists(self) -> None:
        """What a list of kopf's lacks was deleted before it, or is no longer listed while the CRD's storage is made anew: look closely."""
        while True:
            await self.lacking.wait()
            self.lacking.clear()
            await self._compare()

    async def _compare(self, children: Iterable[Kind] = ()) -> None:
        try:
            await self._each_kind(self.informer.compare, children)
        except errors.ClusterError as error:
            log.warning("sweep", extra=logs.of(error=str(error)))

    async def _each_kind(self, verb: Callable[[Kind, str | None], Awaitable[None]], children: Iterable[Kind]) -> None:
        """For FineTunes and those kinds in every namespace; one that was named and is closed to the operator (deleted, say) is left out."""
        closed: set[str] = set()
        for namespace in self._namespaces():
            try:
                for kind in CHILDREN if namespace in self.closed else ():  # it may be open again: children first, or they seem to be gone
                    await patiently(partial(self.informer.fill, kind, namespace))
                await patiently(partial(verb, FINETUNE, namespace))
            except errors.Forbidden as error:
                if namespace is None:
                    raise
                closed.add(namespace)
                self.extras.forget(namespace)  # what was there went with it
                log.warning("namespace", extra=logs.of(namespace=namespace, error=str(error)))
                continue
            for kind in children:
                await patiently(partial(verb, kind, namespace))
        if closed != self.closed:
            self.closed = closed
            self.begin_anew.set()

    def _is_open(self, namespace: str | None) -> bool:
        return namespace not in self.closed

    def _is_followed(self, kind: Kind, namespace: str | None) -> bool:
        return self._is_open(namespace) and self.extras.watched(kind, namespace)

    def _namespaces(self) -> Sequence[str | None]:
        """Those of the settings, or the whole cluster."""
        return self.settings.namespaces or (None,)

    async def _work(self, reconcile: Callable[[Key], Awaitable[float | None]]) -> None:
        ok = self.metrics.reconciles.labels("ok")
        while True:
            key = await self.queue.take()
            self.metrics.depth.set(len(self.queue))
            started = time.monotonic()
            try:
                requeue = await reconcile(key)
            except errors.Conflict:
                self.metrics.reconciles.labels("conflict").inc()
                self.queue.done(key, 0.2)  # somebody wrote in between: what they wrote is on its way
            except errors.LeadershipLost:
                raise
            except Exception as error:
                self.metrics.reconciles.labels("error").inc()
                delay = self.queue.failed(key, getattr(error, "retry_after", None) or 0.0)
                expected = isinstance(error, errors.FineTuneError)
                extra = logs.of(namespace=key[0], name=key[1], error=str(error), retry_seconds=round(delay, 1))
                log.warning("reconcile", extra=extra, exc_info=None if expected else error)
            else:
                ok.inc()
                self.queue.done(key, requeue)
            self.metrics.seconds.observe(time.monotonic() - started)

    async def _watch(self) -> None:
        """Run kopf; begin it anew when it ends, for a failing watch must not take the workers down."""
        failures = 0
        while True:
            started = self.clock.monotonic()
            self.begin_anew = threading.Event()
            open_ = [n for n in self.settings.namespaces if n not in self.closed]
            if self.settings.namespaces and not open_:  # of no namespace at all kopf would make the whole cluster
                await self._until_begin_anew()
                continue
            try:
                await self._run_kopf(open_)
            except Exception as error:
                log.warning("watch", extra=logs.of(error=str(error)))
                await self._compare()
            else:
                continue
            failures = 1 if self.clock.monotonic() - started > WATCH_HEALTHY_SECONDS else failures + 1
            if failures >= WATCH_FAILURES:
                raise errors.Unavailable(f"the watches ended {failures} times in a row")
            self.metrics.watch_restarts.inc()
            await asyncio.sleep(min(LONGEST_PAUSE, 2.0**failures) * random.uniform(0.8, 1.2))  # noqa: S311

    async def _run_kopf(self, namespaces: Sequence[str]) -> None:
        """kopf, in a loop of its own until `begin_anew`: as it ends it cancels every task of its loop that is younger than itself.

        The thread is not waited for when this process ends, nor when kopf does not end: it may wait for credentials for ever.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        begin_anew = self.begin_anew
        registry = handlers.registry(self.cache, self.queue, self.lacking.set, loop.call_soon_threadsafe, begin_anew.set)

        async def watched() -> None:
            try:
                await kopf.operator(
                    registry=registry,
                    identity=self.settings.identity,  # type: ignore[arg-type]  # else kopf asks for the user's name, which no image has
                    standalone=True,
                    clusterwide=not self.settings.namespaces,
                    namespaces=namespaces,
                    stop_flag=begin_anew,
                )
            finally:
                begin_anew.set()  # a thread of its loop waits for that

        def end(error: Exception | None) -> None:
            if not ended.done():
                ended.set_exception(error) if error else ended.set_result(None)

        def run() -> None:
            error: Exception | None = None
            try:
                asyncio.run(watched())
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # this process is at its end
                loop.call_soon_threadsafe(end, error)

        threading.Thread(target=run, name="kopf", daemon=True).start()
        try:
            await self._until_begin_anew(ended)
            await asyncio.wait({ended}, timeout=ENDING_SECONDS)
            if not ended.done():
                raise errors.Unavailable(f"kopf did not end within {ENDING_SECONDS:.0f} s and is left to itself")
            ended.result()
        finally:
            begin_anew.set()

    async def _until_begin_anew(self, ended: asyncio.Future[None] | None = None) -> None:
        """Wait until that is set, or kopf has ended."""
        while not (self.begin_anew.is_set() or (ended and ended.done())):
            await asyncio.wait({ended}, timeout=1.0) if ended else await asyncio.sleep(1.0)

    def _health(self) -> web.Application:
        async def healthz(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        async def readyz(_: web.Request) -> web.Response:
            ready = self.filled or not self.elector.leading  # a candidate is ready to take over
            return web.Response(status=200 if ready else 503, text="ready\n" if ready else "filling caches\n")

        app = web.Application()
        app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
        return app

    def _metrics(self) -> web.Application:
        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(self.metrics.registry), content_type="text/plain")

        app = web.Application()
        app.add_routes([web.get("/metrics", metrics)])
        return app


def _collect_garbage() -> None:
    """From now on. What is there mostly stays: to look through it again and again was a third of a sweep's time."""
    gc.set_threshold(*GARBAGE_AFTER)
    gc.freeze()
    gc.enable()


async def _serve(port: int, app: web.Application) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


async def run(settings: Settings) -> None:
    """Until the process is asked to stop; FineTuneErrors, in groups, when the Lease or the API server is lost."""
    watches = len((*WATCHED, *EXTRAS)) * max(1, len(settings.namespaces))
    async with Connection(watches=watches) as connection:
        task = asyncio.ensure_future(Operator(connection, settings).run())
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            log.info("stopped")
