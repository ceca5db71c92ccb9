"""A rollout that the user's own PromQL guards: each state's transitions, and whole lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.api.status import Rollout
from finetune_operator.decide.rollout import states as m
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.observed import Answer, Question

from tests.unit.operator.helpers import NOW, SPEC, condition, good_outcomes, make_finetune, status_of
from tests.unit.operator.test_rollout import FINE, PLAN, at, baking, counted, holding, router, scene, totals
from tests.unit.operator.world import FINETUNE, World, run

QUERY = {"name": "refusals", "query": 'refusals{arm="${arm}"}', "max": "0.05"}
ASKED = replace(PLAN, guards=Guards.model_validate({"minRequests": 100, "queries": [QUERY]}))
AWAY = "Prometheus does not answer within 3 s"


def answers(new: float | None = None, old: float | None = 0.01, error: str = "") -> tuple[Answer, ...]:
    return Answer("refusals", "new", new, error), Answer("refusals", "old", old, error)


GOOD, BAD, NONE, SILENT = answers(0.01), answers(0.5), answers(), answers(error=AWAY)
FULL = {**FINE, "weight": 100}
# rollout, routers' counters, Prometheus' answers, what else is seen → (state, weight, words of the message, reason)
MOVES: dict[str, tuple[Rollout, dict[str, Any], tuple[Answer, ...], dict[str, Any], tuple[str, int, str, str]]] = {
    "it is well: the next step": (holding(), FINE, GOOD, {}, (m.SHIFTING, 50, "moving 50 %", "")),
    "it is beyond its limit: everybody back": (
        holding(next_step_at="2026-01-01T12:00:50Z"), FINE, BAD, {},
        (m.ROLLING_BACK, 0, "guard query refusals failed at 10 %", c.GUARD_FAILED),
    ),
    "and while a router is still told": (
        at(m.SHIFTING, 10, 1, {"began": "2026-01-01T11:59:00Z", "counted": {"router-0@2026-01-01T11:00:00Z": {}}}),
        {**FINE, "weight": 0}, BAD, {}, (m.ROLLING_BACK, 0, "guard query refusals failed", c.GUARD_FAILED),
    ),
    "and while it bakes": (baking(), FULL, BAD, {}, (m.ROLLING_BACK, 0, "failed at 100 %", c.GUARD_FAILED)),
    "before enough requests it says nothing": (
        holding(), counted(totals(99), totals(900)), BAD, {}, (m.HOLDING, 10, "goes on once there is enough traffic", ""),
    ),
    "Prometheus is away: held where it is": (holding(), FINE, SILENT, {}, (m.HOLDING, 10, AWAY, c.PAUSED)),
    "and in the middle of a step nothing is said yet": (
        holding(next_step_at="2026-01-01T12:00:50Z"), FINE, SILENT, {}, (m.HOLDING, 10, "10 % of the users until", ""),
    ),
    "Prometheus is away while it bakes: not promoted": (baking(), FULL, SILENT, {}, (m.BAKING, 100, AWAY, c.PAUSED)),
    "no such series: it waits": (holding(), FINE, NONE, {}, (m.HOLDING, 10, "Prometheus has no such series", "")),
    "not asked yet: it waits": (holding(), FINE, (), {}, (m.HOLDING, 10, "not asked yet", "")),
    "both arms beyond it: held": (holding(), FINE, answers(0.5, 0.5), {}, (m.HOLDING, 10, "both arms are beyond it", c.PAUSED)),
    "nobody is moved before it can be asked": (
        at(m.CONNECTING), {}, SILENT, {},
        (m.CONNECTING, 0, f"nobody is moved before all guards can be asked; query refusals: {AWAY}", c.PAUSED),
    ),
    "without series it begins": (at(m.CONNECTING), {}, NONE, {}, (m.SHIFTING, 10, "moving 10 %", "")),
    "who is promoted by the user does not wait for it": (
        at(m.CONNECTING), {}, SILENT, {"wish": m.PROMOTE}, (m.SHIFTING, 100, "moving 100 %", ""),
    ),
    "nor who has nobody else to serve them": (
        at(m.CONNECTING, memory={"outage": True}), {}, SILENT, {}, (m.SHIFTING, 100, "moving 100 %", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_move(case: str) -> None:
    rollout, counters, told, seen, (state, weight, words, reason) = MOVES[case]
    step = advance(ASKED, scene(router(**counters), answers=told, **seen), rollout)
    assert (step.rollout.state, step.rollout.weight, step.reason) == (state, weight, reason)
    assert words in step.message


@pytest.mark.parametrize(("first", "moved"), [(100, 100), (99, 0)])
def test_a_plan_of_one_step_does_not_wait_for_it(first: int, moved: int) -> None:
    """An arm that was promoted before, in an emergency: monitoring that is away keeps nobody from it."""
    step = advance(replace(ASKED, steps=((first, 60.0), (100, 0.0))), scene(router(), answers=SILENT), at(m.CONNECTING))
    assert step.rollout.weight == moved


def test_the_time_without_it_is_not_held_against_the_new_arm() -> None:
    """Held for longer than progressDeadline; then it answers, and a router has just been restarted."""
    rollout, writes = at(m.CONNECTING), 0
    for minute in range(20):
        step = advance(ASKED, scene(router(), answers=SILENT, now=NOW + timedelta(minutes=minute)), rollout)
        writes, rollout = writes + (step.rollout != rollout), step.rollout
    assert (rollout.state, writes) == (m.CONNECTING, 1)
    cold = advance(ASKED, scene(router(version="x"), answers=GOOD, now=NOW + timedelta(minutes=21)), rollout)
    assert cold.rollout.state == m.CONNECTING
    assert advance(ASKED, scene(router(), answers=GOOD, now=NOW + timedelta(minutes=22)), cold.rollout).rollout.weight == 10


def world(prometheus: Any) -> World:
    made = World(outcomes=good_outcomes(), prometheus=prometheus)
    rollout = {**SPEC["rollout"], "guards": {"minRequests": 50, "queries": [QUERY]}}
    made.api.put(FINETUNE, make_finetune(rollout=rollout))
    return made


def phase(wanted: str) -> Any:
    return lambda status: status.get("phase") == wanted


def tells(canary: float | None, error: str = "") -> Any:
    """A Prometheus that finds so much of the arm that is new."""
    return lambda q: Answer(q.guard, q.arm, canary, error)


@pytest.mark.parametrize("kill", ["never", "every"])
async def test_a_life_that_it_is_well_with(kill: str) -> None:
    asked: list[Question] = []

    def good(question: Question) -> Answer:
        asked.append(question)
        return Answer(question.guard, question.arm, 0.01)

    made = world(good)
    await run(made, phase("Live"), kill=kill)
    status = status_of(made)
    assert {q.text for q in asked} == {f'refusals{{arm="{arm["name"]}"}}' for arm in status["arms"]}
    assert condition(status, "RolledOut")["status"] == "True"


async def test_a_life_that_it_takes_back() -> None:
    made = world(lambda q: Answer(q.guard, q.arm, 0.9 if q.arm == status_of(made)["rollout"]["arm"] else 0.01))
    await run(made, phase("Rejected"))
    status: Mapping[str, Any] = status_of(made)
    assert (status["reason"], status["rollout"]["weight"], status["liveRevision"]) == (c.GUARD_FAILED, 0, "base")
    assert "query refusals: canary 0.9, stable 0.01, max 0.05" in condition(status, "Ready")["message"]


@pytest.mark.parametrize(
    ("prometheus", "told"),
    [(None, c.PROMETHEUS_UNKNOWN), (tells(None, AWAY), AWAY)],
    ids=["the operator knows none", "it is away"],
)
async def test_a_life_that_nobody_can_guard_moves_nobody_and_says_why(prometheus: Any, told: str) -> None:
    made = world(prometheus)
    operator = await run(made, phase("Paused"))
    status: Mapping[str, Any] = status_of(made)
    assert (status["reason"], status["rollout"]["weight"]) == (c.GUARD_UNDECIDED, 0)
    assert told in condition(status, "Ready")["message"]
    writes = len(made.api.writes)
    for _ in range(100):
        made.clock.seconds += 60
        await operator.cycle()
    assert len(made.api.writes) == writes, "it says so once"


async def test_that_there_is_none_is_said_before_anything_is_trained() -> None:
    made = world(None)
    await run(made, phase("Training"))
    assert condition(status_of(made), "RolledOut") | {"lastTransitionTime": ""} == {
        "type": "RolledOut", "status": "False", "reason": "NotStarted", "message": c.PROMETHEUS_UNKNOWN, "observedGeneration": 1,
        "lastTransitionTime": "",
    }  # fmt: skip
