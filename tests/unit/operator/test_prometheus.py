"""The edge to Prometheus: what is sent, what each answer is read as, and that no answer ends or delays anything for long."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from finetune_operator import conditions
from finetune_operator import prometheus as p
from finetune_operator.observed import Answer, Question

from tests.unit.operator.world import HandClock

KEY = ("ml", "bot")
TEXT = 'sum(rate(a{b=~"x+ & y#?"}[60s])) > bool 0'
QUESTION = Question("refusals", "new", TEXT.replace("60s", "${window}"), "t0", 60)
Handler = Callable[[web.Request], Any]


def success(kind: str, result: Any) -> str:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}})


def sample(value: str) -> dict[str, Any]:
    return {"metric": {}, "value": [1767225600.5, value]}


class Served:
    """A Prometheus whose answer is set by hand; `seen` has what it was asked."""

    def __init__(self) -> None:
        self.answer: Handler = lambda _: web.Response(text=success("scalar", [1, "1"]))
        self.seen: list[tuple[str, dict[str, str], str]] = []
        self.clock = HandClock()
        self.client = p.Prometheus("", "", self.clock, 10)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.path, dict(request.query), request.headers.get("Authorization", "")))
        answer = self.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def value(self) -> Answer:
        self.clock.seconds += 60
        (answer,) = await self.client.ask(KEY, [QUESTION])
        return answer


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made, app = Served(), web.Application()
    app.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    made.client = p.Prometheus(f"http://127.0.0.1:{port}/under", "Bearer secret", made.clock, 10)
    yield made
    await runner.cleanup()


async def test_the_users_text_is_one_parameter_and_nothing_else(served: Served) -> None:
    assert await served.value() == Answer("refusals", "new", 1.0)
    assert served.seen == [("/under/api/v1/query", {"query": TEXT, "timeout": "3s"}, "Bearer secret")]


# HTTP status, body → the number, or a part of why there is none
ANSWERS: dict[str, tuple[int, str, float | str | None]] = {
    "a scalar": (200, success("scalar", [1, "0.25"]), 0.25),
    "a vector of one": (200, success("vector", [sample("-2e3")]), -2000.0),
    "no series": (200, success("vector", []), None),
    "not a number": (200, success("vector", [sample("NaN")]), math.nan),
    "infinite": (200, success("vector", [sample("+Inf")]), math.inf),
    "two series": (200, success("vector", [sample("1"), sample("2")]), "Prometheus answers 2 series: make one number of them"),
    "a range": (200, success("matrix", []), "Prometheus answers a matrix, where one number is wanted"),
    "a text": (200, success("string", [1, "x"]), "Prometheus answers a string, where"),
    "a histogram": (200, success("vector", [{"metric": {}, "histogram": [1, {}]}]), "Prometheus answers a vector, where"),
    "a value that is none": (200, success("vector", [sample("much")]), "Prometheus answers could not convert"),
    "PromQL that is none": (
        400, json.dumps({"status": "error", "errorType": "bad_data", "error": "1:3: parse error"}), "answers bad_data: 1:3: parse error",
    ),
    "a proxy that wants a password": (401, "<html>", "Prometheus answers HTTP 401, and no JSON"),
    "something else that speaks JSON": (404, "{}", "Prometheus answers HTTP 404, and not as Prometheus does"),
    "a list": (200, "[]", "not as Prometheus does"),
    "success without data": (200, json.dumps({"status": "success", "data": None}), "nothing that is known"),
    "nothing": (200, "", "no JSON"),
    "brackets without end": (200, "[" * 60_000, "Prometheus answers "),
    "more than one number can take": (200, success("vector", [sample("1")] * 5000), "more than 65536 bytes: make one number"),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
async def test_answers(case: str, served: Served) -> None:
    status, body, wanted = ANSWERS[case]
    served.answer = lambda _: web.Response(status=status, text=body)
    answer = await served.value()
    if isinstance(wanted, str):
        assert wanted in answer.error
        assert answer.value is None
        assert len(answer.error) <= 300
    else:
        assert (answer.error, answer.value) == ("", pytest.approx(wanted, nan_ok=True))


async def test_a_redirect_is_not_followed(served: Served) -> None:
    def elsewhere(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    served.answer = elsewhere
    assert (await served.value()).error == "Prometheus answers HTTP 302, and no JSON"
    assert len(served.seen) == 1, "the credentials went nowhere else"


async def test_one_that_takes_its_time_or_is_away_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    served.answer = slow
    monkeypatch.setattr(p, "TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    assert "does not answer within" in (await served.value()).error
    served.client.url = "http://127.0.0.1:1"
    assert (await served.value()).error.startswith("Prometheus cannot be asked: ClientConnectorError")


async def test_an_answer_is_good_for_ten_seconds_of_its_own_step(served: Served) -> None:
    later = Question(QUESTION.guard, QUESTION.arm, QUESTION.expression, QUESTION.since, 62)
    next_step = Question(QUESTION.guard, QUESTION.arm, QUESTION.expression, "t1", 1)
    for seconds, question, asked in ((0, QUESTION, 1), (9.9, later, 1), (0.2, later, 2), (1, next_step, 3), (9, next_step, 3)):
        served.clock.seconds += seconds
        await served.client.ask(KEY, [question])
        assert len(served.seen) == asked
    await served.client.ask(("ml", "other"), [next_step])
    assert len(served.seen) == 4, "another FineTune's is its own"


async def test_that_there_is_none_is_remembered_too(served: Served) -> None:
    served.answer = lambda _: web.Response(status=503)
    for _ in range(3):
        (answer,) = await served.client.ask(KEY, [QUESTION])
        assert answer.error
    assert len(served.seen) == 1


async def test_where_the_operator_knows_none_every_question_says_what_to_set() -> None:
    client = p.Prometheus("", "", HandClock(), 10)
    assert await client.ask(KEY, [QUESTION]) == (Answer("refusals", "new", error=conditions.PROMETHEUS_UNKNOWN),)
    assert await client.ask(KEY, []) == ()
