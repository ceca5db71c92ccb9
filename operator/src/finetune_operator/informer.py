"""One list of each kind of children into the cache, and what happens after it: a watch goes on from its list's version.

So nothing falls between the two, and nothing is listed twice. FineTunes, which users write, are listed and watched by kopf (`handlers`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from finetune_operator import errors, logs, names
from finetune_operator.cache import Cache, Key
from finetune_operator.cluster import Cluster
from finetune_operator.kinds import FINETUNE, Kind
from finetune_operator.packed import Object
from finetune_operator.queue import Queue

log = logging.getLogger(__name__)
RETRY_SECONDS: Final = 1.0
SHORTEST_PAUSE: Final = 0.1  # before a watch that ended is begun anew; doubled each time that it failed
LONGEST_PAUSE: Final = 10.0
SETTLE_SECONDS: Final = 0.1  # what happens to a child seldom comes alone: a Job, its pod and both their statuses are one piece of news
BOOKMARK: Final = "BOOKMARK"
T = TypeVar("T")


class Informer:
    """Makes the cache agree with the API server, and what changed due."""

    def __init__(self, cluster: Cluster, cache: Cache, queue: Queue[Key], restarted: Callable[[], None] = lambda: None) -> None:
        self._cluster = cluster
        self._cache = cache
        self._queue = queue
        self._restarted = restarted  # called when a watch failed
        self._versions: dict[tuple[Kind, str | None], str] = {}  # where a watch goes on

    async def begin(self, kind: Kind, namespace: str | None) -> None:
        """Fill the cache with children; whether FineTunes may be listed is asked alone, for kopf lists them."""
        await (self._cluster.may_list(kind, namespace) if kind is FINETUNE else self.fill(kind, namespace))

    async def fill(self, kind: Kind, namespace: str | None) -> None:
        """Make the cache agree with a complete list; what was missed meanwhile becomes due."""

        async def take(objects: Sequence[Object]) -> None:
            for key in self._cache.fill(kind, objects):
                self._due(key)

        self._versions[kind, namespace] = await self._list(kind, namespace, take)

    async def compare(self, kind: Kind, namespace: str | None) -> None:
        """Hold the cache against the metadata of all objects; only what is behind is read."""

        async def take(objects: Sequence[Object]) -> None:
            for behind in self._cache.behind(kind, objects):
                found = await self._cluster.get(kind, behind["metadata"]["namespace"], behind["metadata"]["name"])
                if found is not None and (key := self._cache.tell(kind, found)) is not None:
                    self._queue.add(key)

        await self._list(kind, namespace, take, metadata=True)

    async def _list(
        self, kind: Kind, namespace: str | None, take: Callable[[Sequence[Object]], Awaitable[None]], *, metadata: bool = False
    ) -> str:
        """The version of a complete list; each page is taken in at once, for the next one may fail."""
        known, listed, version = self._cache.uids(kind, namespace), set[str](), ""
        async for page in self._cluster.pages(kind, namespace, _selector(kind), metadata=metadata):
            listed |= {obj["metadata"]["uid"] for obj in page.items}
            await take(page.items)
            version = version or page.version
        await self._drop(kind, self._cache.missing(kind, listed, known))
        return version

    async def follow(self, kind: Kind, namespace: str | None, is_open: Callable[[], bool]) -> None:
        """Take in what happens to the kind's objects, for ever. What fails is begun anew with a list, while the namespace `is_open`."""
        failures = 0
        while True:
            while not is_open():
                await asyncio.sleep(RETRY_SECONDS)
            asked = 0.0
            try:
                await self._watch(kind, namespace)
            except errors.ClusterError as error:
                log.warning("watch", extra=logs.of(kind=kind.kind, namespace=namespace or "", error=str(error)))
                self._versions.pop((kind, namespace), None)
                self._restarted()
                failures, asked = failures + 1, error.retry_after or 0.0
            else:
                failures = 0
            pause = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** min(failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
            await asyncio.sleep(max(pause, asked))

    async def _watch(self, kind: Kind, namespace: str | None) -> None:
        where = (kind, namespace)
        if where not in self._versions:
            await self.fill(kind, namespace)
        async for type_, obj in self._cluster.watch(kind, namespace, _selector(kind), self._versions[where]):
            self._versions[where] = obj["metadata"]["resourceVersion"]
            if type_ != BOOKMARK and (key := self._cache.event(kind, type_, obj)) is not None:
                self._due(key, SETTLE_SECONDS)

    def _due(self, key: Key, delay: float = 0.0) -> None:
        """Let a child's FineTune be due. One that is not known (not yet, or not any more) is so when it comes itself."""
        if self._cache.knows(key):
            self._queue.add(key, delay)

    async def _drop(self, kind: Kind, missing: Iterable[Object]) -> None:
        """Forget what is not there, for good: not on the word of a list alone, which is stale while a CRD's storage is made anew."""
        for obj in missing:
            meta = obj["metadata"]
            found = await self._cluster.get(kind, meta["namespace"], meta["name"])
            if (found is None or found["metadata"]["uid"] != meta["uid"]) and (key := self._cache.drop(kind, obj)) is not None:
                self._queue.add(key)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer, also of an API server that is away or busy: whoever cannot renew the Lease meanwhile is ended for that."""
    while True:
        try:
            return await ask()
        except errors.Unavailable as error:
            log.warning("retry", extra=logs.of(error=str(error)))
            await asyncio.sleep(max(RETRY_SECONDS, error.retry_after or 0.0))


def _selector(kind: Kind) -> str:
    return "" if kind is FINETUNE else names.SELECTOR
