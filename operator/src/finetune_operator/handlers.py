"""kopf's decorators: every event of a FineTune goes into the cache, and news makes it due. Nothing is decided here.

kopf runs in a thread of its own (docs/adr/0007): an event is taken in by the thread that owns cache and queue, which are made for one
alone. Invariant: handlers of events are coroutines, for kopf runs plain functions in threads, where events overtake each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import kopf

from finetune_operator.cache import Cache, Key
from finetune_operator.connection import Listed, watching
from finetune_operator.kinds import FINETUNE
from finetune_operator.projection import projected
from finetune_operator.queue import Queue

IDLE_SECONDS: Final = 0.05  # a worker of kopf's holds its last object so long
CHUNK: Final = 100  # objects of a page of a list


def registry(
    cache: Cache, queue: Queue[Key], lacking: Callable[[], None], call: Callable[..., object], ending: Callable[[], None]
) -> kopf.OperatorRegistry:
    """A registry of one kopf, which feeds that cache and that queue. `lacking`: it listed less than was known.

    `call(function, *arguments)` runs it in the thread that owns all of them; `ending` is called in kopf's, when kopf is at its end.
    """
    made = kopf.OperatorRegistry()
    tell = _Handover(partial(told, cache, queue), call).give

    @kopf.on.event(FINETUNE.group, FINETUNE.version, FINETUNE.plural, registry=made, id=FINETUNE.plural)
    async def seen(type: str, body: kopf.Body, **_: Any) -> None:
        tell(type, dict(body))

    kopf.on.login(registry=made)(watching(partial(call, Lists(cache, queue, lacking).take)))

    @kopf.on.cleanup(registry=made, id="clean_up")
    async def clean_up(**_: Any) -> None:
        ending()

    @kopf.on.startup(registry=made)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.persistence.diffbase_storage = _NothingCompared()
        settings.scanning.disabled = True
        settings.queueing.idle_timeout = IDLE_SECONDS
        settings.watching.chunk_size = CHUNK
        settings.networking.request_timeout = 30
        settings.watching.server_timeout = 300

    return made


class Lists:
    """Takes in what one kopf lists: at its start, and again after a 410. Says at a list's end that it lacks what was known before it: no
    watch tells what was deleted before its list."""

    def __init__(self, cache: Cache, queue: Queue[Key], lacking: Callable[[], None]) -> None:
        self._cache, self._queue, self._lacking = cache, queue, lacking
        self._begun: dict[str | None, tuple[frozenset[str], set[str]]] = {}  # by namespace: uids known before, and listed so far

    def take(self, page: Listed) -> None:
        """What was missing or changed becomes due."""
        if page.first:
            self._begun[page.namespace] = self._cache.uids(FINETUNE, page.namespace), set()
        known, listed = self._begun[page.namespace]
        listed |= {obj["metadata"]["uid"] for obj in page.items}
        for key in self._cache.fill(FINETUNE, page.items):
            self._queue.add(key)
        if page.last:
            del self._begun[page.namespace]
            if self._cache.missing(FINETUNE, listed, known):
                self._lacking()


class _NothingCompared(kopf.DiffBaseStorage):
    """kopf compares states for handlers of changes. There are none: it need not copy every object of every event (half of its cost)."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("no handler keeps a state on an object")


class _Handover:
    """Events of a loop for another thread, woken once for all of a round of that loop: each time costs both a change of threads."""

    def __init__(self, take: Callable[..., object], call: Callable[..., object]) -> None:
        self._take, self._call = take, call
        self._events: deque[tuple[Any, ...]] = deque()
        self._woken = False

    def give(self, *event: Any) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._call, self._take_all)

    def _take_all(self) -> None:
        """In the other thread. It says first that it looks: what is given from now on wakes it again, or is seen already."""
        self._woken = False
        try:
            for _ in range(len(self._events)):
                self._take(*self._events.popleft())
        finally:
            if self._events and not self._woken:  # one that could not be taken in does not hold up the others
                self._woken = True
                self._call(self._take_all)


def told(cache: Cache, queue: Queue[Key], type_: str, obj: dict[str, Any]) -> None:
    """Take in an event of a watch of kopf's, which reads objects whole."""
    if (news := cache.event(FINETUNE, type_, projected(FINETUNE, obj))) is not None:
        queue.add(news)
