"""A log and outcomes → what is to be told: users, the split that was met, each metric with its effect. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from finetune_operator.build.exposure_log import KEY_DIGITS, USER_DIGITS

from kubectl_finetune.ab import statistics
from kubectl_finetune.ab.exposures import Pair, Seen, Tally
from kubectl_finetune.ab.outcomes import Outcomes
from kubectl_finetune.kubectl import PluginError

MISMATCH: Final = 0.001  # a p-value of the split below it: something chose who is seen
Unit = Literal["share", "milliseconds", "number"]


@dataclass(frozen=True)
class Metric:
    """A metric in both arms, and what is between them, or why nothing is said of that."""

    name: str
    unit: Unit
    stable: statistics.Arm | None
    canary: statistics.Arm | None
    effect: statistics.Effect | None
    note: str = ""


@dataclass(frozen=True)
class Side:
    """An arm's figures over all its requests. Times are milliseconds."""

    arm: str
    revision: str
    users: int
    requests: int
    errors: int
    abandoned: int
    median: float | None
    p95: float | None
    first_median: float | None
    tokens: float | None


@dataclass(frozen=True)
class Joined:
    """How the outcomes met the log: rows that did, rows that did not (their first numbers), users of each arm with an outcome."""

    rows: int
    unknown: int
    first_unknown: tuple[int, ...]
    with_outcome: tuple[int, int]
    p: float  # of as many users in each arm having one


@dataclass(frozen=True)
class Comparison:
    """All that is told. `mismatch` is the p-value of the split; `both` are users of neither arm."""

    rollout: str
    split: float
    began: datetime
    ended: datetime
    stable: Side
    canary: Side
    both: tuple[str, ...]
    mismatch: float
    metrics: tuple[Metric, ...]
    joined: Joined | None = None

    @property
    def split_is_met(self) -> bool:
        """Are there as many users on each arm as the split makes?"""
        return self.mismatch >= MISMATCH


MEASURES: Final[tuple[tuple[str, Unit, Callable[[Tally], Pair]], ...]] = (
    ("errors", "share", lambda t: (t.errors, t.requests)),
    ("time to the end", "milliseconds", lambda t: (t.duration, t.answered)),
    ("time to first byte", "milliseconds", lambda t: (t.first, t.firsts)),
    ("tokens an answer", "number", lambda t: (t.tokens, t.counted)),
)


def hashed(key: bytes, user: str) -> str:
    """The user as the routers log them: a name has no spaces around it there."""
    return hmac.new(key, user.strip(" \t").encode(), hashlib.sha256).hexdigest()[:USER_DIGITS]


def key_id(key: bytes) -> str:
    """What a line says of the key that it was written with."""
    return hmac.new(key, b"", hashlib.sha256).hexdigest()[:KEY_DIGITS]


def by_user(seen: Seen, outcomes: Outcomes, key: bytes, *, zero: bool) -> Joined:
    """Add each row to its user's sums. With `zero` a user without a row has an outcome of 0."""
    if key_id(key) != seen.key:
        raise PluginError(
            f"the log was written with another key ({seen.key}) than the one given ({key_id(key)}): users cannot be found in it"
        )
    where = {user: arm.users[user] for arm in seen.arms.values() for user in arm.users}
    both, unknown, rows = set(seen.both()), [], 0
    for outcome in outcomes.rows:
        user = hashed(key, outcome.id)
        if user not in where:
            unknown.append(outcome.row)
            continue
        rows += 1
        if user not in both:
            _add(where[user], outcome.value)
    joined = _joined(seen, rows, unknown)
    for user, tally in where.items():
        if zero and not tally.outcomes and user not in both:
            _add(tally, 0.0)
    return joined


def by_response(seen: Seen, outcomes: Outcomes) -> Joined:
    """Add each row to the sums of the user who got that answer."""
    unknown, met = [], dict[str, int]()
    for outcome in outcomes.rows:
        if outcome.id in met:
            raise PluginError(f"row {outcome.row}: the answer {outcome.id} has an outcome already, of row {met[outcome.id]}")
        if outcome.id not in seen.responses:
            unknown.append(outcome.row)
            continue
        met[outcome.id] = outcome.row
        arm, user = seen.responses[outcome.id]
        _add(seen.arms[arm].users[user], outcome.value)
    return _joined(seen, len(met), unknown)


def compare(seen: Seen, outcomes: Outcomes | None = None, joined: Joined | None = None) -> Comparison:
    """Both arms, from the sums. Users who were seen on both are left out of everything that is compared."""
    assert seen.began
    assert seen.ended
    both = set(seen.both())
    kept = {name: [t for user, t in arm.users.items() if user not in both] for name, arm in seen.arms.items()}
    stable, canary = kept[seen.stable], kept[seen.canary]
    metrics = [_metric(name, unit, pair, stable, canary) for name, unit, pair in MEASURES]
    if outcomes is not None:
        unit: Unit = "share" if outcomes.share else "number"
        metrics.insert(0, _metric(outcomes.metric, unit, lambda t: (t.outcome, t.outcomes), stable, canary))
    return Comparison(
        seen.rollout, seen.split, seen.began, seen.ended, _side(seen, seen.stable), _side(seen, seen.canary), tuple(sorted(both)),
        statistics.mismatch(len(canary), len(stable), seen.split), tuple(metrics), joined,
    )  # fmt: skip


def _metric(name: str, unit: Unit, pair: Callable[[Tally], Pair], stable: list[Tally], canary: list[Tally]) -> Metric:
    a, b = statistics.measured(map(pair, stable)), statistics.measured(map(pair, canary))
    note = statistics.too_few(a, b, share=unit == "share")
    effect = statistics.compared(a, b) if a and b and not note else None
    return Metric(name, unit, a, b, effect, note if note or effect else "it is the same for all users")


def _side(seen: Seen, name: str) -> Side:
    arm = seen.arms[name]
    tallies = arm.users.values()
    counted = sum(t.counted for t in tallies)
    return Side(
        name, arm.revision, len(arm.users), sum(t.requests for t in tallies), sum(t.errors for t in tallies), arm.abandoned,
        arm.duration.at(0.5), arm.duration.at(0.95), arm.first.at(0.5), sum(t.tokens for t in tallies) / counted if counted else None,
    )  # fmt: skip


def _add(tally: Tally, value: float) -> None:
    tally.outcome, tally.outcomes = tally.outcome + value, tally.outcomes + 1


def _joined(seen: Seen, rows: int, unknown: list[int]) -> Joined:
    both = set(seen.both())
    pairs = []
    for name in (seen.stable, seen.canary):
        tallies = [t for user, t in seen.arms[name].users.items() if user not in both]
        pairs.append((sum(1 for t in tallies if t.outcomes), len(tallies)))
    (a, n), (b, m) = pairs
    return Joined(rows, len(unknown), tuple(unknown[:3]), (a, b), statistics.unlike(a, n, b, m))
