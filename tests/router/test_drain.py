"""What users notice when routers and model servers go in the way that Kubernetes ends pods: nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import aiohttp
import pytest
from finetune_operator import names
from finetune_operator.build import drain

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import UID, Router, structure, until
from tests.router.users import Service, User, asking, streaming

SPLIT = structure(OLD, NEW)
WHOLE = b"data: first\n\ndata: second\n\n"
# Of a router: as long apart as they are in a pod, and long enough for a client that waits for the processor between connect and send.
CONNECTION_SECONDS, DRAIN_SECONDS = 2, 4
STREAMS, ASKERS = 6, 150
TOLD_SECONDS = 0.3  # after which kube-proxy has learnt that a pod goes


async def started(world: World) -> Router:
    return await world.started(SPLIT, 50, connection_seconds=CONNECTION_SECONDS, drain_seconds=DRAIN_SECONDS)


async def goes(service: Service, router: Router) -> asyncio.Task[bool]:
    """The router's pod is deleted; a moment later no new connection reaches it."""
    going = asyncio.create_task(router.deleted())
    await asyncio.sleep(TOLD_SECONDS)
    service.endpoints.remove(router)
    return going


async def count(router: Router, statistic: str) -> int:
    """One of Envoy's counters of users' connections and requests."""
    query = urlencode({"filter": rf"^http\.traffic\.{statistic}$"})
    async with router.request("GET", f"/stats/prometheus?{query}", names.ROUTER_METRICS_PORT) as answer:
        return sum(int(n) for n in re.findall(r"} (\d+)$", await answer.text(), re.MULTILINE))


def end_streams(world: World) -> None:
    for pod in [*world.pods["old"], *world.pods["new"]]:
        pod.gate.set()


def undisturbed(users: list[User]) -> None:
    """Every request was answered, and everybody kept to one arm."""
    assert {arm for user in users for arm in user.met} == {OLD.arm, NEW.arm}
    assert [user.name for user in users if len(set(user.met)) != 1] == []


async def test_a_router_that_goes_fails_no_request_cuts_no_stream_and_ends_once_the_last_one_has(world: World) -> None:
    leaving, staying, idle = await asyncio.gather(started(world), started(world), started(world))
    service = Service(leaving, staying)
    async with asking(service) as users:
        streams = await streaming(users)
        assert await count(leaving, "downstream_rq_active") >= len(users) / 3, "it has its share of them"
        nothing_to_do = asyncio.create_task(idle.deleted())
        going = await goes(service, leaving)
        assert not nothing_to_do.done(), "users may still come"

        async def alone() -> bool:
            before = await count(leaving, "downstream_rq_total")
            await asyncio.sleep(0.5)
            kept = await count(leaving, "downstream_cx_active") - await count(leaving, "downstream_rq_active")
            return not kept and await count(leaving, "downstream_rq_total") == before

        await until(alone, "whoever keeps a connection to it is told to come again elsewhere", 15)
        before = await count(leaving, "downstream_rq_total")
        assert await asyncio.wait_for(nothing_to_do, 15), "without a stream it ends once the least time is over"
        await asyncio.sleep(1)
        assert not going.done(), "it waits for its streams, however long after that"
        assert await count(leaving, "downstream_rq_total") == before, "nobody new has come"
        end_streams(world)
        assert await asyncio.gather(*streams) == [WHOLE] * len(users)
        assert await asyncio.wait_for(going, 10), "it ends by itself"
    assert all(user.told for user in users)
    undisturbed(users)


async def test_both_routers_are_replaced_one_after_the_other_and_no_user_notices(world: World) -> None:
    *old, first, second = await asyncio.gather(*(started(world) for _ in range(4)))
    service = Service(*old)
    going = []
    async with asking(service) as users:
        streams = await streaming(users)
        for router, successor in zip(old, (first, second), strict=True):
            service.endpoints.append(successor)
            going.append(await goes(service, router))
        await asyncio.sleep(DRAIN_SECONDS)
        end_streams(world)
        assert await asyncio.gather(*streams) == [WHOLE] * len(users)
        assert await asyncio.wait_for(asyncio.gather(*going), 10) == [True, True]
        now = await asyncio.gather(*(count(router, "downstream_rq_total") for router in service.endpoints))
        assert min(now) > 0
    undisturbed(users)


async def hook(router: Router, uid: str) -> int:
    """The answer to somebody who asks as the kubelet does."""
    return await router.status(drain.PATH, names.DRAIN_PORT, headers={drain.HEADER: uid}, timeout=aiohttp.ClientTimeout(total=60))


@asynccontextmanager
async def crowd(router: Router) -> AsyncIterator[list[asyncio.Task[int]]]:
    """As many as ask like the kubelet, and leave in the end."""
    tasks = [asyncio.create_task(hook(router, UID)) for _ in range(ASKERS)]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_whoever_else_asks_finds_nothing_and_the_hook_waits_however_many_do(world: World) -> None:
    router = await world.started(SPLIT, 50, drain_seconds=2)
    assert "drain" not in (router.folder / "lds.json").read_text(), "it goes by its pod alone, whatever operator wrote the documents"
    streams = await streaming([User(f"user-{n}", Service(router)) for n in range(STREAMS)])
    strangers = asyncio.gather(*(hook(router, "another FineTune's" if n % 2 else "") for n in range(ASKERS)))
    assert set(await asyncio.wait_for(strangers, 10)) == {404}, "nobody of them is kept waiting"
    assert await router.status("/drained", names.DRAIN_PORT) == 404
    async with crowd(router) as others:
        await asyncio.sleep(0.5)
        going = asyncio.create_task(router.deleted())
        await asyncio.sleep(2.5)
        assert [task for task in [going, *others] if task.done()] == [], "nobody is refused, and streams are not cut"
        end_streams(world)
        assert await asyncio.gather(*streams) == [WHOLE] * STREAMS
        assert await asyncio.wait_for(going, 10)


@pytest.mark.parametrize("stale", [False, True], ids=["the name server knows", "the name server still tells of it"])
async def test_a_model_server_that_goes_ends_its_streams_while_others_take_what_comes(world: World, stale: bool) -> None:
    router = await world.started(structure(OLD))
    leaving, staying = world.pods["old"]
    async with asking(Service(router)) as users:
        await until(lambda: leaving.served and staying.served, "both are found to be ready", 10)
        streams = await streaming(users)
        assert leaving.held > 0
        if not stale:
            world.resolve(OLD, [staying])
            await until(lambda: leaving.idle_for > 0.5, "nobody new is sent to it", 10)
        going = asyncio.create_task(leaving.drain())
        await until(lambda: leaving.idle_for > 1, "nobody new is sent to it", 10)
        assert not going.done()
        end_streams(world)
        assert await asyncio.gather(*streams) == [WHOLE] * len(users)
        await asyncio.wait_for(going, 10)
        before = staying.served
        await until(lambda: staying.served > before + len(users), "the other one has it all", 10)
    assert {arm for user in users for arm in user.met} == {OLD.arm}
