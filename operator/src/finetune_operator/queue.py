"""Which FineTune is due next. Each key is there once, at its soonest time, and never with two workers at once."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 300.0
DOUBLINGS: Final = 9  # of the first delay, which is longer than the longest then


class Queue(Generic[K]):
    """Due times with deduplication and per-key backoff; `monotonic` is the clock in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._heap: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._busy: set[K] = set()
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._count = 0
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()  # one worker waits for what is due next, the others for that one: what comes in wakes one alone

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: K, delay: float = 0.0) -> None:
        """Let the key be due after `delay` seconds, or sooner if it already is."""
        due = self._now() + delay
        target = self._again if key in self._busy else self._due
        if key in target and target[key] <= due:
            return
        target[key] = due
        if target is self._due:
            self._push(key, due)

    async def take(self) -> K:
        """The next due key; it is the caller's until `done` or `failed`."""
        async with self._turn:
            while (wait := self._wait()) != 0.0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):  # before Python 3.12 `wait_for` loses a cancellation that comes with its end
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self._busy.add(key)
            return key

    def done(self, key: K, requeue_after: float | None = None) -> None:
        """The key was dealt with; what came in meanwhile, or `requeue_after`, makes it due again."""
        self._failures.pop(key, None)
        self._release(key, requeue_after)

    def failed(self, key: K, at_least: float = 0.0) -> float:
        """The key could not be dealt with: due again after a jittered, doubling delay, which is returned (seconds)."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(DOUBLINGS, failures - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
        delay = max(delay, at_least)
        self._again.pop(key, None)  # what came in meanwhile saw the same failure
        self._release(key, delay)
        return delay

    def _release(self, key: K, delay: float | None) -> None:
        self._busy.discard(key)
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, max(0.0, again - self._now()))
        if delay is not None:
            self.add(key, delay)

    def _wait(self) -> float | None:
        """Seconds until the first valid entry is due; 0 when it is; None when there is none."""
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)  # superseded by a sooner one
                continue
            return max(0.0, due - self._now())
        return None

    def _push(self, key: K, due: float) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        self._changed.set()
