"""What the model server counts is what the operator's guards read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetune_operator.decide.guards import quantile
from finetune_operator.pods import served
from finetune_operator.traffic import ArmTotals
from finetune_trainer.serve.metrics import Metrics


def finished(reason: str, tokens: int, first: float, last: float) -> Any:
    """An answer: seconds until its first and its last token."""
    return SimpleNamespace(
        reason=reason, prompt_tokens=7, completion_tokens=tokens, submitted=100.0, first_token=100 + first, last_token=100 + last
    )


def told(metrics: Metrics) -> ArmTotals:
    return served(metrics.exposition().decode())


def test_answers_and_their_ends() -> None:
    metrics = Metrics()
    for reason, tokens in (("stop", 5), ("stop", 2), ("stop", 1), ("length", 64), ("length", 1)):
        metrics.observe(finished(reason, tokens, 0.1, 0.2))
    found = told(metrics)
    assert (found.answers, found.unusable) == (5, 3), "one is empty, two are cut off"
    assert (found.requests, found.errors, found.latency) == (0, 0, ()), "these are the routers' to tell"


def test_times_are_told_in_milliseconds_within_a_bucket() -> None:
    metrics = Metrics()
    for n in range(200):
        metrics.observe(finished("stop", 11, 0.3 + n / 1000, 0.3 + n / 1000 + 0.25))
    found = told(metrics)
    assert (found.first_token[-1][1], found.output_token[-1][1]) == (200, 200)
    assert quantile(found.first_token, 0.5) == pytest.approx(400, rel=0.17)
    assert quantile(found.output_token, 0.5) == pytest.approx(25, rel=0.17)


def test_a_server_that_answered_nobody_yet_tells_all_the_same() -> None:
    found = told(Metrics())
    assert (found.answers, found.unusable) == (0, 0)
    assert found.first_token
    assert found.output_token
    assert {count for _, count in (*found.first_token, *found.output_token)} == {0}
