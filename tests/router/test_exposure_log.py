"""The log of an A/B test on a real Envoy: who is in it, as whom, on which arm, and how it went."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from finetune_operator.build import exposure_log
from finetune_operator.build.exposure_log import Exposures
from finetune_operator.traffic import Source
from kubectl_finetune.ab.compare import by_user, compare
from kubectl_finetune.ab.exposures import Asked, read
from kubectl_finetune.ab.outcomes import Outcome, Outcomes

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, Router, structure, until

KEY = "correct horse battery staple"
EXPOSURES = Exposures("a1b2c3d4", 50)
HEADER, USER = Source(header="x-user-id"), Source(body_field="user")
USERS = [f"user-{i}" for i in range(40)]
USAGE = {"prompt_tokens": 12, "completion_tokens": 345, "total_tokens": 357, "prompt_tokens_details": None}
LAST = (
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","choices":[],"usage":'
    b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\ndata: [DONE]\n\n'
)


def hashed(user: str, key: str = KEY) -> str:
    return hmac.new(key.encode(), user.encode(), hashlib.sha256).hexdigest()[:32]


async def logging(
    world: World, weight: int = 50, exposures: Exposures | None = EXPOSURES, key: str = KEY, sources: tuple[Source, ...] = (HEADER, USER)
) -> Router:
    router = world.router()
    router.exposures, router.exposure_key = exposures, key
    router.write(structure(OLD, NEW, sources), weight)
    return await router.start()


async def logged(router: Router, count: int) -> list[dict[str, Any]]:
    """The lines, once there are so many."""
    await until(lambda: len(router.lines()) >= count, f"{count} lines are logged", 5, router.log)
    return router.lines()


async def test_a_line_says_who_saw_which_arm_and_how_it_went(world: World) -> None:
    for pod in (*world.pods["old"], *world.pods["new"]):
        pod.document = {
            "id": f"chatcmpl-{pod.name}",
            "choices": [{"message": {"content": '"usage": {"completion_tokens": 9'}}],
            "usage": USAGE,
        }
        pod.delay = 0.05
    router = await logging(world)
    before = datetime.now(UTC)
    arms = await router.assignment(USERS)
    lines = {line["user"]: line for line in await logged(router, len(USERS))}
    assert {user: lines[hashed(user)]["arm"] for user in USERS} == arms
    assert set(arms.values()) == {OLD.arm, NEW.arm}
    line = dict(lines[hashed(USERS[0])])
    moment = datetime.fromisoformat(line.pop("time"))
    assert abs(moment - before) < timedelta(seconds=5)
    assert 48 <= line.pop("first_ms") - 2 <= line.pop("duration_ms") < 2000, "two clocks"
    arm = OLD if arms[USERS[0]] == OLD.arm else NEW
    assert line.pop("response").startswith(f"chatcmpl-{'old' if arm == OLD else 'new'}-")
    assert line == {
        "log": exposure_log.LOG, "user": hashed(USERS[0]), "key": hashed("")[:8], "rollout": "a1b2c3d4", "canary": NEW.arm, "split": 50,
        "arm": arm.arm, "revision": arm.revision, "status": 200, "flags": "-", "prompt_tokens": 12, "completion_tokens": 345,
    }  # fmt: skip


async def test_the_plugin_reads_what_a_router_logs_and_finds_its_users(world: World) -> None:
    for pod in (*world.pods["old"], *world.pods["new"]):
        pod.document = {"id": f"chatcmpl-{pod.name}", "usage": USAGE}
    router = await logging(world)
    arms = await router.assignment(USERS)
    await logged(router, len(USERS))
    outcomes = Outcomes("solved", tuple(Outcome(row, user, float(arms[user] == NEW.arm)) for row, user in enumerate(USERS)))
    seen = read(router.log_lines(), "the log", Asked())
    joined = by_user(seen, outcomes, KEY.encode(), zero=False)
    found = compare(seen, outcomes, joined)
    assert (joined.rows, joined.unknown, found.both) == (len(USERS), 0, ())
    assert (found.canary.arm, found.stable.arm, found.split) == (NEW.arm, OLD.arm, 50)
    assert (found.canary.users, found.stable.users) == tuple(list(arms.values()).count(arm.arm) for arm in (NEW, OLD))
    means = [(side.mean, side.users) for side in (found.metrics[0].canary, found.metrics[0].stable) if side]
    assert means == [(1.0, found.canary.users), (0.0, found.stable.users)]
    assert found.canary.tokens == 345


async def test_a_user_is_the_same_by_header_and_by_body_and_is_never_named(world: World) -> None:
    router = await logging(world)
    odd = ["ada", "ünïcode", "x" * 1000, "a" * 55, "a" * 56, "a" * 64]
    for user in odd:
        async with router.request("POST", f"{CHAT}?x=1", json={"user": user}):
            pass
        await router.arm_of(user, "/v1/completions")
    lines = await logged(router, 2 * len(odd))
    assert [line["user"] for line in lines] == [hashed(user) for user in odd for _ in range(2)]
    assert "ada" not in router.log()


async def test_an_answer_is_passed_on_event_by_event_and_its_tokens_are_counted(world: World) -> None:
    for pod in world.pods["new"]:
        pod.events = (b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk"}\n\n', LAST)
    router = await logging(world, 100)
    async with router.request("POST", CHAT, json={"stream": True, "user": "ada"}) as answer:
        assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 2) == world.pods["new"][0].events[0], "before the second is made"
        await asyncio.sleep(0.2)
        for pod in world.pods["new"]:
            pod.gate.set()
        assert await answer.read() == LAST
    (line,) = await logged(router, 1)
    assert (line["arm"], line["status"], line["response"]) == (NEW.arm, 200, "chatcmpl-9")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 2)
    assert line["first_ms"] + 150 <= line["duration_ms"]


async def test_what_fails_or_is_given_up_is_logged_with_its_arm(world: World) -> None:
    router = await logging(world, 100)
    for pod in world.pods["new"]:
        pod.status = 500
    assert await router.arm_of("fails") == "500"
    for pod in world.pods["new"]:
        pod.status = 200
    async with router.request("POST", CHAT, json={"stream": True, "cut": True, "user": "cut"}) as answer:
        with contextlib.suppress(aiohttp.ClientPayloadError):
            await answer.read()
    for pod in world.pods["new"]:
        pod.delay = 1
    with contextlib.suppress(TimeoutError):
        await router.arm_of("gone", timeout=aiohttp.ClientTimeout(total=0.2))
    world.resolve(NEW, [])
    await until_none_is_left(router)
    assert await router.arm_of("nobody-there") == "503"
    lines = {line["user"]: (line["arm"], line["status"], line["flags"], line["response"]) for line in await logged(router, 4)}
    assert lines[hashed("fails")] == (NEW.arm, 500, "-", None)
    assert lines[hashed("cut")][:3] == (NEW.arm, 200, "UPE")
    assert lines[hashed("gone")] == (NEW.arm, 0, "DC", None)
    assert lines[hashed("nobody-there")] == (NEW.arm, 503, "UH", None)


async def until_none_is_left(router: Router) -> None:
    async def empty() -> bool:
        return (await router.state()).totals[NEW.arm].healthy == 0

    await until(empty, "the arm has no pod any more", 10)


async def test_who_is_nobody_and_what_is_no_inference_is_not_logged(world: World) -> None:
    router = await logging(world)
    assert await router.arm_of(None) == OLD.arm
    assert await router.arm_of("") == OLD.arm
    for method, path in (("GET", "/v1/models"), ("GET", CHAT), ("POST", "/v1/embeddings")):
        assert await router.status(path, method=method, headers={"x-user-id": "ada"}) == 200
    await router.arm_of("bob")
    assert [line["user"] for line in await logged(router, 1)] == [hashed("bob")]


async def test_nothing_is_logged_unless_it_is_asked_for_and_there_is_a_key(world: World) -> None:
    for exposures, key in ((None, KEY), (EXPOSURES, ""), (EXPOSURES, "short")):
        router = await logging(world, 50, exposures, key)
        assert {*(await router.assignment(USERS)).values()} == {OLD.arm, NEW.arm}
        await asyncio.sleep(0.2)
        assert router.lines() == []


async def test_a_log_begins_and_ends_with_its_document(world: World) -> None:
    router = await logging(world, 50, None)
    split = structure(OLD, NEW, (HEADER, USER))
    await router.arm_of("before")
    router.exposures = EXPOSURES
    router.write(split, 50)

    async def begun() -> bool:
        await router.arm_of("during")
        return bool(router.lines())

    await until(begun, "the log begins", 10)
    alone = structure(OLD, None, (HEADER, USER))
    router.write(alone, 0)
    await router.serves(alone, 0)
    await router.arm_of("after")
    await asyncio.sleep(0.2)
    assert {line["user"] for line in router.lines()} == {hashed("during")}


async def test_a_compressed_answer_is_passed_on_and_not_read(world: World) -> None:
    for pod in world.pods["new"]:
        pod.document, pod.headers = {"id": "chatcmpl-1", "usage": USAGE}, {"content-encoding": "identity-of-its-own"}
    router = await logging(world, 100)
    async with router.request("POST", CHAT, headers={"x-user-id": "ada"}) as answer:
        assert b"chatcmpl-1" in await answer.read()
    (line,) = await logged(router, 1)
    assert (line["response"], line["completion_tokens"]) == (None, None)
