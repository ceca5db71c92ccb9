"""How far an evaluation is, and how it stops."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Coroutine
from typing import Any

from finetune_trainer.exits import Interrupted
from finetune_trainer.progress import Progress


class Meter:
    """Share done and seconds left, told to `progress`."""

    def __init__(self, progress: Progress, total: int, before: int = 0) -> None:
        self._progress, self._total, self._before = progress, total, before
        self._done, self._started = before, time.monotonic()

    def start(self) -> None:
        """Count time from now."""
        self._started = time.monotonic()

    def advance(self, done: int | None = None) -> None:
        """One more row, or `done` rows in all."""
        self._done = self._done + 1 if done is None else done
        new = self._done - self._before
        left = (time.monotonic() - self._started) / max(1, new) * (self._total - self._done)
        percent = int(100 * self._done / max(1, self._total))
        self._progress.update(step=self._done, totalSteps=self._total, percent=percent, etaSeconds=round(left))


async def interruptible(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; SIGTERM cancels it and raises Interrupted (an exception raised by a signal handler could be lost
    inside the event loop)."""
    task = asyncio.create_task(work)
    loop, stopped = asyncio.get_running_loop(), False
    before = None

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
        raise Interrupted("Interrupted", "stopped by SIGTERM; the answers so far are kept") from None
    finally:
        if before is not None:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)
