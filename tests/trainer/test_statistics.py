"""Bootstrap intervals against what is known about them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finetune_trainer.evaluate.statistics import bootstrap, paired_differences


def test_no_rows_have_no_interval() -> None:
    assert bootstrap([], 95) is None


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = bootstrap([0.5] * 9, 95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 9)


def test_the_interval_of_a_proportion_is_that_of_the_normal_approximation() -> None:
    n, p = 400, 0.3
    found = bootstrap([1.0] * int(n * p) + [0.0] * int(n * (1 - p)), 95)
    assert found is not None
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert (found.low, found.high) == pytest.approx((p - half, p + half), abs=0.006)


def test_more_confidence_is_a_wider_interval_and_the_same_call_the_same_one() -> None:
    values = list(np.random.default_rng(5).random(50))
    narrow, wide, again = bootstrap(values, 80), bootstrap(values, 99), bootstrap(values, 80)
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert narrow == again


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(11)
    hits = 0
    for _ in range(200):
        found = bootstrap([float(value) for value in random.random(60) < 0.6], 95, resamples=1000)
        assert found is not None
        hits += found.low <= 0.6 <= found.high
    assert 180 <= hits <= 198


def test_pairs_are_made_by_row_and_rows_of_one_side_are_left_out() -> None:
    assert paired_differences({"a": 1.0, "b": 0.0, "c": 1.0}, {"c": 0.0, "b": 1.0, "x": 1.0}) == [-1.0, 1.0]


def test_pairing_is_narrower_than_the_difference_of_two_means_where_rows_agree() -> None:
    random = np.random.default_rng(7)
    base = list(random.random(80))
    tuned = [value + 0.1 for value in base]
    pairs = paired_differences(dict(enumerate(tuned)), dict(enumerate(base)))  # type: ignore[arg-type]
    found, alone = bootstrap(pairs, 95), bootstrap(tuned, 95)
    assert found is not None
    assert alone is not None
    assert found.high - found.low < 0.01 < alone.high - alone.low
