"""The HTTP side: routes, readiness, streaming, errors and drain.

Invariant: nothing here computes: bodies are read and prompts encoded on a thread of their own, and tokens made on the engine's, so
that `/healthz` answers within milliseconds under any load.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web
from pydantic_core import from_json

from finetune_trainer.serve import prompts, protocol
from finetune_trainer.serve.answers import Answer, Choice, event
from finetune_trainer.serve.drain import make_last
from finetune_trainer.serve.engine import Engine, QueueFull, Stopping
from finetune_trainer.serve.generation import Event, Failed, Finished, Generation, Piece, Sampling
from finetune_trainer.serve.loading import Loaded
from finetune_trainer.serve.metrics import Metrics
from finetune_trainer.serve.protocol import ApiError, ChatRequest, CompletionRequest, R

MAX_BODY_BYTES = 4 * 1024 * 1024
RECEIVE_SECONDS = 75.0  # to receive a body: more than the routers give for it
REVISION_HEADER = "x-finetune-revision"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Events = asyncio.Queue[tuple[int, Event]]  # with the choice's index


class Cut(ConnectionResetError):
    """An answer that had begun ended because generation failed."""


@dataclass
class Server:
    """What the handlers share. `engine` and `loaded` come when the model is loaded, `ready` after a completion."""

    name: str
    revision: str
    max_new_tokens: int
    metrics: Metrics = field(default_factory=Metrics)
    encoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoder"))
    created: int = field(default_factory=lambda: int(time.time()))
    loaded: Loaded | None = None
    engine: Engine | None = None
    ready: bool = False
    draining: bool = False
    held: int = 0
    last_used: float = -math.inf  # the API: when a request last came or ended, by time.monotonic

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._count, _errors], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._health), web.get("/readyz", self._readiness), web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models), web.get("/v1/models/{model:.+}", self._model),
                web.post("/v1/chat/completions", self._chat), web.post("/v1/completions", self._completion),
            ]
        )  # fmt: skip
        app.on_response_prepare.append(self._stamp)
        return app

    def runner(self) -> web.AppRunner:
        """What serves the application; a client that goes away cancels its handler."""
        return web.AppRunner(self.application(), access_log=None, handler_cancellation=True, shutdown_timeout=5)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        if self.ready and not self.draining:
            return web.Response(text="ready\n")
        return web.Response(status=503, text="draining\n" if self.draining else "loading\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        self.metrics.queue.set(self.engine.waiting if self.engine else 0)
        self.metrics.inflight.set(self.held)
        self.metrics.ready.set(self.ready and not self.draining)
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _models(self, _: web.Request) -> web.Response:
        self._parts()
        return _json({"object": "list", "data": [self._description()]})

    async def _model(self, request: web.Request) -> web.Response:
        self._parts()
        protocol.check_model(request.match_info["model"], self.name, self.revision)
        return _json(self._description())

    def _description(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "finetune"}

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, ChatRequest, prompts.chat_prompt)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, CompletionRequest, prompts.completion_prompt)

    async def _serve(self, request: web.Request, kind: type[R], encode: Callable[[Any, R], list[int]]) -> web.StreamResponse:
        loaded, _ = self._parts()
        body = await _received(request)
        asked, ids = await asyncio.get_running_loop().run_in_executor(self.encoder, self._understood, kind, encode, loaded.tokenizer, body)
        return await self._answer(request, asked, ids)

    def _understood(self, kind: type[R], encode: Callable[[Any, R], list[int]], tokenizer: Any, body: bytes) -> tuple[R, list[int]]:
        """A request's body, parsed and checked, and its prompt's token ids; on the encoder's thread. Raises ApiError."""
        asked = protocol.parse(kind, _document(body))
        protocol.check_model(asked.model, self.name, self.revision)
        return asked, encode(tokenizer, asked)

    async def _answer(self, request: web.Request, asked: protocol.Request, ids: list[int]) -> web.StreamResponse:
        loaded, engine = self._parts()
        settings = prompts.sampling(asked, len(ids), prompts.Limits(loaded.max_model_len, self.max_new_tokens))
        answer = Answer(
            isinstance(asked, ChatRequest), self.name, self.revision or None, settings.logprobs is not None, asked.wants_usage
        )  # fmt: skip
        wanted = [settings.drawn_apart(index) for index in range(asked.n or 1)]
        generations, events = submit(engine, ids, wanted)
        self.held += 1
        try:
            if asked.stream:
                return await self._stream(request, answer, events, len(wanted))
            choices = await collect(events, len(wanted))
            for choice in choices:
                self.metrics.observe(choice.finished)
            return _json(answer.whole(choices))
        finally:
            for generation in generations:
                generation.cancelled = True
            self.held -= 1

    async def _stream(self, request: web.Request, answer: Answer, events: Events, count: int) -> web.StreamResponse:
        """Events of `count` choices as they come. A failure before the first one is a plain 500; after it the connection is cut,
        so that whoever counts errors sees one."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        index, current = await events.get()
        if isinstance(current, Failed):
            raise ApiError(500, current.message)
        await response.prepare(request)
        await response.write(b"".join(answer.opening(each) for each in range(count)))
        ended: list[Finished] = []
        while not isinstance(current, Failed):
            if isinstance(current, Piece):
                await response.write(answer.piece(index, current))
            else:
                self.metrics.observe(current)
                ended.append(current)
                await response.write(answer.end(index, current))
            if len(ended) == count:
                await response.write(answer.closing(ended))
                await response.write_eof()
                return response
            index, current = await events.get()
        await response.write(event(ApiError(500, current.message).body()))
        if request.transport is not None:
            request.transport.abort()
        raise Cut(current.message)

    def _parts(self) -> tuple[Loaded, Engine]:
        if self.loaded is None or self.engine is None or not self.ready:
            raise ApiError(503, "the model is loading", code="loading", retry_after=5)
        return self.loaded, self.engine

    async def _stamp(self, _: web.Request, response: web.StreamResponse) -> None:
        if self.revision:
            response.headers[REVISION_HEADER] = self.revision
        if self.draining:
            make_last(response)

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.match_info.route.resource.canonical if request.match_info.route.resource else "other"
        code = "499"  # the client went away
        self._used(path)
        try:
            response = await handler(request)
            code = str(response.status)
            return response
        except ConnectionResetError as error:
            code = "500" if isinstance(error, Cut) else "499"
            raise
        except Exception:
            code = "500"
            raise
        finally:
            if not self.draining:  # else its connection ended with it
                self._used(path)
            self.metrics.requests.labels(path, code).inc()

    def _used(self, path: str) -> None:
        if path.startswith("/v1/"):
            self.last_used = time.monotonic()


def submit(engine: Engine, ids: list[int], settings: Sequence[Sampling]) -> tuple[list[Generation], Events]:
    """Queue a generation for each of `settings`; their events arrive in the running loop. Raises ApiError 503 when they cannot be
    taken."""
    loop, events = asyncio.get_running_loop(), Events()

    def emit(index: int, item: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, (index, item))

    generations = [Generation(ids, each, partial(emit, index)) for index, each in enumerate(settings)]
    try:
        engine.submit(*generations)
    except QueueFull:
        raise ApiError(503, "too many requests wait", code="overloaded", retry_after=1) from None
    except Stopping:
        raise ApiError(503, "the server is stopping", code="stopping", retry_after=1) from None
    return generations, events


async def collect(events: Events, count: int) -> list[Choice]:
    """All choices when they are finished. Raises ApiError 500 where generation failed."""
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    ends: dict[int, Finished] = {}
    while len(ends) < count:
        index, item = await events.get()
        if isinstance(item, Finished):
            ends[index] = item
        elif isinstance(item, Failed):
            raise ApiError(500, item.message)
        else:
            pieces[index].append(item)
    return [
        Choice("".join(piece.text for piece in each), [token for piece in each for token in piece.tokens], ends[index])
        for index, each in enumerate(pieces)
    ]


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in OpenAI's form."""
    try:
        return await handler(request)
    except ApiError as error:
        return _refusal(error)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(ApiError(413, f"the request body is larger than {MAX_BODY_BYTES} bytes"))
    except web.HTTPException as error:
        response = _refusal(ApiError(error.status, f"{request.method} {request.path}: {error.reason}"))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionResetError:
        raise
    except Exception as error:
        if request.writer.output_size:
            raise  # an answer that has begun is cut
        traceback.print_exc()
        return _refusal(ApiError(500, f"the server failed: {type(error).__name__}"))


async def _received(request: web.Request) -> bytes:
    """The body. ApiError where the client sends none that can be read: it must not count as the server's failure."""
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            return await request.read()
    except web.RequestPayloadError as error:
        raise ApiError(400, "the request body is not what its Content-Encoding or Transfer-Encoding says") from error
    except TimeoutError:
        raise ApiError(408, f"the request body did not come to an end within {RECEIVE_SECONDS:g} s") from None


def _document(body: bytes) -> object:
    try:
        document: object = from_json(body)  # refuses halves of characters, which tokenizers cannot read
        return document
    except ValueError as error:
        raise ApiError(400, f"the request body is not JSON: {error}") from error


def _refusal(error: ApiError) -> web.Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return _json(error.body(), error.status, headers)


def _json(document: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return web.Response(text=body, status=status, headers=headers, content_type="application/json")
