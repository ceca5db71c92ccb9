"""`finetune-trainer serve`: arguments, life and end of the server.

It listens before the model is loaded (alive, not ready), is ready after one real completion, and on SIGTERM is not ready any
more, answers what is under way and what still comes (every answer closing its connection), and exits 0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from aiohttp import web

from finetune_trainer import hardware
from finetune_trainer.serve.app import Server, collect, submit
from finetune_trainer.serve.drain import drain
from finetune_trainer.serve.engine import Engine
from finetune_trainer.serve.generation import Sampling
from finetune_trainer.serve.loading import Loaded, load


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns 0. Raises what makes the model impossible to serve."""
    options = parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _limit_threads(options.threads or hardware.cpu_limit())
    return asyncio.run(_serve(options))


def parser() -> argparse.ArgumentParser:
    """The arguments of docs/contracts.md."""
    p = argparse.ArgumentParser(prog="finetune-trainer serve", description="Serve a model with OpenAI's API.")
    p.add_argument("--model", type=Path, required=True, help="folder of the base model, or of one of which all weights were trained")
    p.add_argument("--adapter", type=Path, help="folder of an adapter: of low rank, or a trained prompt")
    p.add_argument("--served-model-name", required=True, help="the name that requests ask for")
    p.add_argument("--host", default="0.0.0.0")
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--threads", type=_positive, help="CPU threads (default: what the container may use)")
    p.add_argument("--max-concurrency", type=_positive, default=16, help="requests that generate together")
    p.add_argument("--max-model-len", type=_positive, help="longest prompt and answer together, in tokens")
    p.add_argument("--max-new-tokens", type=_positive, default=512, help="a chat answer's length if not asked for")
    p.add_argument("--revision", default="", help="told in the header x-finetune-revision of every response")
    return p


async def _serve(options: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)  # a second signal changes nothing
    server = Server(options.served_model_name, options.revision, options.max_new_tokens)
    runner = server.runner()
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        _log(f"listening on {options.host}:{options.port}, loading {options.model}")
        if await _until(stop, _bring_up(server, options)):
            _log("ready")
            await stop.wait()
        await _end(server, runner)
    finally:
        await runner.cleanup()
    return 0


async def _bring_up(server: Server, options: argparse.Namespace) -> None:
    """Load, start the engine, generate one real completion, then be ready."""
    started = time.monotonic()
    loaded = await _in_thread(lambda: load(options.model, options.adapter, max_model_len=options.max_model_len))
    server.loaded, server.engine = loaded, Engine(loaded, options.max_concurrency)
    server.engine.start()
    ids = list(loaded.tokenizer("Hello")["input_ids"])
    _, events = submit(server.engine, ids, [Sampling(max_tokens=2, temperature=0, ignore_end=True)])
    await collect(events, 1)
    server.ready = True
    _log(f"{loaded.model.dtype} on {loaded.device}, up in {time.monotonic() - started:.1f} s")


async def _end(server: Server, runner: web.AppRunner) -> None:
    """Drain, then stop the engine."""
    _log(f"stopping; {server.held} requests are answered first")
    left = await drain(server, runner)
    if server.engine is not None:
        await asyncio.to_thread(server.engine.stop, max(1.0, left))
    server.encoder.shutdown(wait=False)
    _log("stopped")


async def _until(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Run `work` unless `stop` comes first; whether it ended. Its exception is raised."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(stop.wait())
    await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if not task.done():
        task.cancel()
        return False
    task.result()
    return True


async def _in_thread(work: Callable[[], Loaded]) -> Loaded:
    """Run `work` on a daemon thread: unlike the default executor's it does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Loaded] = loop.create_future()

    def settle(result: Loaded | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


def _limit_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _log(message: str) -> None:
    print(f"serve: {message}", flush=True)
