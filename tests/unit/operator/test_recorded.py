"""Every decision of the tables is, whole, as it was last approved."""

from __future__ import annotations

import pytest
import yaml

from tests.unit.operator.recorded import decisions, read

DECISIONS, APPROVED = dict(decisions()), read()


@pytest.mark.parametrize("case", DECISIONS)
def test_decision(case: str) -> None:
    found = yaml.safe_load(yaml.safe_dump(DECISIONS[case]()))
    assert found == APPROVED.get(case), (
        "if this is meant: python3 tools/env.py dev python -m tests.unit.operator.recorded, and read the diff"
    )


def test_nothing_is_approved_that_is_no_case() -> None:
    assert set(APPROVED) <= set(DECISIONS)
