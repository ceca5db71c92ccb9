"""What the demo claims, judged from what was seen; and the closing table. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

GAIN_POINTS = 40.0  # tuned execution accuracy must be this many points above the base model's
DEVIATIONS = 4.0  # a share of users may be this many standard deviations of the binomial off its weight
MIN_TEST_ROWS = 40

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Share:
    """How many of the users the new model answered while its weight was `weight` percent."""

    weight: int
    on_new: int
    users: int

    @property
    def percent(self) -> float:
        return 100 * self.on_new / self.users if self.users else math.nan


@dataclass(frozen=True)
class Answers:
    """Real questions asked while users moved: how many an arm answered, and how many of those rightly."""

    asked: int = 0
    right: int = 0


@dataclass(frozen=True)
class Outcome:
    """All that was seen: the FineTune's last status, and what the users met."""

    status: Object
    weights: Sequence[int]
    shares: Sequence[Share] = ()
    requests: int = 0
    failed: int = 0
    failures: Sequence[str] = ()
    switched: int = 0
    leaked_rows: int | None = None
    test_rows: int | None = None
    answers: Mapping[str, Answers] = field(default_factory=dict)


def off_by(share: Share) -> float:
    """Percent that the share may deviate from its weight: some standard deviations of the binomial (0 at 100 %)."""
    p = share.weight / 100
    return 100 * DEVIATIONS * math.sqrt(p * (1 - p) / share.users) if share.users else 0.0


def within(share: Share) -> bool:
    """Whether the share is what its weight promises."""
    return share.users > 0 and abs(share.percent - share.weight) <= off_by(share)


def gain_points(status: Object) -> float | None:
    """Points between the tuned and the base model's score, or None without both."""
    evaluation = status.get("evaluation") or {}
    baseline, tuned = evaluation.get("baseline"), evaluation.get("tuned")
    return 100 * (float(tuned["score"]) - float(baseline["score"])) if baseline and tuned else None


def problems(outcome: Outcome) -> list[str]:
    """What keeps the demo from being a success, each as a sentence; empty when all holds."""
    found = []
    if outcome.status.get("phase") != "Live":
        found.append(f"the FineTune is {outcome.status.get('phase', 'without a status')}, not Live")
    gain = gain_points(outcome.status)
    if gain is None:
        found.append("there are no two scores to compare")
    elif gain < GAIN_POINTS:
        found.append(f"the tuned model is {gain:.0f} points better, not {GAIN_POINTS:.0f}")
    if outcome.test_rows is not None and outcome.test_rows < MIN_TEST_ROWS:
        found.append(f"only {outcome.test_rows} test rows, not {MIN_TEST_ROWS}")
    if outcome.leaked_rows:
        found.append(f"{outcome.leaked_rows} test rows are in the training data")
    measured = {share.weight: share for share in outcome.shares}
    for weight in outcome.weights:
        share = measured.get(weight)
        if share is None:
            found.append(f"the split at {weight} % was over before it was measured")
        elif not within(share):
            found.append(f"at {weight} % the new model had {share.percent:.1f} % of {share.users} users (allowed: ± {off_by(share):.1f})")
    if outcome.switched:
        found.append(f"{outcome.switched} users were taken back to the old model")
    if outcome.failed:
        found.append(f"{outcome.failed} of {outcome.requests} requests failed: {'; '.join(outcome.failures)}")
    return found


def table(outcome: Outcome) -> list[str]:
    """The closing table's lines."""
    evaluation = outcome.status.get("evaluation") or {}
    rows = [
        ("execution accuracy, base model", score(evaluation.get("baseline"))),
        ("execution accuracy, tuned model", score(evaluation.get("tuned"))),
        ("improvement (paired)", score(evaluation.get("improvement"), "difference")),
        *((f"users on the new model at {s.weight} %", f"{s.percent:.1f} % of {s.users}") for s in outcome.shares),
        ("users who switched back", str(outcome.switched)),
        ("failed requests", f"{outcome.failed} of {outcome.requests}"),
        (
            "test rows found in the training data",
            "not checked" if outcome.leaked_rows is None else str(outcome.leaked_rows),
        ),
        *((f"right answers to users, {who}", f"{a.right} of {a.asked}") for who, a in sorted(outcome.answers.items())),
        *((f"time of {name}", f"{seconds:.0f} s") for name, seconds in stages(outcome.status)),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def score(value: Object | None, key: str = "score") -> str:
    """`62.1 % [50.0, 74.1], n=58`."""
    if not value:
        return "–"
    text = f"{100 * float(value[key]):.1f} %"
    if value.get("low") is not None and value.get("high") is not None:
        text += f" [{100 * float(value['low']):.1f}, {100 * float(value['high']):.1f}]"
    return text + (f", n={value['n']}" if value.get("n") is not None else "")


def stages(status: Object) -> list[tuple[str, float]]:
    """(name, seconds) of each finished stage."""
    return [
        (stage["name"], (moment(stage["finished"]) - moment(stage["started"])).total_seconds())
        for stage in status.get("stages") or []
        if stage.get("finished")
    ]


def moment(text: str) -> datetime:
    """An RFC 3339 time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
