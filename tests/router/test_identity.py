"""Whose a request is: by header, by a field of its body, by its API key, on a real Envoy; and that no body of any kind fails."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any

from finetune_operator import names
from finetune_operator.build import router as documents
from finetune_operator.build.identity import BODY_BYTES, USER_HEADER
from finetune_operator.traffic import Source

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, Router, structure

HEADER, USER, SAFETY = Source(header="x-user-id"), Source(body_field="user"), Source(body_field="safety_identifier")
KEY = Source(header="Authorization")
SPLIT = structure(OLD, NEW, (HEADER, USER, SAFETY, KEY))
USERS = [f"user-{i}" for i in range(60)]


async def arm_of(router: Router, body: Any, headers: dict[str, str] | None = None, path: str = CHAT, method: str = "POST") -> str:
    """The arm that answers this body: bytes, or what becomes JSON."""
    data = body if isinstance(body, AsyncIterator) else io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with router.request(method, path, data=data, headers=headers or {}) as answer:
        assert answer.status == 200, await answer.text()
        return str(answer.headers[documents.ARM_HEADER])


def seen(world: World, body: bytes) -> dict[str, str]:
    """Headers with which a server got this very body."""
    return next(dict(pod.last[0]) for pods in world.pods.values() for pod in pods if pod.last[1] == body)


async def no_errors(router: Router) -> None:
    """The filter's script never broke off."""
    async with router.request("GET", "/stats/prometheus?filter=lua", names.ROUTER_METRICS_PORT) as answer:
        text = await answer.text()
    values = [line.rpartition(" ")[2] for line in text.splitlines() if "lua_errors" in line and not line.startswith("#")]
    assert set(values) == {"0"}, text


async def test_a_user_is_the_same_by_header_by_body_and_by_every_field(world: World) -> None:
    router = await world.started(SPLIT, 50)
    by_header = await router.assignment(USERS)
    assert set(by_header.values()) == {OLD.arm, NEW.arm}
    for field in ("user", "safety_identifier"):
        bodies = [{"model": "m", "messages": [{"role": "user", "content": "hi"}], field: user} for user in USERS]
        assert dict(zip(USERS, await asyncio.gather(*(arm_of(router, b) for b in bodies)), strict=True)) == by_header, "also all at once"
    odd = ["ünïcode", "名前", '"quoted"', "a\\b"]
    assert [await arm_of(router, {"user": user}) for user in odd] == [await router.arm_of(user) for user in odd]
    await no_errors(router)


