"""What the gate makes of a revision: what is remembered, told once as an Event, and said in words."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.status import Baseline, Evaluation, FewShot, Revision, Stopped
from finetune_operator.decide.draft import Note
from finetune_operator.decide.gate import gate

from tests.unit.operator.helpers import STAMP, draft, make_observed, make_revision, make_scored, tried

BASE, GOOD, BAD = make_scored("0.1"), make_scored("0.5", "0.1", "0.6"), make_scored("0.5", "-0.1", "0.6")
NUMBERS = "ExactMatch: tuned 0.5 [0, 1], the base model 0.1 [0, 1], n=40"
PASSED = f"gate passed: {NUMBERS}, difference 0 [0.1, 0.6]"
MISSED = "the lower bound of its improvement, -0.1, is not above 0 (no minImprovement is set)"
LOWER = "Lower the gate, or change data, method or training."
FAILED = f"gate failed: {MISSED} ({NUMBERS}, difference 0 [-0.1, 0.6]). {LOWER}"
UNPAIRED = f"gate failed: it could not be paired with the reference's rows ({NUMBERS}). {LOWER}"
STOPPED = Stopped(reason=c.GATE_FAILED, message="as it was told", time="2025-12-31T00:00:00Z", tried=tried("t0"))

UNJUDGED = {
    "the tuned model is not scored": make_revision(baseline=BASE),
    "what it is compared with is not scored": make_revision(evaluated=GOOD),
    "neither is": make_revision(),
    "it was promoted: it is not judged again": make_revision(baseline=BASE, evaluated=BAD, promoted=True),
}


@pytest.mark.parametrize("case", UNJUDGED)
def test_it_is_not_judged(case: str) -> None:
    o = make_observed(UNJUDGED[case])
    assert gate(o, draft(o)) == draft(o)


def test_it_is_not_judged_while_something_else_is_waited_for() -> None:
    o = make_observed(make_revision(baseline=BASE, evaluated=BAD))
    waits = draft(o).block(c.EVALUATING, "scoring")
    assert gate(o, waits) is waits


def told(*notes: tuple[str, str, str]) -> tuple[Note, ...]:
    return tuple(Note(*n) for n in notes)


# the revision, the spec's evaluation, what is live → (gate, stopped, Events, verdict, message)
JUDGED: dict[str, tuple[Revision, dict[str, Any] | None, str | None, tuple[str, Stopped | None, tuple[Note, ...], str, str]]] = {
    "it passes": (
        make_revision(baseline=BASE, evaluated=GOOD),
        {},
        None,
        ("Passed", None, told(("Normal", "GatePassed", PASSED)), "Passed", PASSED),
    ),
    "it passes without an `evaluation`": (
        make_revision(baseline=BASE, evaluated=GOOD),
        None,
        None,
        ("Passed", None, told(("Normal", "GatePassed", PASSED)), "Passed", PASSED),
    ),
    "it passed before: no second Event": (
        make_revision(baseline=BASE, evaluated=GOOD, gate="Passed"), {}, None, ("Passed", None, (), "Passed", PASSED),
    ),
    "it failed before and passes now": (
        make_revision(baseline=BASE, evaluated=GOOD, gate="Failed", stopped=STOPPED),
        {},
        None,
        ("Passed", None, told(("Normal", "GatePassed", PASSED)), "Passed", PASSED),
    ),
    "it fails": (
        make_revision(baseline=BASE, evaluated=BAD),
        {},
        None,
        (
            "Failed",
            Stopped(reason=c.GATE_FAILED, message=FAILED, time=STAMP, tried=tried("t1")),
            told(("Warning", c.GATE_FAILED, FAILED)),
            "Failed",
            FAILED,
        ),
    ),
    "it failed before: no second Event, and when it was stopped is kept": (
        make_revision(baseline=BASE, evaluated=BAD, gate="Failed", stopped=STOPPED), {}, None, ("Failed", STOPPED, (), "Failed", FAILED),
    ),
    "nothing could be paired": (
        make_revision(baseline=BASE, evaluated=make_scored("0.5"), gate="Failed", stopped=STOPPED),
        {},
        None,
        ("Failed", STOPPED, (), "Failed", UNPAIRED),
    ),
    "against what is live": (
        make_revision(baseline=BASE, evaluated=GOOD, gate="Passed"),
        {},
        "r0",
        ("Passed", None, (), "Passed", PASSED.replace("the base model", "live revision r0")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_it_is_judged(case: str) -> None:
    revision, evaluation, live, (passed, stopped, notes, verdict, message) = JUDGED[case]
    o = make_observed(revision, changes={"evaluation": evaluation}, status={"live_revision": live})
    found = gate(o, draft(o))
    assert revision.evaluated
    assert found.status.evaluation == Evaluation(
        metric="ExactMatch", reference=live or "base", baseline=Baseline(**vars(BASE.score)), tuned=revision.evaluated.score,
        improvement=revision.evaluated.difference, verdict=verdict, message=message,
    )  # fmt: skip
    assert (found.revision.gate, found.revision.stopped, found.notes) == (passed, stopped, notes)
    if verdict == "Passed":
        assert not found.blocked
    else:
        assert (found.phase, found.reason, found.message) == (c.REJECTED, c.GATE_FAILED, message)


def test_what_examples_in_the_prompt_did_is_told_beside_the_base_and_is_no_part_of_the_verdict() -> None:
    few = FewShot(examples=4, score=GOOD.score, alone=BASE.score)
    o = make_observed(make_revision(baseline=BASE.model_copy(update={"few_shot": few}), evaluated=GOOD))
    found = gate(o, draft(o))
    assert found.status.evaluation
    assert found.status.evaluation.to_dict()["baseline"] == {**BASE.score.to_dict(), "fewShot": few.to_dict()}
    assert (found.revision.gate, found.status.evaluation.message) == ("Passed", PASSED)
