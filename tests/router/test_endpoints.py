"""Pods that die, hang, come and go behind a router."""

from __future__ import annotations

import asyncio
from collections import Counter

from finetune_operator import names

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, structure, until
from tests.router.test_split import traffic

USERS = [f"user-{i}" for i in range(40)]
ONE = structure(OLD)


async def test_a_pod_that_dies_costs_no_request_but_those_that_it_held(world: World) -> None:
    router = await world.started(ONE)
    first, second = world.pods["old"]
    async with traffic(router, [*USERS, None], per_second=100) as got:
        await until(lambda: first.served > 5 and second.served > 5, "both pods serve")
        await first.stop()
        before = second.served
        await until(lambda: second.served > before + 100, "the other pod has it all", 10)
    assert set(got) <= {OLD.arm, "503"}
    assert got["503"] <= 2, "at this rate it holds one or two"


async def test_many_requests_at_once_are_retried_when_a_pod_dies(world: World) -> None:
    router = await world.started(ONE)
    await world.pods["old"][0].stop()
    answers = await asyncio.gather(*(router.arm_of(f"user-{i}") for i in range(200)))
    assert Counter(answers) == {OLD.arm: 200}


async def test_a_pod_that_is_not_ready_gets_no_requests_soon_after_and_again_once_it_is(world: World) -> None:
    router = await world.started(ONE)
    first, _ = world.pods["old"]

    async def healthy(count: int) -> bool:
        return (await router.state()).totals[OLD.arm].healthy == count

    first.ready = False  # nobody has called yet: a new canary is looked at as often as a busy one
    await until(lambda: healthy(1), "the router sees it", 3)
    before = first.served
    assert set((await router.assignment(USERS)).values()) == {OLD.arm}
    assert first.served == before
    first.ready = True
    await until(lambda: healthy(2), "the router sees that it is back", 3)
    await router.assignment(USERS)
    assert first.served > before


async def test_pods_are_followed_as_the_name_server_tells(world: World) -> None:
    first, second = world.pods["old"]
    world.resolve(OLD, [first])
    router = await world.started(ONE)
    await router.assignment(USERS)
    assert second.served == 0
    async with traffic(router, list(USERS), per_second=100) as got:
        world.resolve(OLD, [first, second])
        await until(lambda: second.served > 20, "the new pod serves")
        world.resolve(OLD, [second])

        async def alone() -> bool:
            return (await router.state()).totals[OLD.arm].healthy == 1

        await until(alone, "the old pod is let go")
        before = first.served
        await asyncio.sleep(0.5)
        assert first.served == before, "the old one serves nobody"
    assert set(got) == {OLD.arm}, got


async def test_a_name_server_that_fails_changes_nothing(world: World) -> None:
    router = await world.started(ONE)
    world.zone.broken = True
    world.zone.asked.clear()
    async with traffic(router, list(USERS), per_second=100) as got:
        await until(lambda: len(world.zone.asked) > 0, "the router asked again")
        await asyncio.sleep(1.5)
    assert set(got) == {OLD.arm}, got
    assert (await router.state()).totals[OLD.arm].healthy == 2


async def test_all_pods_replaced_at_once_are_found_without_a_pause(world: World) -> None:
    first, second = world.pods["old"]
    world.resolve(OLD, [first])
    router = await world.started(ONE)
    async with traffic(router, list(USERS), per_second=100) as got:
        world.resolve(OLD, [second])
        await until(lambda: second.served > 100, "the new pod serves")
    assert got["503"] <= 5, "the time of one health check"


async def test_a_canary_without_a_name_or_pods_never_disturbs_stable(world: World) -> None:
    for pods in (None, []):
        world.resolve(NEW, pods)
        split = structure(OLD, NEW, salt=f"salt-{pods}")
        router = await world.started(split)
        assert set((await router.assignment(USERS)).values()) == {OLD.arm}
        assert await router.arm_of(None) == OLD.arm
        state = await router.state()
        assert (state.version, state.totals[NEW.arm].healthy, state.totals[OLD.arm].healthy) == (split.version, 0, 2)
    world.resolve(NEW, world.pods["new"])

    async def warm() -> bool:
        return (await router.state()).totals[NEW.arm].healthy == 2

    await until(warm, "the canary is found once it exists", 8)


async def test_a_canary_added_to_a_running_router_disturbs_nobody_while_it_is_not_there(world: World) -> None:
    world.resolve(NEW, None)
    router = await world.started(ONE)
    split = structure(OLD, NEW)
    async with traffic(router, [*USERS, None], per_second=100) as got:
        router.write(split, 0)
        await router.serves(split, 0)
        await asyncio.sleep(0.5)
        router.write(ONE, 0)
        await router.serves(ONE, 0)
    assert set(got) == {OLD.arm}, got


async def test_a_router_without_any_pod_behind_it_is_ready_and_answers_503(world: World) -> None:
    world.resolve(OLD, None)
    router = await world.started(ONE)
    assert await router.status(CHAT, method="POST", headers={"x-user-id": "ada"}) == 503
    assert await router.status("/ready", names.ROUTER_METRICS_PORT) == 200
    assert (await router.state()).totals[OLD.arm].errors == 1