async def test_every_kind_of_call_with_a_body_goes_by_it(world: World) -> None:
    router = await world.started(SPLIT, 50)
    for user in USERS[:10]:
        arms = {await arm_of(router, {"user": user}, path=path) for path in (CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses")}
        assert arms == {await router.arm_of(user)}


async def test_the_first_source_that_names_somebody_decides(world: World) -> None:
    router = await world.started(SPLIT, 50)
    arms = await router.assignment(USERS)
    ada = next(user for user in USERS if arms[user] == NEW.arm)
    bob = next(user for user in USERS if arms[user] == OLD.arm)
    for one, other in ((ada, bob), (bob, ada)):
        assert await arm_of(router, {"user": other}, {"x-user-id": one}) == arms[one]
        assert await arm_of(router, {"user": one, "safety_identifier": other}) == arms[one]
        assert await arm_of(router, {"safety_identifier": other, "user": one}) == arms[one], "the list's order, not the body's"
        assert await arm_of(router, {"user": "", "safety_identifier": one}) == arms[one]
        assert await arm_of(router, {"user": one}, {"x-user-id": ""}) == arms[one]
        assert await arm_of(router, {"user": one}, {"authorization": other}) == arms[one]
        assert await arm_of(router, {}, {"authorization": one}) == arms[one]
    turned = await world.started(structure(OLD, NEW, (KEY, SAFETY, USER, HEADER)), 50)
    for one, other in ((ada, bob), (bob, ada)):
        assert await arm_of(turned, {"safety_identifier": other}, {"authorization": one}) == arms[one]
        assert await arm_of(turned, {"user": other, "safety_identifier": one}) == arms[one]
        assert await arm_of(turned, {"user": one}, {"x-user-id": other}) == arms[one]
        assert await arm_of(turned, {}, {"x-user-id": one}) == arms[one]


async def test_an_api_key_stands_for_who_has_it(world: World) -> None:
    router = await world.started(structure(OLD, NEW, (KEY,)), 50)
    keys = [{"authorization": f"Bearer sk-{i}"} for i in range(40)]
    first = [await arm_of(router, {}, key) for key in keys]
    assert set(first) == {OLD.arm, NEW.arm}
    assert [await arm_of(router, {}, key, "/v1/completions") for key in keys] == first
    assert await arm_of(router, {}) == OLD.arm


async def test_a_client_cannot_write_what_is_read_from_its_body(world: World) -> None:
    for sources in ((HEADER, USER), (HEADER,)):
        router = await world.started(structure(OLD, NEW, sources), 100)
        for name in (USER_HEADER, USER_HEADER.upper()):
            body = json.dumps({"n": f"{len(sources)}{name}"}).encode()
            assert await arm_of(router, body, {name: "eve"}) == OLD.arm, "nobody"
            assert USER_HEADER not in {header.lower() for header in seen(world, body)}
            assert await arm_of(router, body, {name: "eve"}, method="GET") == OLD.arm


async def test_the_server_gets_the_body_as_it_came_and_nothing_of_ours(world: World) -> None:
    router = await world.started(SPLIT, 100)
    body = b' {"user":\t"ada", "z": "\\u00e9", "a": [1.50, 1e3]}\r\n'
    assert await arm_of(router, body) == NEW.arm
    got = {name.lower(): value for name, value in seen(world, body).items()}
    assert got["content-length"] == str(len(body))
    assert not {USER_HEADER, "transfer-encoding"} & got.keys()


async def chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_a_body_of_any_kind_is_passed_on_and_one_that_cannot_be_read_is_of_nobody(world: World) -> None:
    router = await world.started(SPLIT, 100)
    named = b'{"user": "ada", "prompt": "'
    whole = named + b"x" * (BODY_BYTES - len(named) - 2) + b'"}'
    assert await arm_of(router, whole) == NEW.arm, "the longest that is read"
    assert seen(world, whole)
    unread = {
        "a byte longer": named + b"x" * (BODY_BYTES - len(named) - 1) + b'"}',
        "far longer": named + b"x" * 8 * BODY_BYTES + b'"}',
        "no JSON": b"user=ada",
        "cut off": b'{"user": "ada", "mess',
        "no object": b'["user", "ada"]',
        "a number": b'{"user": 7}',
        "compressed": gzip.compress(b'{"user": "ada"}'),
        "random bytes": bytes(range(256)) * 10,
        "deep": b'{"user": "ada", "a": ' + b"[" * 200_000 + b"}",
        "empty": b"",
    }
    for what, body in unread.items():
        assert await arm_of(router, body) == OLD.arm, what
        assert seen(world, body) is not None, what
    for size in (1, 20, 100_000):
        body = json.dumps({"user": "ada", "size": size, "prompt": "x" * (100 * size)}).encode()
        assert await arm_of(router, chunks(body, size)) == OLD.arm, "its length is not said: it may be longer than what can be held"
        assert seen(world, body)
        assert await arm_of(router, chunks(body, size), {"x-user-id": "ada"}) == NEW.arm
    await no_errors(router)


async def test_who_has_no_body_is_nobody(world: World) -> None:
    router = await world.started(SPLIT, 100)
    for method in ("GET", "DELETE", "POST"):
        async with router.request(method, "/v1/models") as answer:
            assert (answer.status, answer.headers[documents.ARM_HEADER]) == (200, OLD.arm)
    await no_errors(router)


async def test_what_no_route_takes_is_of_nobody(world: World) -> None:
    router = await world.started(SPLIT, 100)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[names.TRAFFIC_PORT])
    writer.write(b"CONNECT 127.0.0.1:9901 HTTP/1.1\r\nhost: 127.0.0.1:9901\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 404 ")
    writer.close()
    await no_errors(router)


async def test_a_body_that_comes_slowly_is_waited_for_and_one_that_does_not_come_hurts_nobody(world: World) -> None:
    router = await world.started(SPLIT, 100)
    body = b'{"user": "ada"}'
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    _, gone = await asyncio.open_connection("127.0.0.1", router.ports[names.TRAFFIC_PORT])
    gone.write(head + body[:5])
    await gone.drain()
    reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[names.TRAFFIC_PORT])
    writer.write(head + body[:5])
    await asyncio.sleep(0.3)
    gone.close()
    assert await arm_of(router, body) == NEW.arm, "others are not kept waiting"
    writer.write(body[5:])
    answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().lower()
    writer.close()
    assert f"{documents.ARM_HEADER}: {NEW.arm}\r\n" in answer
    await no_errors(router)


async def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(world: World) -> None:
    router = await world.started(SPLIT, 100)
    body = b'{"user": "ada"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", router.ports[names.TRAFFIC_PORT])
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100 ")
    writer.write(body)
    answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().lower()
    writer.close()
    assert f"{documents.ARM_HEADER}: {NEW.arm}\r\n" in answer


async def test_an_answer_is_passed_on_event_by_event_to_who_is_named_by_a_body(world: World) -> None:
    router = await world.started(SPLIT, 100)
    async with router.request("POST", CHAT, json={"stream": True, "user": "ada"}) as answer:
        assert answer.headers[documents.ARM_HEADER] == NEW.arm
        assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 2) == b"data: first\n\n", "while the second is not made yet"
        for pod in world.pods["new"]:
            pod.gate.set()
        assert await answer.read() == b"data: second\n\n"


async def test_another_list_is_in_force_with_its_document_on_connections_that_are_there(world: World) -> None:
    router = await world.started(structure(OLD, NEW), 100)
    assert await arm_of(router, {"user": "ada"}) == OLD.arm
    for sources, arm in (((USER,), NEW.arm), ((SAFETY,), OLD.arm), ((SAFETY, USER), NEW.arm), ((HEADER,), OLD.arm)):
        changed = structure(OLD, NEW, sources)
        router.write(changed, 100)
        await router.serves(changed, 100)
        assert await arm_of(router, {"user": "ada"}) == arm
    await no_errors(router)
