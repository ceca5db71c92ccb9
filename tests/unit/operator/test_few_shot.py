"""What examples in the base model's prompt do: what is asked of the baseline, what is remembered, and that nothing else depends on it."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.fields import REEVALUATE, extract
from finetune_operator.api.load import load_spec
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import FewShot, Scored
from finetune_operator.build import runconfig
from finetune_operator.decide.stages import _scored, evaluation_key, not_needed
from finetune_operator.status import _numbers

from tests.unit.operator.helpers import draft, make_finetune, make_observed, make_revision, make_scored

FOUND = {"score": 0.91, "low": 0.7, "high": 1.0, "n": 16}
TOLD = {
    "examples": 4, "tokens": 212, "score": FOUND, "alone": {"score": 0.125, "low": 0.0, "high": 0.3, "n": 16},
    "paired": {"metric": "ExactMatch", "difference": 0.785, "low": 0.5, "high": 0.9375, "n": 16},
}  # fmt: skip
RESULT = {"metrics": {"ExactMatch": {"score": 0.1, "low": 0.0, "high": 0.2, "n": 64}}, "path": "/work/x/baseline-k"}
EXPECTED = {
    "examples": 4, "score": {"score": "0.91", "low": "0.7", "high": "1", "n": 16},
    "alone": {"score": "0.125", "low": "0", "high": "0.3", "n": 16},
    "difference": {"difference": "0.785", "low": "0.5", "high": "0.9375", "n": 16},
}  # fmt: skip

ASKED: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "nothing is said of an evaluation": (None, {"examples": 4, "rows": 16, "maxTokens": 512}),
    "nothing is said of examples": ({"maxNewTokens": 64}, {"examples": 4, "rows": 16, "maxTokens": 512}),
    "more of both": ({"fewShot": {"examples": 8, "rows": 200}}, {"examples": 8, "rows": 200, "maxTokens": 512}),
    "none": ({"fewShot": {"examples": 0}}, None),
}


@pytest.mark.parametrize(("evaluation", "expected"), ASKED.values(), ids=ASKED)
def test_what_is_asked_of_the_baseline(evaluation: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    spec = load_spec(make_finetune(evaluation=evaluation))
    assert runconfig.before(spec, "base", 512)["fewShot"] == expected


def test_the_baseline_is_told_what_would_be_enough() -> None:
    gate = {"minScore": "0.9", "minImprovement": "0.3"}
    spec = load_spec(make_finetune(evaluation={"skipTrainingIfBaselineAtLeast": "0.8", "gate": gate}))
    told = runconfig.before(spec, "0a0b0c0d", 512)
    assert {name: told[name] for name in ("reference", "enough", "minScore", "minImprovement")} == {
        "reference": "0a0b0c0d", "enough": 0.8, "minScore": 0.9, "minImprovement": 0.3,
    }  # fmt: skip


def test_what_it_found_is_kept() -> None:
    found = _scored("k", {**RESULT, "fewShot": TOLD})
    assert found.few_shot
    assert found.few_shot.to_dict() == EXPECTED
    assert Scored.model_validate(found.to_dict()) == found
    assert _numbers(found).endswith("n=64; with 4 examples in the prompt 0.91 [0.7, 1], n=16")


def test_why_there_is_nothing_is_kept_and_is_bounded() -> None:
    found = _scored("k", {**RESULT, "fewShot": {"unmeasured": "w" * 9999}})
    assert found.few_shot == FewShot(unmeasured="w" * 400)
    assert "examples" not in _numbers(found)


def test_a_result_of_an_older_image_has_none() -> None:
    assert _scored("k", RESULT).few_shot is None


def test_training_is_not_skipped_for_what_examples_reach() -> None:
    limit = {"evaluation": {"skipTrainingIfBaselineAtLeast": "0.9"}}
    scored = make_scored("0.1").model_copy(update={"few_shot": FewShot.model_validate(EXPECTED)})
    o = make_observed(make_revision(baseline=scored), changes=limit)
    assert not not_needed(o, draft(o)).blocked
    good = make_observed(make_revision(baseline=make_scored("0.9")), changes=limit)
    assert not_needed(good, draft(good)).phase == c.NOT_NEEDED, "its score without them does"


def test_another_number_of_examples_scores_nothing_again() -> None:
    plain, more = ({"maxNewTokens": 64, **changes} for changes in ({}, {"fewShot": {"examples": 8, "rows": 200}}))
    keys = set()
    for evaluation in (plain, more):
        o = make_observed(make_revision(), changes={"evaluation": evaluation})
        assert extract({"evaluation": evaluation}, Spec, REEVALUATE) == {"evaluation": {"maxNewTokens": 64}}
        keys.add(evaluation_key(o, draft(o)))
    assert len(keys) == 1
