"""What is being done and how long the rest takes, told on standard error every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EVERY_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Step:
    """A phase, and the seconds that it is expected to take on two cores."""

    name: str
    seconds: float


def floor_steps(objects: int) -> list[Step]:
    """Of a run with bare Jobs."""
    seconds = {"set-up": 6.0, "singles": 30.0, "burst": 6 + objects / 150, "delete": 11 + objects / 80}
    return [Step(f"floor: {name}", expected) for name, expected in seconds.items()]


def finetune_steps(objects: int, idle_seconds: float, restart_seconds: float) -> list[Step]:
    """Of a run with FineTunes."""
    seconds = {"set-up": 10.0, "singles": 68.0, "burst": 6 + objects / 20}
    rest = {"idle": idle_seconds, "restart": restart_seconds + 5, "gap": 7.0, "beside": 15.0, "delete": 11 + objects / 40}
    return [Step(f"FineTunes: {name}", expected) for name, expected in {**seconds, **rest}.items()]


def life_steps(live: int) -> list[Step]:
    """Of a run with FineTunes that train and serve."""
    seconds = {"set-up": 8.0, "one life": 35.0, "live": 30 + live / 8, "training": 30 + live / 10}
    return [Step(f"lives: {name}", expected) for name, expected in seconds.items()]


def idle_steps(objects: int, idle_seconds: float) -> list[Step]:
    """Of a run that measures idling alone."""
    seconds = {"set-up": 10.0, "burst": 6 + objects / 20, "idle": idle_seconds, "sweeps": 20 + idle_seconds}
    return [Step(f"FineTunes: {name}", expected) for name, expected in seconds.items()]


def seconds_left(current: Step, later: Sequence[Step], elapsed: float, done: float) -> float:
    """Until the end, when `done` (0 to 1) of the current step took `elapsed` seconds: its own pace counts once a tenth is done."""
    own = elapsed * (1 - done) / done if done >= 0.1 else max(0.0, current.seconds - elapsed)
    return own + sum(step.seconds for step in later)


def spoken(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


class Progress:
    """Walks through the steps in their order."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self._started = time.monotonic()
        self._begin(self._steps[0])

    def _begin(self, step: Step) -> None:
        self._current, self._since, self._said = step, time.monotonic(), float("-inf")

    def step(self, name: str) -> None:
        """The next step begins."""
        while self._steps[0].name != name:
            del self._steps[0]
        self._begin(self._steps[0])
        self.tell()

    def tell(self, done: int = 0, of: int = 0) -> None:
        """Say where it is, unless that was just said."""
        now = time.monotonic()
        if now - self._said < EVERY_SECONDS:
            return
        self._said = now
        left = seconds_left(self._current, self._steps[1:], now - self._since, done / of if of else 0.0)
        count = f" {done}/{of}" if of else ""
        print(f"{now - self._started:5.0f} s  {self._current.name}{count} ({spoken(left)})", file=sys.stderr, flush=True)
