"""The users: a thousand people, each known by the header x-user-id, who call the users' address and keep count.

A failed request is any without an answer below 400. A user has switched back when a request sent after the new model
answered this user is answered by another arm. Nothing is tried a second time.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import aiohttp

USERS = tuple(f"user-{number:04d}" for number in range(1000))
USER_HEADER = "x-user-id"
ARM_HEADER = "x-finetune-arm"
SPLIT_CONCURRENCY = 24
FEED_CONCURRENCY = 6
TRICKLE_SECONDS = 0.7
TIMEOUT = aiohttp.ClientTimeout(total=120, connect=10)
KEPT_FAILURES = 5
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """An answered or failed request, as its user saw it. `arm` is "" where none answered."""

    user: str
    arm: str
    ok: bool
    sent: float
    body: Any = None
    problem: str = ""


@dataclass
class Tally:
    """What the users saw so far."""

    new_arm: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    switched: set[str] = field(default_factory=set)
    seen_new: dict[str, float] = field(default_factory=dict)

    def add(self, reply: Reply, now: float) -> None:
        """Count a reply that came at `now` (same clock as `reply.sent`)."""
        if not reply.ok:
            self.failed += 1
            if len(self.failures) < KEPT_FAILURES:
                self.failures.append(f"{reply.user}: {reply.problem}")
            return
        self.requests[reply.arm] += 1
        if self.new_arm and reply.arm == self.new_arm:
            self.seen_new.setdefault(reply.user, now)
        elif reply.sent > self.seen_new.get(reply.user, float("inf")):
            self.switched.add(reply.user)


class Traffic:
    """Calls through the users' address; `bases` are taken in turn."""

    def __init__(self, session: aiohttp.ClientSession, bases: Sequence[str], model: str) -> None:
        self._session, self._bases, self._model = session, itertools.cycle(bases), model
        self.tally = Tally()

    async def call(self, user: str, path: str, body: dict[str, Any] | None = None, *, count: bool = True) -> Reply:
        """One request of one user."""
        sent = time.monotonic()
        try:
            async with self._session.request(
                "POST" if body else "GET",
                next(self._bases) + path,
                json=body,
                headers={USER_HEADER: user},
                timeout=TIMEOUT,
            ) as response:
                arm = response.headers.get(ARM_HEADER, "")
                text = await response.text()
                ok = response.status < 400
                answer = await response.json() if ok else None
                reply = Reply(user, arm, ok, sent, answer, "" if ok else f"{path} answered {response.status}: {text[:120]}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reply = Reply(user, "", False, sent, problem=f"{path}: {type(error).__name__} {error}")
        if count:
            self.tally.add(reply, time.monotonic())
        return reply

    async def answers(self) -> bool:
        """Whether the users' address serves yet (not counted)."""
        return (await self.call(USERS[0], "/v1/models", count=False)).ok

    async def split(self) -> dict[str, str]:
        """Which arm answers each user now; failed users are left out (and counted as failed)."""
        replies = await bounded((partial(self.call, user, "/v1/models") for user in USERS), SPLIT_CONCURRENCY)
        return {reply.user: reply.arm for reply in replies if reply.ok}

    async def one_token(self, user: str) -> Reply:
        """The cheapest inference request: what the guards look at."""
        return await self.call(user, "/v1/completions", {"model": self._model, "prompt": "SELECT", "max_tokens": 1, "temperature": 0})

    async def feed(self, users: Iterable[str]) -> None:
        """One-token completions by these users, so that the guards have evidence soon."""
        await bounded((partial(self.one_token, user) for user in users), FEED_CONCURRENCY)

    async def question(self, user: str, messages: list[dict[str, str]]) -> tuple[str, str]:
        """(arm, answer) to a real question; the answer is "" where it failed."""
        body = {"model": self._model, "messages": messages, "max_tokens": 64, "temperature": 0}
        reply = await self.call(user, "/v1/chat/completions", body)
        return reply.arm, reply.body["choices"][0]["message"]["content"] if reply.ok else ""

    async def trickle(self) -> None:
        """A one-token completion of some user every now and then, for ever."""
        random_ = random.Random(17)
        while True:
            await self.one_token(random_.choice(USERS))
            await asyncio.sleep(TRICKLE_SECONDS)


async def bounded(calls: Iterable[Callable[[], Awaitable[T]]], limit: int) -> list[T]:
    """The results of all calls, at most `limit` under way at once."""
    gate = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await call()

    return await asyncio.gather(*(one(call) for call in calls))


def chosen(split: dict[str, str], new_arm: str, per_arm: int) -> list[str]:
    """Users of both arms in turn, up to `per_arm` requests each: both get the evidence that the guards ask for."""
    on_new = [user for user, arm in split.items() if arm == new_arm]
    on_old = [user for user, arm in split.items() if arm != new_arm]
    groups = [list(itertools.islice(itertools.cycle(group), per_arm)) for group in (on_new, on_old) if group]
    return [user for turn in itertools.zip_longest(*groups) for user in turn if user]
