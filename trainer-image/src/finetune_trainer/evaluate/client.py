"""The evaluator's side of the OpenAI API: wait for the endpoint, ask with bounded concurrency.

Invariant: a failure that may pass (connection, 429, 5xx) is tried again for a bounded time; one that will not (4xx) is
the row's, or everybody's when it is about the model's name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from finetune_trainer.evaluate.rows import TestRow
from finetune_trainer.exits import Infrastructure, TrainerError, UserError

READY_SECONDS = 600.0
RETRY_SECONDS = 180.0
ANSWER_SECONDS = 300.0
_PASSING = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, for which model, with how many questions at once and how long an answer may be (tokens)."""

    url: str
    model: str
    concurrency: int
    max_new_tokens: int


@dataclass(frozen=True)
class Reply:
    """An answer, or why the server gave none; the tokens of both sides, where it counts them; the time since the answer before it."""

    answer: str | None
    error: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float = 0.0


async def wait_ready(session: aiohttp.ClientSession, endpoint: Endpoint, seconds: float = READY_SECONDS) -> None:
    """Return when the endpoint lists the model. Raises TrainerError with its last state, UserError for other models."""
    deadline = time.monotonic() + seconds
    state = "never asked"
    while time.monotonic() < deadline:
        try:
            async with session.get(f"{endpoint.url}/models", timeout=aiohttp.ClientTimeout(total=10)) as response:
                if response.status == 200:
                    _check_name(await response.json(content_type=None), endpoint.model)
                    return
                state = f"HTTP {response.status}: {(await response.text())[:300]}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            state = f"{type(error).__name__}: {error}"
        await asyncio.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    raise TrainerError(
        "ServerNotReady", f"the model server at {endpoint.url} was not ready within {seconds:.0f} s; last state: {state}",
        "Look at the logs of the pod's container `server`.",
    )  # fmt: skip


async def ask_all(
    session: aiohttp.ClientSession, endpoint: Endpoint, rows: Sequence[TestRow], answered: Callable[[TestRow, Reply], None]
) -> None:
    """Ask every row; `answered` is called in the loop as replies come. Raises the first failure that is everybody's."""
    slots = asyncio.Semaphore(endpoint.concurrency)

    async def one(row: TestRow) -> None:
        async with slots:
            answered(row, await ask(session, endpoint, row))

    tasks = [asyncio.create_task(one(row)) for row in rows]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(session: aiohttp.ClientSession, endpoint: Endpoint, row: TestRow) -> Reply:
    """The greedy answer to one row. Raises UserError (unknown model) or Infrastructure (no answer for too long)."""
    deadline = time.monotonic() + RETRY_SECONDS
    delay, state = 0.25, ""
    while True:
        try:
            status, document = await _post(session, endpoint, row)
            if status == 200:
                return Reply(_content(document), "", *_tokens(document))
            state = f"HTTP {status}: {_message(document)}"
            if status in (401, 403, 404):
                raise UserError("EndpointRefuses", f"{endpoint.url} refuses model {endpoint.model}: {state}")
            if status not in _PASSING:
                return Reply(None, state)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            state = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            raise Infrastructure(
                "ServerLost", f"{endpoint.url} gave no answer to row {row.id} for {RETRY_SECONDS:.0f} s; last: {state}",
                "Look at the logs of the pod's container `server`.",
            )  # fmt: skip
        await asyncio.sleep(delay)
        delay = min(5.0, delay * 2)


async def _post(session: aiohttp.ClientSession, endpoint: Endpoint, row: TestRow) -> tuple[int, object]:
    body = {
        "model": endpoint.model, "messages": list(row.messages), "temperature": 0, "seed": 0,
        "max_tokens": endpoint.max_new_tokens,
    }  # fmt: skip
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with session.post(f"{endpoint.url}/chat/completions", json=body, timeout=timeout) as response:
        try:
            return response.status, await response.json(content_type=None)
        except ValueError:
            return response.status, None


def _content(document: object) -> str:
    try:
        return str(document["choices"][0]["message"]["content"] or "")  # type: ignore[index]
    except (TypeError, KeyError, IndexError) as error:
        raise TrainerError("AnswerUnreadable", f"the endpoint's answer is not OpenAI's: {str(document)[:300]}") from error


def _tokens(document: object) -> tuple[int | None, int | None]:
    """Of prompt and answer, as the server says."""
    usage = document.get("usage") if isinstance(document, dict) else None
    told = [usage.get(f"{of}_tokens") if isinstance(usage, dict) else None for of in ("prompt", "completion")]
    first, second = (number if isinstance(number, int) and number >= 0 else None for number in told)
    return first, second


def _message(document: object) -> str:
    inner = document.get("error") if isinstance(document, dict) else None
    text = inner.get("message") if isinstance(inner, dict) else document
    return str(text)[:300]


def _check_name(document: object, model: str) -> None:
    listed = document.get("data") if isinstance(document, dict) else None
    names = [str(item.get("id")) for item in listed or [] if isinstance(item, dict)]
    if names and model not in names:
        raise UserError("ModelNotServed", f"the endpoint serves {', '.join(names[:8])}, not {model}")
