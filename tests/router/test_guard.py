"""A canary that is ready but fails its users is seen by the guard and taken back, on real routers with real counters."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from finetune_operator.api.blocks.guards import Guards
from finetune_operator.decide.guards import add, judge, overall, subtract
from finetune_operator.traffic import ArmTotals

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import Router, structure, until

SPLIT = structure(OLD, NEW)
USERS = [f"user-{i}" for i in range(300)]


async def sums(routers: list[Router], before: Mapping[str, ArmTotals] | None = None) -> dict[str, ArmTotals]:
    """Both arms' counters over all routers, since `before`."""
    states = await asyncio.gather(*(r.state() for r in routers))
    found = {arm: add(states[0].totals[arm], states[1].totals[arm]) for arm in (OLD.arm, NEW.arm)}
    return {arm: subtract(found[arm], before[arm]) for arm in found} if before else found


async def test_a_server_that_is_ready_but_answers_with_5xx_is_taken_back_and_no_user_keeps_it(world: World) -> None:
    routers = [await world.started(SPLIT), await world.started(SPLIT)]
    for user in USERS[:100]:
        await routers[0].arm_of(user)
    before = await sums(routers)
    for pod in world.pods["new"]:
        pod.status = 500
    for router in routers:
        await router.push(SPLIT, 10)
    failed, asked = 0, 0

    async def seen() -> bool:
        nonlocal failed, asked
        for router in routers:
            failed += await router.arm_of(USERS[asked % len(USERS)]) == "500"
            asked += 1
        counted = await sums(routers, before)
        return overall(judge(Guards(), counted[NEW.arm], counted[OLD.arm])) == "Fail"

    await until(seen, "the guard fails", 30)
    counted = await sums(routers, before)
    assert (counted[NEW.arm].requests, counted[NEW.arm].errors) == (failed, failed)
    assert failed <= 11, "ten failed answers are enough"
    for router in routers:
        await router.push(SPLIT, 0)
    assert {arm for router in routers for arm in (await router.assignment(USERS)).values()} == {OLD.arm}


async def test_two_equal_arms_pass(world: World) -> None:
    routers = [await world.started(SPLIT, 50), await world.started(SPLIT, 50)]
    for router in routers:
        await router.assignment(USERS)

    async def passed() -> bool:
        counted = await sums(routers)
        return overall(judge(Guards(max_latency_regression_percent=500), counted[NEW.arm], counted[OLD.arm])) == "Pass"

    await until(passed, "every guard passes", 5)


async def test_a_slow_canary_fails_the_latency_guard(world: World) -> None:
    routers = [await world.started(SPLIT, 50), await world.started(SPLIT, 50)]
    for pod in world.pods["new"]:
        pod.delay = 0.4
    for pod in world.pods["old"]:
        pod.delay = 0.1
    for router in routers:
        await asyncio.gather(*(router.arm_of(user) for user in USERS[:100]))
    verdicts = []

    async def failed() -> bool:
        counted = await sums(routers)
        verdicts[:] = judge(Guards(min_requests=50), counted[NEW.arm], counted[OLD.arm])
        return [f.verdict for f in verdicts] == ["Pass", "Fail"]

    await until(failed, "latency fails, errors pass", 5, lambda: str(verdicts))
