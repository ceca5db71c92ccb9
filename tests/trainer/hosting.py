"""A server in this process, on a port: real HTTP, and a model and an engine that tests can look into."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from aiohttp import web
from finetune_trainer.serve.app import Server
from finetune_trainer.serve.engine import Engine
from finetune_trainer.serve.loading import Loaded

REVISION = "1f2e3d4c"
NAME = "bot"


@dataclass(frozen=True)
class Hosted:
    """A server that is ready, and where."""

    server: Server
    engine: Engine
    loaded: Loaded
    url: str


@contextmanager
def hosted(loaded: Loaded, slots: int = 8, name: str = NAME) -> Iterator[Hosted]:
    """Serve `loaded` until the block ends."""
    torch.set_num_threads(1)
    engine = Engine(loaded, slots)
    engine.start()
    server = Server(name, REVISION, 64, loaded=loaded, engine=engine, ready=True)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="http")
    thread.start()
    runner = server.runner()
    try:
        port = asyncio.run_coroutine_threadsafe(_listen(runner), loop).result(10)
        yield Hosted(server, engine, loaded, f"http://127.0.0.1:{port}/v1")
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        engine.stop(30)
        server.encoder.shutdown()


async def _listen(runner: web.AppRunner) -> int:
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])
