"""What the guards make of counters as routers really count, and the bounds of each verdict."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.decide import guards
from finetune_operator.decide.guards import Finding, subtract
from finetune_operator.traffic import ArmTotals


def test_more_failures_than_answers_between_two_looks_are_a_failing_canary() -> None:
    """A router counts connections that are broken off apart from answers; this once took the operator's cycle down."""
    seen = subtract(ArmTotals(requests=105, errors=20), ArmTotals(requests=100, errors=0))
    assert (seen.requests, seen.errors) == (20, 20)
    assert guards.errors(Guards(), seen, ArmTotals(requests=200)).verdict == "Fail"


# requests of the canary, requests and errors of stable → errors of the canary from which it is worse beyond chance: of all errors
# it then has surely more than its part of all requests
WORSE = [(200, 1000, 30, 22), (50, 100, 5, 18), (1000, 100, 10, 304)]


@pytest.mark.parametrize(("canary", "stable", "known", "first"), WORSE)
def test_worse_than_stable_begins_where_the_sequential_test_says(canary: int, stable: int, known: int, first: int) -> None:
    strict = Guards(max_error_rate_percent=0, min_requests=0)

    def verdict(errors: int) -> str:
        return guards.errors(strict, ArmTotals(canary, errors), ArmTotals(stable, known)).verdict

    assert (verdict(first - 1), verdict(first)) == ("Error", "Fail")


# requests → errors from which 2 % are surely exceeded
ABOVE = [(10, 7), (50, 9), (200, 16), (1000, 42)]


@pytest.mark.parametrize(("requests", "first"), ABOVE)
def test_above_the_limit_begins_where_the_sequential_test_says(requests: int, first: int) -> None:
    asked = Guards(max_error_rate_percent=2, min_requests=0)

    def verdict(errors: int) -> str:
        return guards.errors(asked, ArmTotals(requests, errors), ArmTotals()).verdict

    assert (verdict(first - 1), verdict(first)) == ("Insufficient", "Fail")


# The same where stable is compared, which fails not once, or always: the limit may be less sure then.
COMPARED = [(10, 8, 6), (50, 8, 8), (200, 14, 14), (1000, 39, 39)]


@pytest.mark.parametrize(("requests", "worse", "both"), COMPARED)
def test_above_the_limit_beside_a_stable_arm(requests: int, worse: int, both: int) -> None:
    asked = Guards(max_error_rate_percent=2, min_requests=0)
    good, bad = ArmTotals(9 * requests), ArmTotals(requests, requests)

    def verdict(errors: int, stable: ArmTotals) -> str:
        return guards.errors(asked, ArmTotals(requests, errors), stable).verdict

    assert [verdict(worse - 1, good), verdict(worse, good)] == ["Insufficient", "Fail"]
    assert [verdict(both - 1, bad), verdict(both, bad)] == ["Insufficient", "Error"]


