"""Who judges the same canary: the operator's guards at every look, and rules with a fixed threshold and a budget of failed checks.

The fixed rules are of the kind that Flagger (https://docs.flagger.app/usage/metrics) and Argo Rollouts
(https://argo-rollouts.readthedocs.io/en/stable/features/analysis/) document, with their own meaning of the budget and of no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from finetune_operator.api.blocks.guards import Guards
from finetune_operator.decide.guards import Verdict, judge, overall, quantile
from finetune_operator.traffic import ArmTotals

from tests.bench.guards.traffic import Span

INTERVAL = 60.0  # seconds between the checks of the fixed rules, and their window


@dataclass(frozen=True)
class Outcome:
    """What became of a canary; `requests` and `seconds` until then: of the canary, since users were moved to it."""

    end: Literal["rolled back", "promoted", "waits"]
    requests: int
    seconds: float
    guard: str = ""


class Rule(Protocol):
    """Judges one rollout."""

    name: str

    def judge(self, spans: list[Span]) -> Outcome: ...


@dataclass(frozen=True)
class Ours:
    """The operator's guards, as `decide.rollout` asks them: at every look, and at a step's end whether to go on."""

    guards: Guards
    name: str = "guards"

    def judge(self, spans: list[Span]) -> Outcome:
        """The first Fail ends it; once its time is over a step goes on at the first Pass, the last one at anything but an Error."""
        requests, seconds = 0, 0.0
        for span in spans:
            look, verdict, guard = self._step(span)
            requests, seconds = requests + int(span.canary.requests[look]), seconds + (look + 1) * span.look
            if verdict == "Fail":
                return Outcome("rolled back", requests, seconds, guard)
            if verdict == "Error" or (verdict == "Insufficient" and span.step.share < 1):
                return Outcome("waits", requests, seconds, guard)
        return Outcome("promoted", requests, seconds)

    def _step(self, span: Span) -> tuple[int, Verdict, str]:
        """(the look at which it was decided, how, by which guard)."""
        for look in range(len(span.canary.requests)):
            findings = judge(self.guards, span.canary.totals(look), span.stable.totals(look))
            verdict = overall(findings)
            guard = next(f.guard for f in findings if f.verdict == verdict)
            over = look >= span.looks - 1
            if verdict == "Fail" or (over and (verdict == "Pass" or span.step.share == 1)):
                break
        return look, verdict, guard


@dataclass(frozen=True)
class Threshold:
    """What each check asks of the canary alone, in the last minute: a share that succeeds, a 99th percentile in milliseconds."""

    success: float
    p99: float

    def __str__(self) -> str:
        return f"each minute at least {100 * self.success:.3g} % succeed and the 99th percentile is at most {self.p99:,.0f} ms"

    def passes(self, window: ArmTotals) -> bool:
        """Does a minute with answers fulfil it?"""
        return 1 - window.errors / window.requests >= self.success and quantile(window.latency, 0.99) <= self.p99


@dataclass(frozen=True)
class Flagger:
    """Failed checks are counted over the whole analysis, a minute without data as one; `budget` of them roll back."""

    threshold: Threshold
    name: str
    budget: int = 5

    def __str__(self) -> str:
        return f"{self.name}: {self.threshold}; {self.budget} failed checks or minutes without data roll back"

    def judge(self, spans: list[Span]) -> Outcome:
        failed = 0
        for window, requests, seconds in _windows(spans):
            failed += not (window.requests and self.threshold.passes(window))
            if failed >= self.budget:
                return Outcome("rolled back", requests, seconds)
        return _promoted(spans)


@dataclass(frozen=True)
class Argo:
    """More than `limit` failed measurements roll back, and so do more than `errors` without data in a row."""

    threshold: Threshold
    name: str
    limit: int = 3
    errors: int = 4

    def __str__(self) -> str:
        return f"{self.name}: {self.threshold}; more than {self.limit} failures, or {self.errors} minutes without data in a row, roll back"

    def judge(self, spans: list[Span]) -> Outcome:
        failed = empty = 0
        for window, requests, seconds in _windows(spans):
            empty = 0 if window.requests else empty + 1
            failed += bool(window.requests) and not self.threshold.passes(window)
            if failed > self.limit or empty > self.errors:
                return Outcome("rolled back", requests, seconds)
        return _promoted(spans)


def _windows(spans: list[Span]) -> Iterator[tuple[ArmTotals, int, float]]:
    """(what the canary answered in a minute, its requests until then, seconds until then)."""
    requests, seconds = 0, 0.0
    for span in spans:
        looks = round(INTERVAL / span.look)
        for end in range(looks - 1, span.looks, looks):
            yield span.canary.between(end - looks, end), requests + int(span.canary.requests[end]), seconds + (end + 1) * span.look
        requests, seconds = requests + int(span.canary.requests[span.looks - 1]), seconds + span.step.seconds


def _promoted(spans: list[Span]) -> Outcome:
    return Outcome("promoted", sum(int(span.canary.requests[span.looks - 1]) for span in spans), sum(span.step.seconds for span in spans))
