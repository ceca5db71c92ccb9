"""The user's own PromQL: what is asked of which arm, and what each answer means."""

from __future__ import annotations

import math
from typing import Any

import pytest
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.api.status import Rollout, Status
from finetune_operator.decide import queries
from finetune_operator.decide.guards import Finding
from finetune_operator.observed import Answer, Question

from tests.unit.operator.helpers import NOW

ROLLOUT = Rollout(arm="new", revision="r1", stable="old", state="Holding", weight=10, memory={"began": "2026-01-01T11:59:00Z"})
OF_EACH = {"name": "refusals", "query": 'sum(rate(refused{pod=~"${pods}"}[${window}]))', "max": "0.05"}
OF_NONE = {"name": "orders", "query": 'orders{of="${namespace}/${finetune}", new="${canary}", old="${stable}"}', "min": "10", "max": "2e1"}


def guards(*asked: dict[str, Any], wanted: int = 100) -> Guards:
    return Guards.model_validate({"queries": list(asked), "minRequests": wanted})


def asked(*wanted: dict[str, Any], rollout: Rollout | None = ROLLOUT) -> list[Question]:
    status = Status(live_revision="r0", rollout=rollout)
    return list(queries.questions(guards(*wanted), status, "ml", "bot", NOW))


def test_a_query_that_names_an_arm_is_asked_of_each_and_another_once() -> None:
    assert [(q.guard, q.arm, q.text) for q in asked(OF_EACH, OF_NONE)] == [
        ("refusals", "new", 'sum(rate(refused{pod=~"bot-new-.*"}[60s]))'),
        ("refusals", "old", 'sum(rate(refused{pod=~"bot-old-.*"}[60s]))'),
        ("orders", "", 'orders{of="ml/bot", new="new", old="old"}'),
    ]


@pytest.mark.parametrize(("place", "texts"), [("${arm}", ["new", "old"]), ("${revision}", ["r1", "r0"])])
def test_each_arm_has_its_name_and_its_revision(place: str, texts: list[str]) -> None:
    assert [q.text for q in asked({**OF_EACH, "query": place})] == texts


def test_what_belongs_to_promql_is_left_as_it_is() -> None:
    text = 'label_replace(up{a=~"^x$"}, "b", "${1}-$2", "c", "(.*)(.)")'
    assert [q.text for q in asked({**OF_NONE, "query": text})] == [text]


def test_a_step_that_has_just_begun_or_not_begun_has_a_window_of_a_second() -> None:
    just, never = (ROLLOUT.model_copy(update={"memory": memory}) for memory in ({"began": "2026-01-01T12:00:00Z"}, {}))
    assert [q.window for r in (just, never) for q in asked(OF_NONE, rollout=r)] == [1, 1]


def test_nothing_is_asked_without_a_rollout_or_a_query() -> None:
    assert (asked(OF_EACH, rollout=None), asked()) == ([], [])


def test_questions_of_one_step_are_the_same_whenever_they_are_asked() -> None:
    one, other = Question("g", "a", "up", "t0", 5), Question("g", "a", "up", "t0", 9)
    assert one == other
    assert one != Question("g", "a", "up", "t1", 5)


def judged(query: dict[str, Any], *answers: Answer, requests: int = 200, wanted: int = 100) -> Finding:
    (found,) = queries.judge(guards(query, wanted=wanted), requests, ROLLOUT, answers)
    return found


def of_each(new: float | None, old: float | None) -> tuple[Answer, Answer]:
    return Answer("refusals", "new", new), Answer("refusals", "old", old)


# the canary's number, stable's → verdict, and how the evidence ends
OF_ARMS: dict[str, tuple[float | None, float | None, str, str]] = {
    "both below the limit": (0.01, 0.02, "Pass", "canary 0.01, stable 0.02, max 0.05"),
    "at the limit": (0.05, 0.02, "Pass", "canary 0.05, stable 0.02, max 0.05"),
    "the canary alone is above it": (0.051, 0.05, "Fail", "canary 0.051, stable 0.05, max 0.05"),
    "both are above it": (0.9, 0.051, "Error", "canary 0.9, stable 0.051, max 0.05: both arms are beyond it"),
    "stable alone is above it": (0.01, 0.9, "Pass", "canary 0.01, stable 0.9, max 0.05"),
    "stable has no such series": (0.9, None, "Fail", "canary 0.9, stable nothing, max 0.05"),
    "stable has no traffic to divide by": (0.9, math.nan, "Fail", "canary 0.9, stable nan, max 0.05"),
    "stable divides by zero": (0.9, math.inf, "Error", "both arms are beyond it"),
    "the canary has no such series": (None, 0.01, "Insufficient", "Prometheus has no such series"),
    "the canary has no traffic to divide by": (math.nan, 0.01, "Insufficient", "nothing was counted yet"),
    "the canary divides by zero": (math.inf, 0.01, "Error", "it divides by zero"),
    "and below zero": (-math.inf, 0.01, "Error", "it divides by zero"),
}


@pytest.mark.parametrize("case", OF_ARMS)
def test_of_both_arms(case: str) -> None:
    new, old, verdict, words = OF_ARMS[case]
    found = judged(OF_EACH, *of_each(new, old))
    assert (found.guard, found.verdict) == ("query refusals", verdict)
    assert found.evidence.startswith("query refusals: canary ")
    assert found.evidence.endswith(words)


@pytest.mark.parametrize(("value", "verdict"), [(9.99, "Fail"), (10, "Pass"), (20, "Pass"), (20.01, "Fail")])
def test_of_no_arm_in_particular(value: float, verdict: str) -> None:
    assert judged(OF_NONE, Answer("orders", "", value)) == Finding("query orders", verdict, f"query orders: {value:g}, min 10, max 2e1")  # type: ignore[arg-type]


@pytest.mark.parametrize("new", [0.01, 0.9])
def test_before_enough_requests_it_neither_passes_nor_fails(new: float) -> None:
    assert judged(OF_EACH, *of_each(new, 0.01), requests=99).verdict == "Insufficient"
    assert judged(OF_EACH, *of_each(new, 0.01), requests=100).verdict != "Insufficient"
    assert judged(OF_EACH, *of_each(new, 0.01), requests=99).evidence.endswith("99 of 100 canary requests seen")


@pytest.mark.parametrize("lacking", ["new", "old"])
def test_what_cannot_be_asked_is_an_error_whichever_arm_it_is_of(lacking: str) -> None:
    answers = [Answer("refusals", arm, None if arm == lacking else 0.01, "it is away" if arm == lacking else "") for arm in ("new", "old")]
    assert judged(OF_EACH, *answers) == Finding("query refusals", "Error", "query refusals: it is away")
    assert queries.unasked(tuple(answers)) == "query refusals: it is away"


@pytest.mark.parametrize("answers", [(), of_each(0.01, 0.01)[:1], of_each(0.01, 0.01)[1:]])
def test_what_was_not_asked_yet_waits(answers: tuple[Answer, ...]) -> None:
    assert judged(OF_EACH, *answers) == Finding("query refusals", "Insufficient", "query refusals: not asked yet")
    assert queries.unasked(answers) == ""
