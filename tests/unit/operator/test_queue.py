"""The queue: once each, at its soonest time, never with two workers."""

from __future__ import annotations

import asyncio

import pytest
from finetune_operator.queue import FIRST_DELAY, LONGEST_DELAY, Queue

from tests.unit.operator.world import HandClock


def made() -> tuple[HandClock, Queue[str]]:
    clock = HandClock()
    return clock, Queue(clock.monotonic)


async def due(queue: Queue[str]) -> list[str]:
    """What can be taken now."""
    found = []
    for _ in range(len(queue)):
        try:
            found.append(await asyncio.wait_for(queue.take(), 0.01))
        except TimeoutError:
            break
    return found


async def test_a_key_that_is_added_twice_is_taken_once_at_its_soonest_time() -> None:
    clock, queue = made()
    queue.add("a", 60)
    queue.add("a", 10)
    queue.add("a", 30)
    assert await due(queue) == []
    clock.seconds = 10
    assert await due(queue) == ["a"]
    clock.seconds = 100
    queue.done("a")
    assert (len(queue), await due(queue)) == (0, [])


async def test_keys_come_by_their_times_and_in_their_order() -> None:
    clock, queue = made()
    for key, delay in (("late", 9.0), ("first", 1.0), ("second", 1.0)):
        queue.add(key, delay)
    clock.seconds = 9
    assert await due(queue) == ["first", "second", "late"]


async def test_a_busy_key_is_given_to_nobody_else_and_comes_again_afterwards() -> None:
    _, queue = made()
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("a")
    assert await due(queue) == []
    queue.done("a", 300)
    assert await due(queue) == ["a"], "what came in meanwhile, not the later wish"


async def test_a_wish_for_later_is_kept_unless_an_event_comes_first() -> None:
    clock, queue = made()
    queue.add("a")
    queue.done(await queue.take(), 30)
    assert await due(queue) == []
    clock.seconds = 30
    assert await due(queue) == ["a"]


async def test_failures_wait_longer_each_time_and_a_success_forgives_them() -> None:
    clock, queue = made()
    delays = []
    for _ in range(12):
        queue.add("a")
        clock.seconds += 1000
        delays.append(queue.failed(await queue.take()))
    assert [round(d) for d in delays[:3]] == [pytest.approx(FIRST_DELAY * 2**n, rel=0.5) for n in range(3)]
    assert 0.8 * LONGEST_DELAY <= delays[-1] <= 1.2 * LONGEST_DELAY
    clock.seconds += 1000
    queue.done(await queue.take())
    queue.add("a")
    assert queue.failed(await queue.take()) < 2


async def test_who_is_told_when_to_come_again_does_not_come_sooner() -> None:
    _, queue = made()
    queue.add("a")
    assert queue.failed(await queue.take(), at_least=7.0) == 7.0


async def test_a_waiting_worker_is_woken_by_what_is_added() -> None:
    _, queue = made()
    workers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert set(await asyncio.wait_for(asyncio.gather(*workers), 1)) == {"a", "b"}


async def test_what_comes_in_wakes_one_worker_however_many_wait() -> None:
    reads: list[None] = []

    def monotonic() -> float:
        reads.append(None)
        return 0.0

    queue: Queue[str] = Queue(monotonic)
    queue.add("later", 3600.0)
    workers = [asyncio.create_task(queue.take()) for _ in range(50)]
    await asyncio.sleep(0.01)
    reads.clear()
    queue.add("a")
    done, waiting = await asyncio.wait(workers, timeout=0.05)
    assert ([w.result() for w in done], len(reads) < 5) == (["a"], True), f"the clock was asked {len(reads)} times"
    for worker in waiting:
        worker.cancel()
    assert await asyncio.wait(waiting, timeout=1.0) == (waiting, set())


def test_what_never_succeeds_is_tried_for_ever() -> None:
    queue: Queue[str] = Queue(lambda: 0.0)
    delays = [queue.failed("key") for _ in range(2000)]
    assert max(delays) <= 1.2 * LONGEST_DELAY
    assert min(delays[-100:]) >= 0.8 * LONGEST_DELAY


@pytest.mark.parametrize("rounds", range(6))
async def test_a_worker_that_is_asked_to_end_as_work_comes_ends(rounds: int) -> None:
    """Whatever round of the loop it is: a worker that goes on holds up the end of the process, and with it the Lease."""
    queue: Queue[str] = Queue(lambda: 0.0)

    async def work() -> None:
        while True:
            queue.done(await queue.take())

    queue.add("later", 3600.0)
    worker = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    queue.add("a")
    for _ in range(rounds):
        await asyncio.sleep(0)
    worker.cancel()
    await asyncio.wait({worker}, timeout=1.0)
    assert worker.cancelled()
