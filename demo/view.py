"""What the user sees while it runs: one screen, redrawn, on a terminal; one line per change elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

from demo.report import score
from demo.traffic import Tally

Object = Mapping[str, Any]
NOTES = 12
BAR = 40
CLEAR = "\x1b[H\x1b[J"


def headline(status: Object) -> str:
    """One line: phase, and the figures that matter in it."""
    phase = status.get("phase", "Pending")
    figures = {"Training": training, "RollingOut": rollout, "Baking": rollout, "Paused": rollout}.get(phase)
    detail = figures(status) if figures else message(status)
    return f"{phase:<16} {detail}".rstrip()


def training(status: Object) -> str:
    """Step, loss, speed and what is left."""
    t = status.get("training") or {}
    if not t:
        return message(status)
    parts = [f"step {t['step']}/{t['totalSteps']}"]
    parts += [f"loss {t['loss']}"] if t.get("loss") else []
    parts += [f"{float(t['tokensPerSecond']):.0f} tokens/s"] if t.get("tokensPerSecond") else []
    parts += [f"about {t['etaSeconds']} s left"] if t.get("etaSeconds") is not None else []
    parts += [f"checkpoint at step {t['checkpoint']['step']}"] if t.get("checkpoint") else []
    return ", ".join(parts)


def rollout(status: Object) -> str:
    """Weight, state, and when the next step is due."""
    r = status.get("rollout") or {}
    due = f", next step at {r['nextStepAt']}" if r.get("nextStepAt") else ""
    return f"{r.get('weight', 0)} % of the users on the new model ({r.get('state', '?')}{due})"


def message(status: Object) -> str:
    """`Ready`'s message: what it waits for."""
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    return str(conditions.get("Ready", {}).get("message", ""))[:160]


def screen(status: Object, tally: Tally, notes: list[str], elapsed: float) -> list[str]:
    """All lines of the terminal view."""
    evaluation = status.get("evaluation") or {}
    percent = _percent(status)
    lines = ["The FineTune operator: questions to SQL", "", f"{elapsed:5.0f} s   {headline(status)}"]
    lines += [f"          [{'#' * (percent * BAR // 100):<{BAR}}] {percent} %"] if percent is not None else []
    if evaluation:
        lines += ["", f"scores    base {score(evaluation.get('baseline'))}   tuned {score(evaluation.get('tuned'))}"]
    if tally.requests:
        lines += ["", "requests  " + "   ".join(f"{arm}: {count}" for arm, count in sorted(tally.requests.items()))]
        lines += [f"          failed {tally.failed}   switched back {len(tally.switched)}"]
    evidence = (status.get("rollout") or {}).get("evidence") or []
    lines += ["", *(f"guard     {line}" for line in evidence)] if evidence else []
    return [*lines, "", *notes]


def _percent(status: Object) -> int | None:
    if status.get("phase") == "Training":
        value = (status.get("training") or {}).get("percent")
        return int(value) if value is not None else None
    if status.get("phase") in ("RollingOut", "Baking"):
        return int((status.get("rollout") or {}).get("weight", 0))
    return None


class View:
    """Shows statuses and notes as they come."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out, self._tty = out, out.isatty()
        self._notes: deque[str] = deque(maxlen=NOTES)
        self._start, self._last = time.monotonic(), ""

    def show(self, status: Object, tally: Tally) -> None:
        """Draw the status: the whole screen, or a line if it says something new."""
        elapsed = time.monotonic() - self._start
        if self._tty:
            self._print(CLEAR + "\n".join(screen(status, tally, list(self._notes), elapsed)))
        elif (line := headline(status)) != self._last:
            self._last = line
            self._print(f"{elapsed:5.0f} s  {line}")

    def note(self, text: str) -> None:
        """Something that happened; stays visible."""
        self._notes.append(text)
        if not self._tty:
            self._print(f"{time.monotonic() - self._start:5.0f} s  · {text}")

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)
