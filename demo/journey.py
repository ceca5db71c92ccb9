"""One FineTune followed from Pending to Live, with users calling while they are moved."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from demo import sealed
from demo.address import reachable
from demo.example import Example
from demo.judge import right
from demo.kube import DemoError, Kubectl
from demo.report import Answers, Outcome, Share, within
from demo.traffic import Tally, Traffic, bounded, chosen
from demo.view import View

Status = Mapping[str, Any]
ENDED = frozenset({"Live", "Trained", "NotNeeded", "Rejected", "Failed"})
SERVING = frozenset({"RollingOut", "Baking", "Live"})
MOVING = frozenset({"Deploying", "Connecting", "Shifting"})  # the weight is committed, but not every router has it yet
REDRAW_SECONDS = 1.0
SPLIT_TRIES = 3
SPLIT_PAUSE = 1.5
FEED_PER_ARM = 120
QUESTIONS_PER_STEP = 12
QUESTION_CONCURRENCY = 2


@dataclass(frozen=True)
class Journey:
    """What came of it, and whether it ended in time."""

    outcome: Outcome
    in_time: bool


async def travel(kubectl: Kubectl, example: Example, view: View, limit_seconds: float) -> Journey:
    """Follow the FineTune to its end, or until the limit."""
    traveller = Traveller(kubectl, example, view)
    follow = asyncio.create_task(traveller.follow())
    redraw = asyncio.create_task(traveller.redraw())
    in_time = True
    try:
        await asyncio.wait_for(traveller.go(), limit_seconds)
    except TimeoutError:
        in_time = False
    finally:
        for task in (follow, redraw):
            task.cancel()
        await asyncio.gather(follow, redraw, return_exceptions=True)  # until the child that watches has been waited for
    return Journey(traveller.outcome(), in_time)


class Traveller:
    """Holds the status last seen, and what the users met."""

    def __init__(self, kubectl: Kubectl, example: Example, view: View) -> None:
        self._kubectl, self._example, self._view = kubectl, example, view
        self._status: Status = {}
        self._changed = asyncio.Condition()
        self._tally = Tally()
        self._shares: list[Share] = []
        self._sealed: sealed.Sealed | None = None
        self._answers: dict[str, Answers] = defaultdict(Answers)

    async def follow(self) -> None:
        """Keep the status up to date."""
        async for found in self._kubectl.watch(*self._example.target):
            async with self._changed:
                self._status = found.get("status") or {}
                self._changed.notify_all()
            self._view.show(self._status, self._tally)

    async def redraw(self) -> None:
        """Show what the users meet, also while the status stands still."""
        while True:
            await asyncio.sleep(REDRAW_SECONDS)
            self._view.show(self._status, self._tally)

    async def go(self) -> None:
        """Wait, look at the test rows, send the users, until the FineTune has come to an end."""
        await self._until(lambda s: condition(s, "DataPrepared") or ended(s))
        looking = asyncio.create_task(self._look())
        try:
            await self._until(lambda s: s.get("phase") in SERVING or ended(s))
            await looking
            if self._status.get("phase") in SERVING:
                await self._send_users()
        finally:
            looking.cancel()

    async def _until(self, holds: Callable[[Status], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: holds(self._status))

    async def _look(self) -> None:
        if not condition(self._status, "DataPrepared"):
            return
        try:
            self._sealed = await asyncio.to_thread(sealed.look, self._kubectl, self._example, self._status["revision"])
        except DemoError as error:
            self._view.note(f"the test rows could not be read: {error}")
            return
        found = self._sealed
        self._view.note(f"{len(found.questions)} sealed test rows, {found.leaked} of them among the {found.trained} training rows")

    async def _send_users(self) -> None:
        where = (self._example.namespace, self._example.name)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:  # noqa: SIM117
            async with reachable(self._kubectl, session, *where) as bases:
                traffic = Traffic(session, bases, self._example.model)
                self._tally = traffic.tally
                self._tally.new_arm = (self._status.get("rollout") or {}).get("arm", "")
                trickle = asyncio.create_task(traffic.trickle())
                feeding: asyncio.Task[None] | None = None
                asking: list[asyncio.Task[None]] = []
                try:
                    for number, weight_ in enumerate(self._example.weights):
                        await self._until(partial(reached, weight_=weight_))
                        if feeding is not None:
                            feeding.cancel()
                        split = await self._measure(traffic, weight_)
                        if split:
                            self._view.note(
                                f"at {weight_} %: {self._shares[-1].on_new} of {self._shares[-1].users} users are on the new model"
                            )
                            feeding = asyncio.create_task(traffic.feed(chosen(split, self._tally.new_arm, FEED_PER_ARM)))
                            asking.append(asyncio.create_task(self._ask(traffic, split, number)))
                    await self._until(ended)
                    await asyncio.gather(*asking)
                finally:
                    tasks = [task for task in (trickle, feeding, *asking) if task is not None]
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _measure(self, traffic: Traffic, weight_: int) -> dict[str, str]:
        """The split at this weight; measured again if it is off, and the last measurement counts."""
        split: dict[str, str] = {}
        share: Share | None = None
        for _ in range(SPLIT_TRIES):
            if weight(self._status) != weight_:
                break
            split = await traffic.split()
            share = Share(weight_, sum(arm == self._tally.new_arm for arm in split.values()), len(split))
            if within(share):
                break
            await asyncio.sleep(SPLIT_PAUSE)
        if share is None:
            return {}
        self._shares.append(share)
        return split

    async def _ask(self, traffic: Traffic, split: dict[str, str], number: int) -> None:
        """Some test rows' questions by users of both arms; says what they were told."""
        if self._sealed is None:
            return
        first = number * QUESTIONS_PER_STEP
        questions = itertools.islice(itertools.cycle(self._sealed.questions), first, first + QUESTIONS_PER_STEP)
        users = itertools.cycle(chosen(split, self._tally.new_arm, QUESTIONS_PER_STEP))

        async def one(user: str, question: sealed.Question) -> None:
            arm, answer = await traffic.question(user, question.messages)
            if not arm:
                return
            who = "tuned" if arm == self._tally.new_arm else "base"
            good = await asyncio.to_thread(right, answer, question.reference)
            before = self._answers[who]
            self._answers[who] = Answers(before.asked + 1, before.right + good)
            self._view.note(f"{user} ({who}) “{question.text}” {'✓' if good else '✗'} {' '.join(answer.split())[:90]}")

        pairs = list(zip(users, questions, strict=False))
        await bounded([lambda u=u, q=q: one(u, q) for u, q in pairs], QUESTION_CONCURRENCY)  # type: ignore[misc]

    def outcome(self) -> Outcome:
        """All that was seen."""
        tally, found = self._tally, self._sealed
        return Outcome(
            status=self._status, weights=self._example.weights, shares=tuple(self._shares),
            requests=sum(tally.requests.values()) + tally.failed, failed=tally.failed, failures=tuple(tally.failures),
            switched=len(tally.switched), leaked_rows=found.leaked if found else None,
            test_rows=len(found.questions) if found else None, answers=dict(self._answers),
        )  # fmt: skip


def condition(status: Status, type_: str) -> bool:
    """Whether a condition is True."""
    return any(c["type"] == type_ and c["status"] == "True" for c in status.get("conditions") or [])


def weight(status: Status) -> int:
    """Percent of the users on the new arm."""
    return int((status.get("rollout") or {}).get("weight", 0))


def reached(status: Status, weight_: int) -> bool:
    """Whether that weight is in force on every router, or was passed already, or nothing more will happen."""
    moving = (status.get("rollout") or {}).get("state") in MOVING
    return weight(status) > weight_ or (weight(status) == weight_ and not moving) or ended(status)


def ended(status: Status) -> bool:
    """Whether nothing more will happen by itself."""
    return status.get("phase") in ENDED
