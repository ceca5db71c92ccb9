"""The hang watchdog of one rank: no beat for `limit` seconds ends the process with its own code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Call `beat` at every sign of progress; `on_stall` (which does not return) runs on the watchdog's own thread."""

    def __init__(self, limit: float, on_stall: Callable[[float], None], tick: float = 1.0) -> None:
        self._limit = limit
        self._on_stall = on_stall
        self._tick = min(tick, limit / 4)
        self._last = time.monotonic()
        self._done = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Say that work goes on."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self._tick):
            silent = time.monotonic() - self._last
            if silent > self._limit:
                self._on_stall(silent)
                return
