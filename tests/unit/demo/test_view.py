"""What is shown: one line per change where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

from demo.traffic import Tally
from demo.view import View, headline, screen

TRAINING: dict[str, Any] = {
    "phase": "Training",
    "training": {
        "step": 20, "totalSteps": 50, "percent": 40, "loss": "0.098", "tokensPerSecond": "136.4", "etaSeconds": 95,
        "checkpoint": {"step": 10, "time": "2026-01-01T00:00:00Z"},
    },
}  # fmt: skip
ROLLING: dict[str, Any] = {
    "phase": "RollingOut",
    "rollout": {
        "weight": 50,
        "state": "Holding",
        "nextStepAt": "2026-01-01T00:00:20Z",
        "evidence": ["errorRate: pass"],
    },
}
HEADLINES = {
    "training": (
        TRAINING,
        "Training         step 20/50, loss 0.098, 136 tokens/s, about 95 s left, checkpoint at step 10",
    ),
    "rolling out": (
        ROLLING,
        "RollingOut       50 % of the users on the new model (Holding, next step at 2026-01-01T00:00:20Z)",
    ),
    "nothing yet": ({}, "Pending"),
    "waiting": (
        {"phase": "Pending", "conditions": [{"type": "Ready", "message": "ConfigMap shop-questions is missing"}]},
        "Pending          ConfigMap shop-questions is missing",
    ),
}


def test_headlines() -> None:
    assert {case: headline(status) for case, (status, _) in HEADLINES.items()} == {case: line for case, (_, line) in HEADLINES.items()}


def test_a_line_is_printed_only_when_it_says_something_new() -> None:
    out = io.StringIO()
    view = View(out)
    for status in ({}, {}, TRAINING, TRAINING):
        view.show(status, Tally())
    view.note("a note")
    lines = [line.split(maxsplit=2)[2] for line in out.getvalue().splitlines()]
    assert [line.split()[0] for line in lines] == ["Pending", "Training", "·"]


def test_the_screen_shows_weight_requests_and_guards() -> None:
    tally = Tally()
    tally.requests.update({"new": 3, "old": 4})
    text = "\n".join(screen(ROLLING, tally, ["noted"], 12.0))
    for expected in ("50 %", "new: 3   old: 4", "failed 0   switched back 0", "guard     errorRate: pass", "noted"):
        assert expected in text
