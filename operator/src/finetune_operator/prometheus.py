"""The only HTTP to Prometheus: instant queries, bounded in time and size.

Invariant: what a user wrote goes into the parameter `query` and nowhere else; a redirect is not followed, for it could lead the
operator's credentials elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from finetune_operator import conditions
from finetune_operator.clock import Clock
from finetune_operator.observed import Answer, Question

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)
LARGEST: Final = 64 * 1024  # bytes of an answer: one number is wanted
AT_ONCE: Final = 16  # all that one FineTune may ask: what waits for another's answer does so within its own time
Key = tuple[str, str]


@dataclass(frozen=True)
class _Asked:
    at: float
    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]


class Prometheus:
    """Asks the one at `url` (empty: none), with `authorization` as that header if it is not empty.

    An answer is good for `fresh` seconds, also one that there was none.
    """

    def __init__(self, url: str, authorization: str, clock: Clock, fresh: float) -> None:
        self.url = url
        self._headers = {"Authorization": authorization} if authorization else {}
        self._clock = clock
        self._fresh = fresh
        self._asked: dict[Key, _Asked] = {}

    async def ask(self, key: Key, questions: Sequence[Question]) -> tuple[Answer, ...]:
        """An answer for each question of one FineTune; what cannot be asked says why, and ends nothing."""
        now, wanted = self._clock.monotonic(), tuple(questions)
        self._asked = {k: asked for k, asked in self._asked.items() if now - asked.at < self._fresh}
        if not wanted:
            return ()
        if not self.url:
            return tuple(Answer(q.guard, q.arm, error=conditions.PROMETHEUS_UNKNOWN) for q in wanted)
        last = self._asked.get(key)
        if last is None or last.questions != wanted:
            last = self._asked[key] = _Asked(now, wanted, await self._ask(wanted))
        return last.answers

    async def _ask(self, questions: tuple[Question, ...]) -> tuple[Answer, ...]:
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        async with aiohttp.ClientSession(headers=self._headers, connector=connector, timeout=TIMEOUT) as session:
            return tuple(await asyncio.gather(*(self._answer(session, q) for q in questions)))

    async def _answer(self, session: aiohttp.ClientSession, question: Question) -> Answer:
        try:
            value = await self._value(session, question.text)
        except TimeoutError:
            return Answer(question.guard, question.arm, error=f"Prometheus does not answer within {TIMEOUT.total:.0f} s")
        except (aiohttp.ClientError, OSError) as error:
            return Answer(question.guard, question.arm, error=f"Prometheus cannot be asked: {type(error).__name__}: {error}"[:300])
        except (ValueError, RecursionError) as error:
            return Answer(question.guard, question.arm, error=f"Prometheus answers {error}"[:300])
        return Answer(question.guard, question.arm, value)

    async def _value(self, session: aiohttp.ClientSession, text: str) -> float | None:
        """The one number, None where there is no series; ValueError says what there is instead."""
        asked = {"query": text, "timeout": f"{TIMEOUT.total:.0f}s"}
        async with session.get(f"{self.url}/api/v1/query", params=asked, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(8192):
                body += chunk
                if len(body) > LARGEST:
                    raise ValueError(f"more than {LARGEST} bytes: make one number of its series, say with sum or max")
            return number(response.status, bytes(body))


def number(status: int, body: bytes) -> float | None:
    """The number in an answer of `/api/v1/query`, None where there is no series; ValueError says what there is instead."""
    try:
        answer = json.loads(body)
    except ValueError:
        raise ValueError(f"HTTP {status}, and no JSON") from None
    match answer:
        case {"status": "success", "data": data}:
            return _number(data)
        case {"status": "error", "error": str(message)}:
            raise ValueError(f"{answer.get('errorType', 'error')}: {message}")
        case _:
            raise ValueError(f"HTTP {status}, and not as Prometheus does")


def _number(data: Any) -> float | None:
    match data:
        case {"resultType": "vector", "result": []}:
            return None
        case {"resultType": "scalar", "result": [_, str(text)]} | {"resultType": "vector", "result": [{"value": [_, str(text)]}]}:
            return float(text)
        case {"resultType": "vector", "result": [_, _, *_] as series}:
            raise ValueError(f"{len(series)} series: make one number of them, say with sum or max")
        case {"resultType": str(kind)}:
            raise ValueError(f"a {kind}, where one number is wanted")
        case _:
            raise ValueError("nothing that is known")
