"""Requests pass through a router as they are: streams, large bodies, odd paths, hostile headers."""

from __future__ import annotations

import asyncio
import io
import json

from finetune_operator.build import drain, listeners
from finetune_operator.build import router as documents

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, structure

USER = {"x-user-id": "ada"}
ONE = structure(OLD)


async def test_a_stream_is_passed_on_event_by_event(world: World) -> None:
    router = await world.started(ONE)
    async with router.request("POST", CHAT, headers=USER, json={"stream": True}) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 2) == b"data: first\n\n", "while the second is not made yet"
        for pod in world.pods["old"]:
            pod.gate.set()
        assert await answer.read() == b"data: second\n\n"


async def test_large_bodies_pass(world: World) -> None:
    router = await world.started(ONE)
    for megabytes in (1, 8):
        prompt = b"x" * (megabytes * 1024 * 1024)
        assert await router.status(CHAT, method="POST", headers=USER, data=io.BytesIO(prompt)) == 200
        assert max(pod.largest for pod in world.pods["old"]) >= len(prompt)


async def test_odd_paths_reach_the_server_as_they_were_judged(world: World) -> None:
    router = await world.started(ONE)
    for path, seen in {
        "/v1//chat/completions": CHAT,
        "/v1/chat/completions/../../models": "/v1/models",
        "/v1/models/../chat/completions": CHAT,
        "/v1/chat%2Fcompletions": CHAT,
        "/v1/chat/comple%74ions": CHAT,
        "/v1/%2e%2e/v1/models": "/v1/models",
        "/.well-known/../v1/models": "/v1/models",
        "/../../v1/models": "/v1/models",
    }.items():
        async with router.request("POST", path, headers=USER, json={}) as answer:
            assert (answer.status, (await answer.json())["path"]) == (200, seen), path


async def test_a_client_cannot_steer_the_router_by_its_headers(world: World) -> None:
    router = await world.started(structure(OLD, NEW))
    hostile = {
        "x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-retry-on": "5xx", "x-envoy-max-retries": "50",
        "x-envoy-upstream-alt-stat-name": "evil", "x-envoy-force-trace": "1", "x-forwarded-for": "127.0.0.1", "host": "evil.example",
    }  # fmt: skip
    for pod in world.pods["old"]:
        pod.delay, pod.status = 0.1, 500
    before = sum(pod.served for pod in world.pods["old"])
    async with router.request("POST", CHAT, headers={**USER, **hostile}, json={}) as answer:
        assert answer.status == 500, "neither timed out nor retried as the client said"
        assert answer.headers[documents.ARM_HEADER] == OLD.arm
    assert sum(pod.served for pod in world.pods["old"]) == before + 1


async def test_a_user_of_any_characters_is_one_user(world: World) -> None:
    router = await world.started(structure(OLD, NEW), 50)
    users = ["ünïcode", "名前", "a b\tc", "x" * 4000, '"quoted"', "a,b", "\\1", "^(.*)$"]
    for user in users:
        arms = {await router.arm_of(user) for _ in range(5)}
        assert len(arms) == 1, user
        assert arms <= {OLD.arm, NEW.arm}, user
    raw = {"x-user-id": "b\xffyte\xe9"}  # bytes that are no UTF-8
    reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[10000])
    arms = set()
    for _ in range(4):
        body = json.dumps({}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-user-id: {raw['x-user-id']}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode("latin-1") + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        found = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        await reader.readexactly(int(found["content-length"]))
        arms.add(found[documents.ARM_HEADER])
    writer.close()
    assert len(arms) == 1


async def test_a_proxy_that_speaks_http_1_0_is_answered_and_its_users_are_told_apart(world: World) -> None:
    """As an nginx does by default; the answer's end is the connection's."""
    router = await world.started(structure(OLD, NEW), weight=100)
    for user, status in (("x-user-id: ada\r\n", b"200"), ("", b"200")):
        reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[10000])
        writer.write(f"POST {CHAT} HTTP/1.0\r\nhost: x\r\n{user}content-length: 2\r\n\r\n{{}}".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert answer.split(b" ")[1] == status, answer
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["path"] == CHAT
    assert [sum(pod.served for pod in world.pods[arm]) for arm in ("new", "old")] == [1, 1], "without a user it is stable's"


async def test_connections_are_renewed_so_that_they_leave_a_draining_router(world: World) -> None:
    assert listeners.CONNECTION_SECONDS * 1.5 < drain.LEAST_SECONDS
    router = await world.started(ONE, connection_seconds=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[10000])
    closing = False
    for _ in range(30):
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)).decode().lower()
        assert head.startswith("http/1.1 200"), "no answer is lost"
        size = next(int(line.split(": ")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        await reader.readexactly(size)
        closing = "connection: close" in head
        if closing:
            break
        await asyncio.sleep(0.1)
    writer.close()
    assert closing, "the last answer tells the client to come again elsewhere"


async def test_a_stream_outlives_the_renewal_of_its_connection(world: World) -> None:
    router = await world.started(ONE, connection_seconds=1)
    async with router.request("POST", CHAT, headers=USER, json={"stream": True}) as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: first\n\n"
        await asyncio.sleep(2.5)
        for pod in world.pods["old"]:
            pod.gate.set()
        assert await answer.read() == b"data: second\n\n"
