"""What a killed training is said to have cost, beside one that was left alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.chaos.pods import Kill
from tests.chaos.training import CHECKPOINT_STEPS, Comparison, Outcome, compare, lost_steps, other_losses, targets

RESULT = {"loss": 1.25, "validationLoss": 1.5, "order": "0a", "digest": "sha256:1"}
CALM = Outcome(RESULT, {"succeeded": 1}, {1: {step: 2.0 / step for step in range(1, 41)}})
KILLED = Outcome(
    RESULT,
    {"succeeded": 1, "disruption": 1},
    {1: {step: 2.0 / step for step in range(1, 18)}, 2: {step: 2.0 / step for step in range(11, 41)}},
    [Kill("training rank", "bot-a1-0-xxxxx", True, 1.0, 2.0)],
)


def test_a_training_that_resumed_exactly_has_no_problem() -> None:
    found = compare(CALM, KILLED)
    assert found == Comparison(1, 0.0, True, 7, CHECKPOINT_STEPS, True, 0, 1, 0)
    assert found.problems == []


@pytest.mark.parametrize(
    ("killed", "problem"),
    [
        (replace(KILLED, result={**RESULT, "loss": 1.2501}), "the losses differ by 8.00e-05"),
        (replace(KILLED, result={**RESULT, "validationLoss": 1.6}), "the losses differ by 6.67e-02"),
        (replace(KILLED, result={**RESULT, "order": "0b"}), "another order"),
        (replace(KILLED, totals={"disruption": 2}), "1 kills, and 2 disruptions"),
        (replace(KILLED, totals={"disruption": 1, "infrastructure": 1}), "1 attempts were charged"),
        (replace(KILLED, losses={1: {5: 0.4}, 2: {5: 0.5}}), "1 steps told another loss"),
        (replace(KILLED, losses={1: {12: 2 / 12}, 2: {}, 3: {2: 1.0}}), "a kill cost 11 steps"),
    ],
)
def test_what_went_wrong_is_named(killed: Outcome, problem: str) -> None:
    assert [problem in found for found in compare(CALM, killed).problems] == [True]


def test_an_order_that_was_not_told_is_not_the_same() -> None:
    silent = replace(CALM, result={**RESULT, "order": ""})
    assert not compare(silent, silent).same_order


def test_steps_that_are_done_again_are_lost_and_attempts_that_did_none_are_passed_over() -> None:
    assert lost_steps({}) == 0
    assert lost_steps({1: {1: 0.1, 2: 0.1}, 2: {}, 3: {2: 0.1}}) == 1
    assert lost_steps({1: {1: 0.1}, 2: {2: 0.1}}) == 0


def test_losses_are_compared_to_the_last_decimal_that_is_told() -> None:
    assert other_losses({1: {1: 1.0, 2: 2.0}}, {1: {1: 1.000001}, 2: {2: 2.00001, 3: 9.0}}) == 1


def test_kills_come_in_the_order_of_the_training_some_while_an_attempt_starts() -> None:
    found = targets(30, random.Random(3))
    shares = [target.share for target in found if target.share]
    assert len(found) == 30
    assert shares == sorted(shares)
    assert max(shares) < 1
    assert {target.at_once for target in found} == {target.rank == 0 for target in found} == {True, False}
    assert any(target.share == 0 for target in found)
