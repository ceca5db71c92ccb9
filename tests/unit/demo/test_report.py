"""The demo's claims, judged: each way in which one fails is said, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from demo.report import Outcome, Share, problems, score, stages, table, within

LIVE: dict[str, Any] = {
    "phase": "Live",
    "evaluation": {
        "metric": "SqlExecution",
        "baseline": {"score": "0.0", "low": "0.0", "high": "0.0", "n": 58},
        "tuned": {"score": "0.948", "low": "0.89", "high": "1.0", "n": 58},
        "improvement": {"difference": "0.948", "low": "0.89", "high": "1.0", "n": 58},
    },
    "stages": [
        {"name": "train", "revision": "r", "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:02:30Z"},
        {"name": "bake", "revision": "r", "started": "2026-01-01T00:03:00Z"},
    ],
}
GOOD = Outcome(
    status=LIVE,
    weights=(10, 50, 100),
    shares=(Share(10, 103, 1000), Share(50, 492, 1000), Share(100, 1000, 1000)),
    requests=4000,
    leaked_rows=0,
    test_rows=58,
)


def test_a_good_run_has_no_problem() -> None:
    assert problems(GOOD) == []


BAD = {
    "not live": (replace(GOOD, status={**LIVE, "phase": "Rejected"}), "is Rejected, not Live"),
    "no status": (replace(GOOD, status={}), "without a status"),
    "no scores": (replace(GOOD, status={"phase": "Live"}), "no two scores"),
    "too little gain": (
        replace(GOOD, status={**LIVE, "evaluation": {"baseline": {"score": "0.3"}, "tuned": {"score": "0.69"}}}),
        "39 points better, not 40",
    ),
    "too few test rows": (replace(GOOD, test_rows=39), "only 39 test rows"),
    "a leak": (replace(GOOD, leaked_rows=2), "2 test rows are in the training data"),
    "a step missed": (replace(GOOD, shares=GOOD.shares[1:]), "at 10 % was over before"),
    "a share off": (replace(GOOD, shares=(Share(10, 139, 1000), *GOOD.shares[1:])), "at 10 % the new model had 13.9 %"),
    "one user left behind at 100": (replace(GOOD, shares=(*GOOD.shares[:2], Share(100, 999, 1000))), "at 100 %"),
    "nobody answered": (replace(GOOD, shares=(Share(10, 0, 0), *GOOD.shares[1:])), "at 10 %"),
    "a user switched back": (replace(GOOD, switched=1), "1 users were taken back"),
    "a request failed": (replace(GOOD, failed=1, failures=("user-0001: 503",)), "1 of 4000 requests failed: user-0001"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_and_nothing_else(case: str) -> None:
    outcome, expected = BAD[case]
    found = problems(outcome)
    assert any(expected in line for line in found), found
    assert len(found) == (2 if case == "no status" else 1)


def test_shares_are_allowed_four_deviations() -> None:
    assert within(Share(10, 137, 1000))
    assert not within(Share(10, 138, 1000))
    assert not within(Share(100, 999, 1000))


def test_the_table_names_every_number() -> None:
    text = "\n".join(table(replace(GOOD, leaked_rows=None)))
    for expected in ("94.8 % [89.0, 100.0], n=58", "10.3 % of 1000", "0 of 4000", "150 s", "not checked"):
        assert expected in text


def test_small_parts() -> None:
    assert score(None) == "–"
    assert score({"score": "0.5"}) == "50.0 %"
    assert stages(LIVE) == [("train", 150.0)]
