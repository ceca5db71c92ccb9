"""The bench of the guards: what it simulates, how the fixed rules count, and that its goals are met in a small run of it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.decide.guards import quantile

from tests.bench.guards import __main__ as bench
from tests.bench.guards.cases import CASES, EFFECTS, EVERY, STRICT, sampled
from tests.bench.guards.rules import Argo, Flagger, Ours, Outcome, Rule, Threshold
from tests.bench.guards.traffic import MEDIAN_MS, Arm, Series, Span, Step, Traffic, spans

ONE = (Step(0.1, 600),)


def one(traffic: Traffic, seed: int = 1) -> list[Span]:
    return list(spans(traffic, np.random.default_rng(seed)))


def test_traffic_is_what_it_is_called() -> None:
    first, second, third = one(Traffic(Arm(errors=0.02, slower=1.5), rate=1000.0))
    at_end = first.canary.totals(first.looks - 1)
    assert at_end.requests == pytest.approx(30_000, rel=0.03)
    assert at_end.errors / at_end.requests == pytest.approx(0.02, rel=0.15)
    assert quantile(at_end.latency, 0.5) == pytest.approx(1.5 * MEDIAN_MS, rel=0.03)
    assert at_end.latency[-1] == (math.inf, at_end.requests)
    known = first.stable.totals(first.looks - 1)
    assert known.requests == pytest.approx(270_000, rel=0.01)
    assert quantile(known.latency, 0.5) == pytest.approx(MEDIAN_MS, rel=0.03)
    assert second.canary.requests[-1] == pytest.approx(150_000, rel=0.02)
    assert int(third.stable.requests[-1]) == 0


def test_trouble_from_outside_meets_both_arms_for_its_time() -> None:
    arm = Arm(errors=0.0, trouble=0.1)
    first, second, _ = one(Traffic(arm, arm))
    for series in (first.canary, first.stable):
        assert [int(series.errors[29]), int(series.errors[-1] - series.errors[119])] == [0, 0]
        assert series.errors[119] / (series.requests[119] - series.requests[29]) == pytest.approx(0.1, rel=0.2)
    assert int(second.canary.errors[-1]) == 0


def test_users_that_differ_make_arms_differ() -> None:
    def rates(spread: float) -> float:
        found = [one(Traffic(spread=spread, steps=ONE[:1], rate=200.0), seed)[0].canary for seed in range(40)]
        return float(np.std([series.errors[-1] / series.requests[-1] for series in found]))

    alike = math.sqrt(0.01 * 0.99 / 12_000)
    assert rates(0.0) == pytest.approx(alike, rel=0.4)
    assert rates(0.3) > 1.7 * alike


def test_a_canary_is_the_same_whoever_simulates_it() -> None:
    traffic, rules = Traffic(rate=20.0), [Ours(STRICT)]
    assert bench.outcomes(traffic, rules, [1, 2], range(4))[2:] == bench.outcomes(traffic, rules, [1, 2], range(2, 4))


def minutes(*errors: int | None) -> list[Span]:
    """A step of as many minutes, each with a hundred requests of which so many fail; None: nobody calls."""
    failed = np.array([e or 0 for e in errors]).cumsum()
    asked = np.array([0 if e is None else 100 for e in errors]).cumsum()
    buckets = np.zeros((len(errors), 78), dtype=np.int64)
    buckets[:, 20:] = asked[:, None]
    series = Series(asked, failed, buckets)
    return [Span(Step(0.1, 60.0 * len(errors)), 60.0, len(errors), series, series)]


HALF = Threshold(0.9, math.inf)
FLAGGER, ARGO = Flagger(HALF, "Flagger"), Argo(HALF, "Argo")
CHECKS: dict[str, tuple[Rule, list[int | None], Outcome]] = {
    "Flagger bears four failed checks": (FLAGGER, [11, 0, 11, 0, 11, 0, 11, 10], Outcome("promoted", 800, 480.0)),
    "and rolls back at the fifth, wherever they are": (FLAGGER, [11, 0, 11, 11, 0, 11, 11, 0], Outcome("rolled back", 700, 420.0)),
    "a minute without data is a failed check": (FLAGGER, [None, 0, None, None, None, None], Outcome("rolled back", 100, 360.0)),
    "Argo bears three failed measurements": (ARGO, [11, 11, 0, 11], Outcome("promoted", 400, 240.0)),
    "and rolls back at the fourth": (ARGO, [11, 11, 11, 0, 11], Outcome("rolled back", 500, 300.0)),
    "it bears four minutes without data in a row": (ARGO, [None, None, None, None, 0, None], Outcome("promoted", 100, 360.0)),
    "and rolls back at the fifth": (ARGO, [0, None, None, None, None, None], Outcome("rolled back", 100, 360.0)),
    "the 99th percentile is a limit too": (
        Argo(Threshold(0.0, 100.0), "Argo"), [0, 0, 0, 0], Outcome("rolled back", 400, 240.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKS)
def test_fixed_rules_count_as_documented(case: str) -> None:
    rule, seen, outcome = CHECKS[case]
    assert rule.judge(minutes(*seen)) == outcome


def test_the_guards_go_on_at_the_first_pass_after_their_time() -> None:
    few = Ours(Guards(min_requests=250))
    span = minutes(0, 0, 0, 0)[0]
    short = Span(span.step, span.look, 2, span.canary, span.stable)
    assert few.judge([short]) == Outcome("promoted", 300, 180.0)
    assert Ours(Guards(min_requests=401)).judge([short]) == Outcome("waits", 400, 240.0, "errors")
    last = Span(Step(1.0, 120.0), 60.0, 2, span.canary, span.stable)
    assert Ours(Guards(min_requests=401)).judge([last]) == Outcome("promoted", 200, 120.0), "a quiet service is promoted"


def test_requests_that_were_needed_are_those_of_half_and_of_nine_in_ten() -> None:
    found = [Outcome("rolled back", n, 0.0) for n in range(1, 9)]
    row = bench.effect_row(EFFECTS[0], [*found, Outcome("waits", 50, 0.0), Outcome("promoted", 50, 0.0)])
    assert row.endswith(f"| 5 | > {EFFECTS[0].most:,} |")


def test_the_last_line_is_the_worst_of_each_kind() -> None:
    cells = {case.name: {case.rules[0].name: 90.0 + i} for i, case in enumerate(CASES)}
    equal = [i for i, case in enumerate(CASES) if case.figure == "false_rollbacks"]
    told = bench.figures(CASES, cases := cells)
    assert told["false_rollbacks_percent"] == 90.0 + max(equal)
    assert {told["errors_detected_percent"], told["latency_detected_percent"]} <= {row["guards"] for row in cases.values()}


def test_the_goals_are_met_in_a_small_run() -> None:
    """Twelve to forty canaries a case; 2,000 by `make bench-guards`."""
    for case in CASES:
        count = 12 if case.figure == "false_rollbacks" else 40
        ours = [row[0].end for row in bench.outcomes(case.traffic, case.rules[:1], [5], range(count))]
        back = ours.count("rolled back") / count
        assert back == 0 if case.figure == "false_rollbacks" else back >= 0.85, (case.name, back)


def test_a_broken_canary_is_out_within_seconds() -> None:
    for rate in (5.0, 200.0):
        [[found]] = bench.outcomes(Traffic(Arm(errors=1.0), rate=rate, steps=ONE), [Ours(Guards())], [1], range(1))
        assert (found.end, found.guard) == ("rolled back", "errors")
        assert found.requests < 70
        assert found.seconds <= 2 + 30 / (0.1 * rate)


@pytest.mark.parametrize(
    ("canary", "guard"),
    [(Arm(unusable=0.2), "unusable answers"), (Arm(slower=2.0), "time to first token"), (Arm(), "")],
)
def test_what_the_servers_tell_is_judged_too(canary: Arm, guard: str) -> None:
    every = EVERY.model_copy(update={"max_latency_regression_percent": 10_000})
    [[found]] = bench.outcomes(sampled(canary, 1_500, servers=True), [Ours(every)], [1], range(1))
    assert (found.guard if found.end == "rolled back" else "") == guard


def test_what_the_guards_are_blind_for_is_not_seen() -> None:
    """A sample too small for the effect: the test above could not fail if these were rolled back as well."""
    few = sampled(Arm(errors=0.02), 600)
    assert not any(row[0].end == "rolled back" for row in bench.outcomes(few, [Ours(STRICT)], [1], range(20)))


def test_the_command_ends_with_its_line_of_json() -> None:
    command = [sys.executable, "-m", "tests.bench.guards", "--canaries", "2", "--workers", "1", "--seed", "3"]
    done = subprocess.run(command, env=dict(os.environ), check=True, capture_output=True, text=True)
    assert set(json.loads(done.stdout.splitlines()[-1])) == {
        "false_rollbacks_percent", "errors_detected_percent", "latency_detected_percent",
    }  # fmt: skip
    assert "canaries" in done.stderr
