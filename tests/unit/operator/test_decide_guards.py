"""What the guards make of counters as routers really count, and the bounds of each verdict."""

from __future__ import annotations

from finetune_operator.api.spec import Guards
from finetune_operator.decide.guards import errors, subtract
from finetune_operator.traffic import ArmTotals


def test_more_failures_than_answers_between_two_looks_are_a_failing_canary() -> None:
    """A router counts connections that are broken off apart from answers; this once took the operator's cycle down."""
    seen = subtract(ArmTotals(requests=105, errors=20), ArmTotals(requests=100, errors=0))
    assert (seen.requests, seen.errors) == (20, 20)
    assert errors(Guards(), seen, ArmTotals(requests=200)).verdict == "Fail"
