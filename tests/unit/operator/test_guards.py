"""The guards' verdicts as tables, and how often they err."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.build.router import LATENCY_BOUNDS
from finetune_operator.decide import guards
from finetune_operator.decide.guards import Finding, judge, overall, quantile, subtract
from finetune_operator.traffic import ArmTotals, Buckets

GUARDS = Guards(max_error_rate_percent=2, max_latency_regression_percent=25, min_requests=200)


def buckets(*milliseconds: float) -> Buckets:
    """The histogram that a router makes of these latencies."""
    bounds = [*LATENCY_BOUNDS, math.inf]
    return tuple((bound, float(sum(1 for m in milliseconds if m <= bound))) for bound in bounds)


def made(requests: int, errors: int = 0, latency: float = 100.0) -> ArmTotals:
    """An arm whose answers all took about the same."""
    around = [latency * (0.8 + 0.4 * i / max(1, requests - 1)) for i in range(requests)]
    return ArmTotals(requests, errors, buckets(*around), 2)


NONE = ArmTotals()

ERRORS: dict[str, tuple[ArmTotals, ArmTotals, str]] = {
    "no data is no verdict": (NONE, NONE, "Insufficient"),
    "no data of the canary is no verdict, however good stable is": (NONE, made(5000), "Insufficient"),
    "enough requests without errors pass": (made(200), made(1800), "Pass"),
    "too few requests wait for more": (made(199), made(1800), "Insufficient"),
    "errors up to the limit pass": (made(200, 4), made(1800), "Pass"),
    "above the limit by chance waits for more": (made(200, 5), made(1800), "Insufficient"),
    "above the limit beyond chance fails": (made(200, 16), made(1800, 5), "Fail"),
    "an arm that only fails is seen after ten requests": (made(10, 10), made(90), "Fail"),
    "nine requests say nothing yet": (made(9, 9), made(90), "Insufficient"),
    "two of twenty may be chance": (made(20, 2), made(180), "Insufficient"),
    "an arm that only fails is seen when stable has no traffic (all users are on the new arm)": (made(10, 10), NONE, "Fail"),
    "a few late answers of stable are no comparison": (made(100, 20), made(3, 3), "Fail"),
    "both arms bad alike is nobody's fault: held": (made(200, 100), made(1800, 900), "Error"),
    "both arms fail wholly": (made(50, 50), made(450, 450), "Error"),
    "both arms bad, the canary much worse": (made(200, 150), made(1800, 400), "Fail"),
    "a canary better than a bad stable, yet above the limit": (made(200, 40), made(1800, 900), "Error"),
    "surely above the limit, not surely worse than stable": (made(100, 10), made(60, 3), "Insufficient"),
    "a bad stable beside a good canary is no reason to go back": (made(200, 1), made(1800, 900), "Pass"),
}

LATENCY: dict[str, tuple[ArmTotals, ArmTotals, str]] = {
    "no data is no verdict": (NONE, NONE, "Insufficient"),
    "too few requests wait for more": (made(199), made(1800), "Insufficient"),
    "as fast as stable passes": (made(200), made(1800), "Pass"),
    "a little slower passes": (made(200, latency=115), made(1800), "Pass"),
    "twice as slow fails": (made(200, latency=200), made(1800), "Fail"),
    "faster passes": (made(200, latency=20), made(1800), "Pass"),
    "stable too quiet to compare with: wait": (made(200), made(9), "Insufficient"),
    "requests without one finished answer: wait": (ArmTotals(200, 0, buckets()), made(1800), "Insufficient"),
    "a slow tail alone passes: the median is as it was": (
        ArmTotals(200, 0, buckets(*[100.0] * 180, *[900.0] * 20)), made(1800), "Pass",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what: str) -> None:
    canary, stable, verdict = ERRORS[what]
    assert guards.errors(GUARDS, canary, stable).verdict == verdict


@pytest.mark.parametrize("what", LATENCY)
def test_latency(what: str) -> None:
    canary, stable, verdict = LATENCY[what]
    assert guards.latency(GUARDS, canary, stable).verdict == verdict


def test_who_asks_for_no_requests_does_not_wait_but_still_sees_a_broken_arm() -> None:
    hasty = GUARDS.model_copy(update={"min_requests": 0})
    assert overall(judge(hasty, NONE, NONE)) == "Pass"
    assert overall(judge(hasty, made(10, 10), made(90))) == "Fail"


def test_a_limit_of_zero_fails_on_the_first_errors_beyond_chance() -> None:
    strict = GUARDS.model_copy(update={"max_error_rate_percent": 0})
    assert guards.errors(strict, made(200), made(1800)).verdict == "Pass"
    assert guards.errors(strict, made(200, 1), made(1800, 9)).verdict == "Error", "both arms fail"
    assert guards.errors(strict, made(200, 8), made(1800)).verdict == "Fail"


def test_evidence_says_both_shares_the_limit_and_what_is_lacking() -> None:
    found = judge(GUARDS, made(20), made(1800, 18))
    assert found == [
        Finding(
            "errors",
            "Insufficient",
            "errors: canary 0.0 % of 20 requests, stable 1.0 % of 1800, limit 2 %, at least 200 canary requests are wanted",
        ),
        Finding("latency", "Insufficient", "latency: 20 of 200 canary requests seen"),
    ]


def test_the_worst_finding_decides() -> None:
    def found(*verdicts: guards.Verdict) -> str:
        return overall([Finding("x", v, "") for v in verdicts])

    assert found("Pass", "Insufficient", "Error", "Fail") == "Fail"
    assert found("Pass", "Insufficient", "Error") == "Error"
    assert found("Pass", "Insufficient") == "Insufficient"
    assert found("Pass", "Pass") == "Pass"


# (canary's error share, stable's, stable's traffic per canary request) → how often a rollout of 800 canary requests is taken back
RATES: dict[str, tuple[float, float, int, float, float]] = {
    "a canary as good as stable": (0.01, 0.01, 9, 0.0, 0.02),
    "a canary at half the limit with nothing to compare": (0.01, 0.0, 0, 0.0, 0.03),
    "a canary worse than stable but below the limit": (0.015, 0.005, 9, 0.0, 0.05),
    "both arms at four times the limit": (0.08, 0.08, 9, 0.0, 0.05),
    "a canary at three times the limit": (0.06, 0.005, 9, 0.95, 1.0),
    "a canary of which one answer in five fails": (0.2, 0.01, 9, 1.0, 1.0),
}


@pytest.mark.parametrize("what", RATES)
def test_looking_again_and_again_hardly_ever_errs(what: str) -> None:
    canary, stable, ratio, least, most = RATES[what]
    rolls = random.Random(7)
    rollouts = 200
    taken_back = sum(_rolled_back(rolls, canary, stable, ratio) for _ in range(rollouts))
    assert least <= taken_back / rollouts <= most, f"{taken_back} of {rollouts}"


def _rolled_back(rolls: random.Random, canary: float, stable: float, ratio: int) -> bool:
    n = errors = known = known_errors = 0
    while n < 800:
        n, errors = n + 5, errors + _binomial(rolls, 5, canary)
        known, known_errors = known + 5 * ratio, known_errors + _binomial(rolls, 5 * ratio, stable)
        if guards.errors(GUARDS, ArmTotals(n, errors), ArmTotals(known, known_errors)).verdict == "Fail":
            return True
    return False


def _binomial(rolls: random.Random, n: int, p: float) -> int:
    return sum(rolls.random() < p for _ in range(n))


@pytest.mark.parametrize("q", [0.1, 0.5, 0.95])
def test_a_quantile_is_told_within_a_bucket(q: float) -> None:
    rolls = random.Random(3)
    values = sorted(rolls.lognormvariate(math.log(400), 0.6) for _ in range(2000))
    true = values[int(q * len(values))]
    assert quantile(buckets(*values), q) == pytest.approx(true, rel=0.05)


def test_quantiles_at_the_edges() -> None:
    assert quantile((), 0.5) == 0.0
    assert quantile(buckets(5.0), 0.5) <= 10.0
    assert quantile(buckets(10_000_000.0), 0.5) == LATENCY_BOUNDS[-1], "beyond the last bound it is at least that"


def test_latencies_just_beside_a_bound_are_not_told_apart_by_a_whole_limit() -> None:
    for low, high in pairwise(LATENCY_BOUNDS):
        assert high / low < 1.21
    assert (LATENCY_BOUNDS[0], LATENCY_BOUNDS[-1]) == (10, 560_000), "from the fastest answer to the longest a request may take"


@pytest.mark.parametrize(("limit", "fails"), [(25, False), (10, True)])
def test_what_a_bucket_hides_is_below_the_default_limit_and_above_a_strict_one(limit: int, fails: bool) -> None:
    """Answers that all take the same time, in one arm a hair below a bound and in the other a hair above it: no figure lies between."""
    asked = GUARDS.model_copy(update={"max_latency_regression_percent": limit})
    found = set()
    for bound in LATENCY_BOUNDS[1:-1]:
        stable, canary = (
            ArmTotals(9000, 0, tuple((b, 9000.0 * (b >= m)) for b in (*LATENCY_BOUNDS, math.inf))) for m in (bound, 1.01 * bound)
        )
        found.add(guards.latency(asked, canary, stable).verdict)
    assert ("Fail" in found) is fails


def test_what_was_counted_in_between() -> None:
    assert subtract(made(30, 3), made(10, 1)).requests == 20
    assert subtract(made(30, 3), made(10, 1)).errors == 2
    assert subtract(made(30), made(10)).latency[-1] == (math.inf, 20.0)
    assert subtract(made(5, 1), made(10, 1)) == made(5, 1), "counters that went back are those of a restarted router"
    assert guards.add(made(5, 1), made(10, 2)).errors == 3
    assert guards.add(made(5), made(10)).latency[-1] == (math.inf, 15.0)
