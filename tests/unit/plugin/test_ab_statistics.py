"""The statistics of an A/B test: known values, and how often they are right over thousands of tests that were never run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kubectl_finetune.ab import statistics as s

Users = list[tuple[float, float]]
Draw = Callable[[np.random.Generator], Users]
TESTS = 2000


def test_a_mean_is_a_mean_and_its_variance_the_samples_over_n() -> None:
    values = [3.0, 5.0, 10.0]
    arm = s.measured([(v, 1) for v in values])
    assert arm is not None
    assert (arm.mean, arm.users, arm.observations, arm.total) == (6.0, 3, 3, 18)
    assert arm.variance == pytest.approx(np.var(values, ddof=1) / 3)


def test_a_ratio_is_of_the_sums_and_varies_as_whole_users_that_are_drawn_again_do() -> None:
    random = np.random.default_rng(5)
    n = random.poisson(4, 400) + 1
    x = n * random.lognormal(0, 0.5, 400)
    arm = s.measured(zip(x, n, strict=True))
    assert arm is not None
    assert arm.mean == pytest.approx(x.sum() / n.sum())
    drawn = random.integers(0, 400, (20_000, 400))
    assert math.sqrt(arm.variance) == pytest.approx((x[drawn].sum(1) / n[drawn].sum(1)).std(), rel=0.02)


def test_who_has_no_observation_does_not_count() -> None:
    assert s.measured([(1, 1), (0, 0), (3, 1)]) == s.measured([(1, 1), (3, 1)])
    assert s.measured([(0, 0)]) is None


def test_an_effect_is_told_with_its_interval_its_chance_and_its_share_of_stable() -> None:
    found = s.compared(s.Arm(10.0, 0.09, 100, 100, 1000), s.Arm(11.0, 0.16, 100, 100, 1100))
    assert found is not None
    assert found.difference == 1.0
    assert (found.low, found.high) == pytest.approx((1 - 1.959964 * 0.5, 1 + 1.959964 * 0.5))
    assert found.p == pytest.approx(0.04550026)  # two standard errors
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * 0.5)
    assert found.lift == pytest.approx(0.1)
    assert found.lift_low is not None
    assert found.lift_high is not None
    assert math.sqrt((1 + found.lift_low) * (1 + found.lift_high)) == pytest.approx(1.1)


def test_of_what_does_not_vary_nothing_is_told_and_of_what_has_no_size_no_share() -> None:
    same = s.Arm(1.0, 0.0, 50, 50, 50)
    assert s.compared(same, same) is None
    around_zero = s.compared(s.Arm(-1.0, 0.1, 50, 50, -50), s.Arm(1.0, 0.1, 50, 50, 50))
    assert around_zero is not None
    assert around_zero.lift is None


# users on the canary, on stable, percent → p of a chi-square with one degree of freedom
SPLITS = {
    (5000, 5000, 50): 1.0,
    (4900, 5100, 50): 0.04550026,  # 4.0
    (1000, 9000, 10): 1.0,
    (1100, 8900, 10): 0.0008581,  # 11.111
    (0, 0, 50): 1.0,
    (0, 20, 50): 7.744e-06,  # 20.0
}


@pytest.mark.parametrize("case", SPLITS)
def test_the_splits_chance(case: tuple[int, int, float]) -> None:
    assert s.mismatch(*case) == pytest.approx(SPLITS[case], rel=1e-3)


def test_two_shares_that_are_one() -> None:
    assert s.unlike(30, 100, 45, 100) == pytest.approx(0.02845974)  # 4.8
    assert s.unlike(0, 100, 0, 50) == s.unlike(100, 100, 50, 50) == s.unlike(0, 0, 3, 5) == 1.0


def test_users_needed_are_those_that_show_it() -> None:
    share, difference = 0.6, 0.02
    users = s.users_needed(math.sqrt(share * (1 - share)), difference)
    assert users == 18838
    arm = s.Arm(share, share * (1 - share) / (users / 2), users // 2, users // 2, 1)
    found = s.compared(arm, arm)
    assert found is not None
    assert found.detectable == pytest.approx(difference, rel=1e-3)
    assert s.users_needed(1, 0.1, 10) == pytest.approx(s.users_needed(1, 0.1) / (4 * 0.1 * 0.9), rel=1e-3), (
        "a tenth needs nearly three times as many"
    )


def test_the_page_says_how_many_users_it_takes() -> None:
    text = (Path(__file__).parents[3] / "docs" / "ab.md").read_text()
    rows = re.findall(r"^\| ([0-9.]+) → ([0-9.]+) % \| ([0-9,]+) \| ([0-9,]+) \| ([0-9,]+) \|$", text, re.M)
    assert len(rows) == 7
    for stable, canary, *told in rows:
        share, difference = float(stable) / 100, (float(canary) - float(stable)) / 100
        needed = [s.users_needed(math.sqrt(share * (1 - share)), difference, percent) for percent in (50, 20, 10)]
        assert [int(number.replace(",", "")) for number in told] == pytest.approx(needed, abs=1)


ARM = s.Arm(0.5, 0.01, 100, 100, 50)
# stable, canary, is it a share → what is said
FEW: dict[str, tuple[s.Arm | None, s.Arm | None, bool, str]] = {
    "enough": (ARM, ARM, True, ""),
    "nobody": (None, ARM, False, "0 users of stable"),
    "few users": (ARM, s.Arm(0.5, 0.01, 29, 100, 50), False, "29 users of canary"),
    "few hits": (s.Arm(0.04, 0.01, 100, 100, 4), ARM, True, "4 of 100 in stable"),
    "few misses": (ARM, s.Arm(0.96, 0.01, 100, 100, 96), True, "96 of 100 in canary"),
    "small numbers": (s.Arm(0.04, 0.01, 100, 100, 4), ARM, False, ""),
}


@pytest.mark.parametrize("case", FEW)
def test_too_few(case: str) -> None:
    stable, canary, share, words = FEW[case]
    said = s.too_few(stable, canary, share=share)
    assert words in said
    assert bool(words) == bool(said)


# ---- how often they are right


def ones(share: float, users: int) -> Draw:
    return lambda r: [(float(x), 1.0) for x in r.random(users) < share]


def skewed(mean: float, users: int) -> Draw:
    return lambda r: [(float(x), 1.0) for x in r.lognormal(math.log(mean), 0.8, users)]


def requests(share: float, users: int) -> Draw:
    """Each user has a share of errors of its own, and a number of requests of its own, mostly few."""

    def draw(r: np.random.Generator) -> Users:
        n = 1 + r.geometric(0.25, users)
        return list(zip(map(float, r.binomial(n, r.beta(2 * share, 2 * (1 - share), users))), map(float, n), strict=True))

    return draw


# stable, canary, the true difference
WORLDS: dict[str, tuple[Draw, Draw, float]] = {
    "a share, equal": (ones(0.6, 200), ones(0.6, 200), 0.0),
    "a share, better": (ones(0.6, 300), ones(0.7, 300), 0.1),
    "a rare share": (ones(0.03, 1000), ones(0.04, 1000), 0.01),
    "one in ten on the canary": (ones(0.3, 900), ones(0.3, 100), 0.0),
    "few users": (ones(0.5, 30), ones(0.5, 30), 0.0),
    "times, skewed": (skewed(800, 150), skewed(700, 150), -100 * math.exp(0.32)),
    "requests of users": (requests(0.1, 300), requests(0.1, 300), 0.0),
}


def looked(world: str, seed: int = 17) -> Iterator[s.Effect]:
    stable, canary, _ = WORLDS[world]
    random = np.random.default_rng(seed)
    for _ in range(TESTS):
        a, b = s.measured(stable(random)), s.measured(canary(random))
        assert a is not None
        assert b is not None
        effect = s.compared(a, b)
        assert effect is not None
        yield effect


@pytest.mark.parametrize("world", WORLDS)
def test_nineteen_of_twenty_intervals_have_the_truth_in_them(world: str) -> None:
    truth = WORLDS[world][2]
    held = sum(e.low <= truth <= e.high for e in looked(world))
    assert held / TESTS == pytest.approx(0.95, abs=0.02)


def test_as_if_requests_were_users_intervals_would_be_wrong() -> None:
    """What the ratio by users is for: the same requests, each taken for a user, miss the truth far too often."""
    stable, canary, _ = WORLDS["requests of users"]
    random, held = np.random.default_rng(17), 0
    for _ in range(300):
        arms = [s.measured((float(i < x), 1.0) for x, n in draw(random) for i in range(int(n))) for draw in (stable, canary)]
        assert arms[0] is not None
        assert arms[1] is not None
        effect = s.compared(arms[0], arms[1])
        held += effect is not None and effect.low <= 0 <= effect.high
    assert held / 300 < 0.85


def test_one_in_twenty_tests_of_equal_arms_says_that_they_differ() -> None:
    assert sum(e.p < 0.05 for e in looked("requests of users")) / TESTS == pytest.approx(0.05, abs=0.02)


def test_a_difference_as_large_as_what_is_told_shows_in_four_of_five() -> None:
    effects = list(looked("a share, better"))
    detectable = float(np.mean([e.detectable for e in effects]))
    users = round(300 * (detectable / 0.1) ** 2)
    random, stable, canary = np.random.default_rng(23), ones(0.6, users), ones(0.7, users)
    shown = 0
    for _ in range(TESTS):
        a, b = s.measured(stable(random)), s.measured(canary(random))
        assert a is not None
        assert b is not None
        effect = s.compared(a, b)
        shown += effect is not None and effect.p < 0.05
    assert shown / TESTS == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("percent", [5, 50])
def test_a_split_that_is_met_alarms_once_in_a_thousand(percent: int) -> None:
    canary = np.random.default_rng(29).binomial(10_000, percent / 100, 100_000)
    alarms = np.mean([s.mismatch(int(c), 10_000 - int(c), percent) < 0.001 for c in canary])
    assert alarms == pytest.approx(0.001, abs=0.0005)


def test_a_split_of_which_a_tenth_of_one_arm_is_lost_alarms() -> None:
    canary = np.random.default_rng(29).binomial(10_000, 0.5, 2000)
    assert np.mean([s.mismatch(int(0.9 * c), 10_000 - int(c), 50) < 0.001 for c in canary]) > 0.95
