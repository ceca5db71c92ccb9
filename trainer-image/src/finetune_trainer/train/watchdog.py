"""The hang watchdog of one rank: no beat for `limit` seconds ends the process with its own code."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1])
COLLECTIVES, GPUS = "/torch/distributed/", "/torch/cuda/"


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


def whereabouts() -> str:
    """Where the main thread stands, for people: this package's innermost function there, whether it waits for other ranks or a GPU."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    inwards = [(code.co_filename, code.co_name, line) for code, line in ((f.f_code, line) for f, line in traceback.walk_stack(frame))]
    below = list(takewhile(lambda at: not at[0].startswith(PACKAGE), inwards))
    path, name, line = (inwards[len(below) :] or inwards)[0]
    return f"{_doing([at[0] for at in below], Path(path).name, name)} in {name} ({Path(path).name}, line {line})"


def _doing(below: Sequence[str], file: str, name: str) -> str:
    """By the files of the frames below this package's innermost function. What NCCL sums is waited for where it is read."""
    if any(COLLECTIVES in path for path in below) or (file, name) == ("distributed.py", "all"):
        return "waiting for the other ranks"
    return "waiting for its GPU, which may wait for the other ranks'," if any(GPUS in path for path in below) else "at work"