GUARDS = Guards(max_error_rate_percent=5, min_requests=100)
FINDINGS: dict[str, tuple[ArmTotals, ArmTotals, str, str]] = {
    "nothing was seen": (
        ArmTotals(), ArmTotals(), "Insufficient",
        "errors: canary none of 0 requests, stable none of 0, limit 5 %, at least 100 canary requests are wanted",
    ),
    "the limit is reached exactly": (
        ArmTotals(100, 5), ArmTotals(900, 9), "Pass", "errors: canary 5.0 % of 100 requests, stable 1.0 % of 900, limit 5 %",
    ),
    "above it, perhaps by chance": (
        ArmTotals(100, 6), ArmTotals(900, 9), "Insufficient",
        "errors: canary 6.0 % of 100 requests, stable 1.0 % of 900, limit 5 %: above the limit, not yet beyond chance",
    ),
    "above it by two of ten thousand": (
        ArmTotals(10_000, 502),
        ArmTotals(90_000, 900),
        "Insufficient",
        "errors: canary 5.0 % of 10000 requests, stable 1.0 % of 90000, limit 5 %: above the limit, not yet beyond chance",
    ),
    "surely above, and worse": (
        ArmTotals(100, 50), ArmTotals(900, 9), "Fail", "errors: canary 50.0 % of 100 requests, stable 1.0 % of 900, limit 5 %",
    ),
    "surely above, and ten requests of stable fail as well": (
        ArmTotals(100, 50), ArmTotals(10, 10), "Error",
        "errors: canary 50.0 % of 100 requests, stable 100.0 % of 10, limit 5 %: both arms fail",
    ),
    "surely above, and nine requests of stable are no comparison": (
        ArmTotals(100, 50), ArmTotals(9, 9), "Fail", "errors: canary 50.0 % of 100 requests, stable 100.0 % of 9, limit 5 %",
    ),
    "surely above, and ten requests of stable are one": (
        ArmTotals(100, 50), ArmTotals(10, 2), "Insufficient",
        "errors: canary 50.0 % of 100 requests, stable 20.0 % of 10, limit 5 %: above the limit, not yet surely worse than stable",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINDINGS)
def test_what_is_found_of_errors(case: str) -> None:
    canary, stable, verdict, evidence = FINDINGS[case]
    assert guards.errors(GUARDS, canary, stable) == Finding("errors", verdict, evidence)  # type: ignore[arg-type]


def even(answers: int, factor: float = 1.0) -> ArmTotals:
    """Answers spread evenly over 0 to 1000 · factor milliseconds: the q-quantile is 1000 · factor · q."""
    buckets = tuple((10.0 * factor * i, answers * i / 100) for i in range(1, 101))
    return ArmTotals(answers, 0, (*buckets, (math.inf, float(answers))), 1)


def test_what_is_found_of_latency() -> None:
    timed = "p50 canary 600 ms, stable 500 ms, p95 canary 1140 ms, stable 950 ms, limit +25 % on both"
    assert guards.latency(GUARDS, even(100, 1.2), even(100)) == Finding("latency", "Pass", f"latency: {timed}")
    few = "latency: canary 100, stable 9 answers timed, 10 of each are compared"
    assert guards.latency(GUARDS, even(100), even(9)) == Finding("latency", "Insufficient", few)
    assert guards.latency(GUARDS, even(100), even(10)).verdict == "Pass"
    assert guards.latency(GUARDS, even(99), even(99)) == Finding("latency", "Insufficient", "latency: 99 of 100 canary requests seen")


# answers of the canary, of stable → the factor from which the canary is slower beyond chance: of n answers so many must be slower than
# something for the median to be surely above it (the slowest of ten, for ten are too few to say)
SLOWER = [
    (10_000, 10_000, 1.25 * 0.5238 / (1 - 0.5238)),
    (10_000, 10, 1.25 * 1.0 / (1 - 0.5238)),
    (100, 10_000, 1.25 * 0.5238 / (1 - 0.71)),
]


@pytest.mark.parametrize(("canary", "stable", "factor"), SLOWER)
def test_slower_than_stable_begins_where_both_bounds_part(canary: int, stable: int, factor: float) -> None:
    verdicts = [guards.latency(GUARDS, even(canary, factor * around), even(stable)).verdict for around in (0.999, 1.001)]
    assert verdicts == ["Pass", "Fail"]


def test_a_slow_canary_is_told_from_ten_answers_of_stable() -> None:
    """The upper bound of a quantile of so few is their slowest, not what lies beyond the last bucket."""
    assert guards.latency(GUARDS, even(1000, 50), even(10)).verdict == "Fail"


def test_the_tail_must_be_slower_as_well() -> None:
    """The median is twice stable's; the 95th percentile is as far above stable's as is allowed, or a little more."""

    def slow(tail: float) -> ArmTotals:
        return ArmTotals(1000, 0, ((900.0, 0.0), (1100.0, 900.0), (tail, 1000.0), (math.inf, 1000.0)), 1)

    limit = 1.25 * 950
    tails = [2 * limit - 1100 + more for more in (-1, 1)]  # the 95th percentile lies halfway from 1100 to the tail's bound
    assert [guards.latency(GUARDS, slow(tail), even(1000)).verdict for tail in tails] == ["Pass", "Fail"]


STRICT = GUARDS.model_copy(update={"max_latency_regression_percent": 0})


def test_a_tail_that_is_as_long_is_not_slower() -> None:
    """The median is far above stable's, the 95th percentile is 550 ms in both."""
    stable = ArmTotals(1000, 0, ((100.0, 900.0), (1000.0, 1000.0), (math.inf, 1000.0)), 1)
    canary = ArmTotals(1000, 0, ((100.0, 0.0), (505.0, 900.0), (595.0, 1000.0), (math.inf, 1000.0)), 1)
    assert guards.latency(STRICT, canary, stable).verdict == "Pass"


def test_of_too_few_answers_nothing_is_surely_slower() -> None:
    instant = ArmTotals(100, 0, ((0.0, 100.0), (math.inf, 100.0)), 1)
    few = ArmTotals(100, 0, ((100.0, 10.0), (math.inf, 10.0)), 1)
    assert guards.latency(STRICT, few, instant).verdict == "Pass"


REGRESSIONS: dict[str, tuple[ArmTotals, ArmTotals, str, str]] = {
    "nothing was seen": (ArmTotals(), ArmTotals(), "Insufficient", ", at least 100 of the canary are wanted"),
    "too few of the canary": (ArmTotals(99, 99), ArmTotals(9000, 9), "Insufficient", ", at least 100 of the canary are wanted"),
    "too few of stable": (ArmTotals(100, 99), ArmTotals(9, 0), "Insufficient", ": 10 of each are compared"),
    "as many in both": (ArmTotals(1000, 10), ArmTotals(9000, 90), "Pass", ""),
    "at the limit": (ArmTotals(1000, 15), ArmTotals(9000, 90), "Pass", ""),
    "a thousandth above it": (
        ArmTotals(100_000, 1501),
        ArmTotals(900_000, 9000),
        "Insufficient",
        ": above the limit, not yet beyond chance",
    ),
    "ten of stable are enough": (ArmTotals(100), ArmTotals(10), "Pass", ""),
    "a little above it": (ArmTotals(1000, 16), ArmTotals(9000, 90), "Insufficient", ": above the limit, not yet beyond chance"),
    "twice as many of a thousand": (ArmTotals(1000, 20), ArmTotals(9000, 90), "Insufficient", ": above the limit, not yet beyond chance"),
    "twice as many of twenty thousand": (ArmTotals(20_000, 400), ArmTotals(180_000, 1800), "Fail", ""),
    "none in stable, two in the canary": (ArmTotals(1000, 2), ArmTotals(9000), "Insufficient", ": above the limit, not yet beyond chance"),
    "none in stable, twenty in the canary": (ArmTotals(1000, 20), ArmTotals(9000), "Fail", ""),
}


@pytest.mark.parametrize("case", REGRESSIONS)
def test_what_is_found_of_an_error_regression(case: str) -> None:
    canary, stable, verdict, words = REGRESSIONS[case]
    found = guards.error_regression(50, 100, canary, stable)
    assert (found.guard, found.verdict) == ("error regression", verdict)
    assert found.evidence.endswith(f"limit +50 %{words}")


def test_an_error_regression_is_looked_at_only_when_it_is_asked_for() -> None:
    assert [f.guard for f in guards.judge(GUARDS, even(100), even(900))] == ["errors", "latency"]
    asked = GUARDS.model_copy(update={"max_error_regression_percent": 0})
    found = guards.judge(asked, ArmTotals(1000, 30), ArmTotals(9000, 90))
    assert [(f.guard, f.verdict) for f in (found[0], found[-1])] == [("errors", "Pass"), ("error regression", "Fail")]
    hasty = guards.error_regression(25, 0, ArmTotals(), ArmTotals())
    text = "error regression: canary none of 0 requests, stable none of 0, limit +25 %: 10 of each are compared"
    assert hasty == Finding("error regression", "Pass", text)


def server(answers: int, factor: float = 1.0, unusable: int = 0) -> ArmTotals:
    """An arm of which the servers tell their times as well, the same as the routers'."""
    told = even(answers, factor)
    return replace(told, first_token=told.latency, output_token=told.latency, answers=answers, unusable=unusable)


THEIRS = {"time to first token": guards.first_token, "time per output token": guards.output_token, "unusable answers": guards.unusable}


@pytest.mark.parametrize("name", THEIRS)
def test_what_no_server_tells_is_an_error_and_holds(name: str) -> None:
    guard = THEIRS[name]
    assert guard(25, 100, even(1000), server(1000)) == Finding(name, "Error", f"{name}: no server of the canary tells it")
    assert guard(25, 100, server(1000), even(1000)) == Finding(name, "Error", f"{name}: no server of stable tells it")
    assert guard(25, 100, server(1000), server(1000)).verdict == "Pass"
    assert guard(25, 1001, server(1000), server(1000)).verdict == "Insufficient"


@pytest.mark.parametrize("name", ["time to first token", "time per output token"])
def test_slower_tokens_fail(name: str) -> None:
    guard = THEIRS[name]
    assert [guard(25, 100, server(1000, factor), server(1000)).verdict for factor in (1.2, 1.8)] == ["Pass", "Fail"]
    evidence = guard(25, 100, server(1000, 1.8), server(1000)).evidence
    assert evidence == f"{name}: p50 canary 900 ms, stable 500 ms, p95 canary 1710 ms, stable 950 ms, limit +25 % on both"


def test_more_empty_or_cut_off_answers_fail() -> None:
    found = [guards.unusable(25, 100, server(2000, unusable=bad), server(18_000, unusable=900)) for bad in (100, 130, 400)]
    assert [f.verdict for f in found] == ["Pass", "Insufficient", "Fail"]
    assert found[-1].evidence == "unusable answers: canary 20.0 % of 2000 answers, stable 5.0 % of 18000, limit +25 %"


# the field that asks for it → the guard's name; whether the arms' servers are asked
ASKED = {
    "max_error_regression_percent": ("error regression", False),
    "max_time_to_first_token_regression_percent": ("time to first token", True),
    "max_time_per_output_token_regression_percent": ("time per output token", True),
    "max_unusable_regression_percent": ("unusable answers", True),
}


@pytest.mark.parametrize("field", ASKED)
def test_a_guard_with_a_limit_is_asked(field: str) -> None:
    name, of_servers = ASKED[field]
    asked = GUARDS.model_copy(update={field: 0})
    assert [f.guard for f in guards.judge(asked, server(1000), server(9000))] == ["errors", "latency", name]
    assert (guards.asks_servers(asked), guards.asks_servers(GUARDS)) == (of_servers, False)


def test_sums_and_differences_of_what_servers_tell() -> None:
    one, two = server(100, unusable=3), server(300, unusable=5)
    assert guards.add(one, two) == replace(server(400, unusable=8), healthy=2)
    assert subtract(two, one) == server(200, unusable=2)
    assert subtract(one, two) == one, "a server that began anew within its container"
    assert subtract(server(300, unusable=2), one) == server(300, unusable=2)
    more = replace(server(1000), unusable=1001)
    assert guards.unusable(25, 100, more, server(9000)).evidence.startswith("unusable answers: canary 100.0 % of 1000 answers")


def test_quantiles_lie_on_the_line_between_bounds() -> None:
    b = ((100.0, 10.0), (200.0, 10.0), (300.0, 30.0), (math.inf, 40.0))
    assert [guards.quantile(b, q) for q in (0.0, 0.125, 0.25, 0.5, 0.75, 0.9)] == [0.0, 50.0, 100.0, 250.0, 300.0, 300.0]
    assert guards.quantile((), 0.5) == 0.0


def test_sums_and_differences_of_counters() -> None:
    old = ArmTotals(10, 1, ((100.0, 4.0), (math.inf, 10.0)), 2)
    new = ArmTotals(30, 3, ((100.0, 4.0), (200.0, 6.0), (math.inf, 30.0)), 1)
    assert subtract(new, old) == ArmTotals(20, 2, ((100.0, 0.0), (200.0, 2.0), (math.inf, 20.0)), 1), "of 6 up to 200, 4 are old"
    assert guards.add(new, old) == ArmTotals(40, 4, ((100.0, 8.0), (200.0, 6.0), (math.inf, 40.0)), 3)
    assert subtract(old, old) == ArmTotals(0, 0, ((100.0, 0.0), (math.inf, 0.0)), 2)
    back = ArmTotals(30, 0, ((100.0, 2.0),), 1)
    assert subtract(back, old) == back, "errors that went back: another router"
    fewer = ArmTotals(31, 3, ((100.0, 3.0), (math.inf, 31.0)), 1)
    assert subtract(fewer, new).latency[0] == (100.0, 0.0), "never less than none"
    assert guards.overall([]) == "Pass"
