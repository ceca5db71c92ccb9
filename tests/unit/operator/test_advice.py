"""What stages advise: kept by stage, told once, and never in the way."""

# ruff: noqa: E501 - one case, one line: it reads as a table

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.status import Advice
from finetune_operator.decide import advice, revision
from finetune_operator.decide.draft import Note

from tests.unit.operator.helpers import draft, make_observed, make_revision


def said(code: str, message: str = "m") -> dict[str, str]:
    return {"code": code, "message": message, "fix": "f"}


def item(stage: str, code: str, message: str = "m") -> Advice:
    return Advice(stage=stage, code=code, message=message, fix="f")


FEW, OTHER = item("prepare", "Few"), item("prepare", "Other")
OLD, TUNED = item("baseline", "Old"), item("evaluate", "Tuned")
# What the status holds, which stage says what → what it holds then, and the codes that are told as Events.
CASES: dict[str, tuple[list[Advice], str, Any, list[Advice] | None, list[str]]] = {
    "a first stage speaks": ([], "prepare", [said("Few")], [FEW], ["Few"]),
    "a later one adds to it": ([FEW], "baseline", [said("Old")], [FEW, OLD], ["Old"]),
    "one that speaks again takes back what it and later ones said": ([FEW, OLD, TUNED], "baseline", [said("New")], [FEW, item("baseline", "New")], ["New"]),
    "what was told is not told again": ([FEW, OLD], "baseline", [said("Old")], [FEW, OLD], []),
    "the same with another figure is": ([FEW], "prepare", [said("Few", "n")], [item("prepare", "Few", "n")], ["Few"]),
    "what a later stage finds again is told by that one alone": ([FEW, OTHER], "evaluate", [said("Few")], [OTHER, item("evaluate", "Few")], ["Few"]),
    "it has nothing to say any more": ([FEW], "prepare", [], None, []),
    "an image that does not advise": ([FEW, OLD], "evaluate", None, [FEW, OLD], []),
    "an image that says anything": ([FEW], "baseline", ["text", {"code": 1}, {"code": "a", "message": "b"}, [], said("Old")], [FEW, OLD], ["Old"]),
    "a list that is none": ([FEW], "baseline", {"code": "a"}, [FEW], []),
    "the first few of many": ([], "evaluate", [said(str(n)) for n in range(9)], [item("evaluate", str(n)) for n in range(4)], ["0", "1", "2", "3"]),
    "a stage that advises nothing": ([FEW], "fetch", [said("Few")], [FEW], []),
}  # fmt: skip


@pytest.mark.parametrize(("before", "stage", "given", "after", "told"), CASES.values(), ids=CASES)
def test_advice(before: list[Advice], stage: str, given: Any, after: list[Advice] | None, told: list[str]) -> None:
    then = advice.heard(draft(make_observed(status={"advice": before or None})), stage, given)
    assert then.status.advice == after
    assert then.notes == ((Note("Normal", "Advice", " ".join(f"{code}: {given[-1]['message']} f" for code in told)),) if told else ())
    assert not then.blocked


def test_long_words_are_cut() -> None:
    [found] = advice.heard(draft(make_observed()), "prepare", [said("C" * 999, "x" * 9999)]).status.advice or []
    assert (len(found.code), len(found.message)) == (64, 400)


def test_another_revision_begins_without_advice() -> None:
    o = make_observed(make_revision(), status={"advice": [FEW]})
    assert revision.current(o, draft(o)).status.advice == [FEW]
    other = replace(o, retrain={**o.retrain, "retrain": "2"})
    assert revision.current(other, draft(other)).status.advice is None
