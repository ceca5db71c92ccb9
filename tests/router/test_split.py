"""Who is served by which arm while weights are pushed and structures change, on a real Envoy."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from finetune_operator.build import router as documents
from finetune_operator.traffic import Source

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, Router, structure, until

USERS = [f"user-{i}" for i in range(2000)]
SPLIT = structure(OLD, NEW)


def on(assignment: dict[str, str], arm: str) -> set[str]:
    return {user for user, got in assignment.items() if got == arm}


@asynccontextmanager
async def traffic(router: Router, users: list[str | None], per_second: float = 20) -> AsyncIterator[Counter[str]]:
    """Steady requests by these users in turn; what they got is counted by arm or status."""
    got: Counter[str] = Counter()
    calls: list[asyncio.Task[str]] = []

    async def go_on() -> None:
        while True:
            calls.append(asyncio.create_task(router.arm_of(users[len(calls) % len(users)])))
            await asyncio.sleep(1 / per_second)

    going = asyncio.create_task(go_on())
    try:
        yield got
    finally:
        going.cancel()
        got.update(await asyncio.gather(*calls))


async def test_weights_pushed_one_after_the_other_move_the_right_share_and_nobody_moves_back(world: World) -> None:
    router = await world.started(SPLIT)
    assert Counter((await router.assignment(USERS[:200])).values()) == {OLD.arm: 200}, "a structure alone moves nobody"
    before: set[str] = set()
    for weight in (10, 50, 100):
        await router.push(SPLIT, weight)
        assert (await router.state()).weight == weight
        now = on(await router.assignment(USERS), NEW.arm)
        sigma = math.sqrt(len(USERS) * weight / 100 * (1 - weight / 100))
        assert abs(len(now) - weight / 100 * len(USERS)) <= 4 * sigma, f"{len(now)} of {len(USERS)} at {weight} %"
        assert before <= now, "a user on the new arm stays there"
        before = now
    await router.push(SPLIT, 0)
    assert Counter((await router.assignment(USERS[:500])).values()) == {OLD.arm: 500}, "a rollback moves everybody at once"


async def test_every_kind_of_call_of_a_user_goes_to_the_same_arm(world: World) -> None:
    router = await world.started(SPLIT, 50)
    users = USERS[:100]
    chat = await router.assignment(users)
    assert await router.assignment(users, "/v1/completions") == chat
    assert await router.assignment(users, "/v1/models") == chat
    assert set(chat.values()) == {OLD.arm, NEW.arm}


async def test_a_second_router_assigns_the_same_users_and_another_salt_does_not(world: World) -> None:
    one, other = await world.started(SPLIT, 50), await world.started(SPLIT, 50)
    salted = await world.started(structure(OLD, NEW, salt="another"), 50)
    users = USERS[:200]
    first = await one.assignment(users)
    assert await other.assignment(users) == first
    assert await salted.assignment(users) != first


async def test_who_has_no_identity_or_an_empty_one_is_served_by_stable(world: World) -> None:
    router = await world.started(SPLIT, 100)
    for path in (CHAT, "/v1/completions", "/v1/models"):
        assert {await router.arm_of(user, path) for user in (None, "", " ")} == {OLD.arm}
    assert await router.arm_of("somebody") == NEW.arm


async def test_the_answer_names_arm_and_revision_and_the_client_cannot_choose_them(world: World) -> None:
    router = await world.started(SPLIT, 100)
    forged = {documents.ARM_HEADER: OLD.arm, documents.REVISION_HEADER: OLD.revision}
    for user, arm in (("somebody", NEW), (None, OLD)):
        headers = forged | ({"x-user-id": user} if user else {})
        async with router.request("POST", CHAT, headers=headers, json={}) as answer:
            assert answer.headers.getall(documents.ARM_HEADER) == [arm.arm]
            assert answer.headers.getall(documents.REVISION_HEADER) == [arm.revision]
            assert (await answer.json())["pod"].startswith("new" if arm is NEW else "old")


async def test_the_first_identity_header_that_a_request_has_decides(world: World) -> None:
    router = await world.started(structure(OLD, NEW, identity=(Source(header="x-user-id"), Source(header="x-tenant"))), 50)
    by_user = await router.assignment(USERS[:60])
    assert set(by_user.values()) == {OLD.arm, NEW.arm}
    for user, arm in by_user.items():
        assert await router.arm_of(user, header="x-tenant") == arm, "the same value, the same hash"
        assert await router.arm_of(user, headers={"x-tenant": "acme"}) == arm
        assert await router.arm_of(user, header="x-tenant", headers={"x-user-id": ""}) == arm, "an empty header is none"
    assert await router.arm_of(None) == OLD.arm


async def test_promotion_moves_nobody_and_fails_no_request(world: World) -> None:
    router = await world.started(SPLIT)
    await router.push(SPLIT, 100)
    promoted = structure(NEW, salt="after")
    for pod in world.pods["new"]:
        pod.ready_delay = 0.3  # a cluster that is new to the router would be cold for so long
    async with traffic(router, ["ada", None, "bob", "cid"], per_second=100) as got:
        await asyncio.sleep(0.5)
        router.write(promoted, 0)
        await router.serves(promoted, 0)
        await until(lambda: self_named(router, NEW.arm), "anonymous users are on the new arm too")
        await asyncio.sleep(0.5)
    assert set(got) == {OLD.arm, NEW.arm}, got
    assert got[NEW.arm] > got[OLD.arm]
    assert {await router.arm_of(u) for u in ("ada", "bob", None)} == {NEW.arm}


async def self_named(router: Router, arm: str) -> bool:
    return await router.arm_of(None) == arm


async def test_users_do_not_leave_the_new_arm_for_a_moment_while_roles_are_swapped(world: World) -> None:
    router = await world.started(SPLIT)
    await router.push(SPLIT, 100)
    async with traffic(router, list(USERS[:50]), per_second=200) as got:
        for promoted in (structure(NEW, salt="after"), structure(NEW, OLD, salt="after")):
            router.write(promoted, 0)
            await router.serves(promoted, 0)
            await asyncio.sleep(0.3)
    assert set(got) == {NEW.arm}, got


async def test_an_answer_that_an_arm_has_begun_is_finished_after_the_arm_left_the_document(world: World) -> None:
    router = await world.started(SPLIT)
    await router.push(SPLIT, 100)
    body = {"stream": True}
    async with (
        router.request("POST", CHAT, headers={"x-user-id": "ada"}, json=body) as of_user,
        router.request("POST", CHAT, json=body) as of_nobody,
    ):
        assert await of_user.content.readuntil(b"\n\n") == await of_nobody.content.readuntil(b"\n\n") == b"data: first\n\n"
        other = structure(OLD.__class__("ccc33333", NEW.host, "rev-next"), salt="next")
        router.write(other, 0)
        await router.serves(other, 0)
        await until(lambda: self_named(router, "ccc33333"), "the anonymous cluster is replaced")
        for pod in [*world.pods["old"], *world.pods["new"]]:
            pod.gate.set()
        assert await of_user.read() == await of_nobody.read() == b"data: second\n\n"


async def test_a_push_for_another_structure_is_inert(world: World) -> None:
    router = await world.started(SPLIT)
    await router.push(SPLIT, 50)
    again = structure(OLD, NEW, salt="next")
    router.write(again, 0)
    await router.serves(again, 0)
    await router.push(SPLIT, 100)
    assert (await router.state()).weight == 0
    assert Counter((await router.assignment(USERS[:100])).values()) == {OLD.arm: 100}
    await router.push(again, 100)
    assert Counter((await router.assignment(USERS[:100])).values()) == {NEW.arm: 100}


async def test_a_weight_pushed_before_its_document_arrives_is_in_force_with_it(world: World) -> None:
    router = await world.started(structure(OLD))
    await router.push(SPLIT, 100)
    assert await router.arm_of("ada") == OLD.arm
    router.write(SPLIT, 0)
    await router.serves(SPLIT, 100)

    async def moved() -> bool:
        arm = await router.arm_of("ada")
        assert arm != OLD.arm
        return arm == NEW.arm

    await until(moved, "the new arm's cluster is warm, for which a rollout waits before it pushes")


async def test_a_router_boots_with_the_weight_of_its_document(world: World) -> None:
    early, late = await world.started(SPLIT), await world.started(SPLIT, 50)
    await early.push(SPLIT, 50)
    assert (await late.state()).weight == 50
    assert await late.assignment(USERS[:200]) == await early.assignment(USERS[:200])


async def test_a_router_killed_between_push_and_sync_says_that_it_is_behind(world: World) -> None:
    router = await world.started(SPLIT, 10)
    await router.push(SPLIT, 50)
    assert (await router.state()).weight == 50
    await router.kill()
    gone = await router.state()
    assert gone.error
    assert gone.weight is None
    await router.start()
    back = await router.state()
    assert (back.version, back.weight, back.error) == (SPLIT.version, 10, "")
    router.write(SPLIT, 50)
    await router.serves(SPLIT, 50)


async def test_a_document_with_an_older_weight_does_not_undo_a_push(world: World) -> None:
    router = await world.started(SPLIT, 0)
    await router.push(SPLIT, 50)
    router.write(SPLIT, 10)
    await asyncio.sleep(0.5)  # nothing to wait for: it must stay as it is
    assert (await router.state()).weight == 50
