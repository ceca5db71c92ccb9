"""The canaries that are simulated, and the rules that judge them side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from finetune_operator.api.blocks.guards import Guards

from tests.bench.guards.rules import Argo, Flagger, Ours, Rule, Threshold
from tests.bench.guards.traffic import MEDIAN_MS, SIGMA, Arm, Step, Traffic

# As strict as the documents suggest for anybody: what errs less often with weaker ones is not asked.
STRICT = Guards(max_error_regression_percent=25, max_latency_regression_percent=10)
EVERY = STRICT.model_copy(
    update={
        "max_time_to_first_token_regression_percent": 10,
        "max_time_per_output_token_regression_percent": 10,
        "max_unusable_regression_percent": 25,
    }
)
P99_MS = MEDIAN_MS * math.exp(2.3263 * SIGMA)  # of stable's answers
# Midway to what is to be found (2 % errors, +30 %): the best that somebody who knows the service could set.
MIDWAY = Threshold(0.985, 1.15 * P99_MS)
FIXED: tuple[Rule, ...] = (
    Flagger(Threshold(0.99, 1.15 * P99_MS), "Flagger 99 %"),
    Flagger(MIDWAY, "Flagger 98.5 %"),
    Argo(Threshold(0.95, 1.15 * P99_MS), "Argo 95 %"),
    Argo(MIDWAY, "Argo 98.5 %"),
)


@dataclass(frozen=True)
class Case:
    """`figure`: which figure of the last line it goes into."""

    name: str
    traffic: Traffic
    guards: Guards = STRICT
    figure: Literal["false_rollbacks", "errors_detected", "latency_detected", ""] = ""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Ours(self.guards), *FIXED)


ONE = (Step(0.1, 600),)
QUIET = (Step(0.1, 1800), Step(0.5, 900), Step(1.0, 900))


def sampled(canary: Arm, requests: int, *, stable: Arm | None = None, servers: bool = False) -> Traffic:
    """A step of 10 % for ten minutes, in which the canary meets so many requests."""
    return Traffic(canary, stable or Arm(), rate=10 * requests / ONE[0].seconds, steps=ONE, servers=servers)


def equal(name: str, arm: Arm | None = None, guards: Guards = STRICT, **traffic: Any) -> Case:
    """Both arms are the same, over a whole rollout."""
    arm = arm or Arm()
    return Case(f"equal: {name}", Traffic(arm, arm, patience=4, **traffic), guards, figure="false_rollbacks")


CASES = (
    equal("200 requests/s"),
    equal("25 requests/s", rate=25.0, steps=(Step(0.1, 600), Step(0.5, 600), Step(1.0, 600))),
    equal("2 requests/s", rate=2.0, steps=QUIET, look=10.0),
    equal("3 % errors in both", Arm(errors=0.03)),
    equal("6 % in both for three minutes, from outside", Arm(trouble=0.06)),
    equal("users differ, correlation 0.05", spread=0.05),
    equal("users differ, correlation 0.3", spread=0.3),
    equal("the servers' guards too", guards=EVERY, servers=True),
    Case("errors 1 → 2 %, 12,000 canary requests", sampled(Arm(errors=0.02), 12_000), figure="errors_detected"),
    Case("latency +30 %, 1,500 canary requests", sampled(Arm(slower=1.3), 1_500), figure="latency_detected"),
    Case("every request fails, 12,000 canary requests", sampled(Arm(errors=1.0), 12_000)),
)


@dataclass(frozen=True)
class Effect:
    """Something to be seen, by one guard, in `most` canary requests at most."""

    guard: str
    name: str
    traffic: Traffic
    guards: Guards
    most: int


def _effect(guard: str, name: str, canary: Arm, most: int, guards: Guards, stable: Arm | None = None) -> Effect:
    return Effect(guard, name, sampled(canary, most, stable=stable), guards, most)


def _told(guard: str, percent: int, name: str, canary: Arm, most: int, stable: Arm | None = None) -> Effect:
    """What the arms' servers tell, by that guard alone."""
    guards = Guards.model_validate({"maxErrorRatePercent": 100, "maxLatencyRegressionPercent": 10_000, guard: percent})
    return Effect(f"{guard}: {percent}", name, sampled(canary, most, stable=stable, servers=True), guards, most)


LIMIT = Guards(max_latency_regression_percent=10_000)
REGRESSION = LIMIT.model_copy(update={"max_error_rate_percent": 100, "max_error_regression_percent": 25})
SLOWER = {percent: Guards(max_error_rate_percent=100, max_latency_regression_percent=percent) for percent in (10, 25)}
# Percent of errors (stable, canary) or how much slower; canary requests that are surely enough.
ABOVE = ((1, 3, 16_000), (1, 4, 5_000), (1, 6, 1_500), (1, 10, 600), (1, 50, 300))
MORE = ((1, 1.5, 100_000), (1, 2, 20_000), (1, 3, 6_000), (0.1, 0.2, 200_000), (0.1, 1, 6_000))
LATER = ((10, 20, 9_000), (10, 30, 2_500), (10, 50, 900), (25, 30, 60_000), (25, 50, 2_500), (25, 100, 600))
TOKENS = ((10, 30, 2_500), (10, 50, 900), (25, 50, 2_500), (25, 100, 600))
UNUSABLE = ((2, 4, 10_000), (2, 6, 4_000), (5, 10, 5_000), (5, 20, 1_000))
EFFECTS = (
    *(
        _effect("maxErrorRatePercent: 2", f"{was} % → {now} %", Arm(errors=now / 100), most, LIMIT, Arm(errors=was / 100))
        for was, now, most in ABOVE
    ),
    *(
        _effect("maxErrorRegressionPercent: 25", f"{was} % → {now} %", Arm(errors=now / 100), most, REGRESSION, Arm(errors=was / 100))
        for was, now, most in MORE
    ),
    *(
        _effect(f"maxLatencyRegressionPercent: {limit}", f"+{slower} %", Arm(slower=1 + slower / 100), most, SLOWER[limit])
        for limit, slower, most in LATER
    ),
    *(
        _told(guard, limit, f"+{slower} %", Arm(slower=1 + slower / 100), most)
        for guard in ("maxTimeToFirstTokenRegressionPercent", "maxTimePerOutputTokenRegressionPercent")
        for limit, slower, most in TOKENS
    ),
    *(
        _told("maxUnusableRegressionPercent", 25, f"{was} % → {now} %", Arm(unusable=now / 100), most, Arm(unusable=was / 100))
        for was, now, most in UNUSABLE
    ),
)
