"""The server from inside: what one request may do to the others and to the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from finetune_trainer.serve import engine as engines
from finetune_trainer.serve import prompts, protocol
from finetune_trainer.serve.app import Server
from finetune_trainer.serve.batch import Batch
from finetune_trainer.serve.engine import Engine
from finetune_trainer.serve.generation import Event, Failed, Finished, Generation, Sampling
from finetune_trainer.serve.loading import Loaded, load
from finetune_trainer.serve.prompts import Limits, sampling
from finetune_trainer.serve.protocol import CompletionRequest


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Loaded:
    return load(tiny_model, None)


def request(prompt: int, max_tokens: int, temperature: float = 0, seed: int = 1) -> tuple[Generation, list[Event]]:
    """A request of `prompt` tokens and what it is told."""
    events: list[Event] = []
    settings = Sampling(max_tokens, temperature, seed=seed, ignore_end=True)
    return Generation([5 + index % 20 for index in range(prompt)], settings, events.append), events


def answered(loaded: Loaded, *requests: Generation) -> Engine:
    """An engine that has dealt with `requests`, which were there at its start."""
    engine = Engine(loaded, 16)
    for each in requests:
        engine.submit(each)
    engine.start()
    engine.stop(30)
    return engine


@pytest.mark.parametrize(("asked", "given"), [(None, 1.0), (0, 0), (1e-39, 0), (9e-6, 0), (1e-5, 1e-5), (0.7, 0.7)])
def test_a_temperature_too_low_to_divide_by_is_greedy(asked: float | None, given: float) -> None:
    body = CompletionRequest(model="bot", prompt="a", temperature=asked)
    assert sampling(body, 1, Limits(64, 16)).temperature == given


def test_a_row_that_cannot_be_sampled_fails_alone(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [request(4, 6, 0), request(4, 6, 1.0)]
    broken, told = request(4, 6, 0.5)

    def choose(_: torch.Tensor) -> int:
        raise RuntimeError("probability tensor contains nan")

    monkeypatch.setattr(broken, "choose", choose)
    answered(loaded, others[0][0], broken, others[1][0])
    assert told == [Failed("generation failed: RuntimeError: probability tensor contains nan")]
    assert all(isinstance(events[-1], Finished) for _, events in others)


ASKED = {
    "a long prompt among short ones": ([(4, 6), (60, 6), (4, 6), (4, 6)], 3),
    "a long answer among short ones": ([(4, 6), (4, 60), (4, 6), (4, 6)], 3),
    "a prompt larger than the budget": ([(4, 6), (250, 4), (4, 6)], 1),
    "short ones": ([(4, 6)] * 8, 8),
}


@pytest.mark.parametrize(("asked", "together"), ASKED.values(), ids=ASKED)
def test_the_cache_stays_small_and_everybody_is_answered(
    asked: list[tuple[int, int]], together: int, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: list[tuple[int, int]] = []
    step = Batch.step

    def watched(batch: Batch) -> torch.Tensor:
        logits = step(batch)
        seen.append((len(batch.rows), batch.columns))
        return logits

    monkeypatch.setattr(engines, "CACHE_TOKENS", 200)
    monkeypatch.setattr(Batch, "step", watched)
    requests = [request(*each) for each in asked]
    answered(loaded, *(each for each, _ in requests))
    ends = [events[-1] for _, events in requests]
    assert [end.completion_tokens for end in ends if isinstance(end, Finished)] == [tokens for _, tokens in asked]
    assert all(rows == 1 or rows * columns <= 200 for rows, columns in seen)
    assert max(rows for rows, _ in seen) == together


@pytest.fixture
def server(loaded: Loaded) -> Iterator[Server]:
    """A server that is ready."""
    engine = Engine(loaded, 2)
    engine.start()
    found = Server("bot", "", 8, loaded=loaded, engine=engine, ready=True)
    yield found
    engine.stop(30)
    found.encoder.shutdown()


async def posted(server: Server, body: Any) -> tuple[int, Any]:
    """Status and document of a completion."""
    async with TestClient(TestServer(server.application())) as client, client.post("/v1/completions", data=body) as response:
        return response.status, await response.json()


def counted(server: Server, code: str) -> bool:
    return f'finetune_server_requests_total{{code="{code}",path="/v1/completions"}} 1.0' in server.metrics.exposition().decode()


async def test_a_body_that_nests_without_end_is_the_askers_mistake(server: Server) -> None:
    status, document = await posted(server, b"[" * 5000)
    assert (status, document["error"]["type"]) == (400, "invalid_request_error")
    assert counted(server, "400")


async def test_a_body_that_takes_long_to_read_keeps_nobody_waiting(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, begun, goes_on = protocol.parse, threading.Event(), threading.Event()

    def slow(kind: Any, document: object) -> Any:
        begun.set()
        assert goes_on.wait(20)
        return parse(kind, document)

    monkeypatch.setattr(protocol, "parse", slow)
    async with TestClient(TestServer(server.application())) as client:
        asked = asyncio.create_task(client.post("/v1/completions", json={"model": "bot", "prompt": "This", "max_tokens": 1}))
        assert await asyncio.to_thread(begun.wait, 20)
        async with client.get("/healthz") as healthy:
            assert healthy.status == 200
        goes_on.set()
        async with await asked as response:
            assert response.status == 200


async def test_a_failure_nobody_thought_of_is_told_in_openais_form_and_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> list[int]:
        raise KeyError("secret")

    monkeypatch.setattr(prompts, "completion_prompt", broken)
    status, document = await posted(server, b'{"model": "bot", "prompt": "This"}')
    assert (status, document["error"]["type"]) == (500, "server_error")
    assert "secret" not in document["error"]["message"]
    assert counted(server, "500")
