"""An A/B test in a rollout: where the split stays, for how long, and what the status says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator.api.status import Arm, Experiment, Rollout
from finetune_operator.decide.rollout import states as m
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.rollout.plan import ENDLESS, Plan, plan_of

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed
from tests.unit.operator.test_rollout import BAD, FINE, PLAN, at, counted, router, scene, totals

DAY = 86400.0
TODAY = Experiment(weight=50, since=STAMP)
DONE = Experiment(weight=50, since="2025-12-01T00:00:00Z", until=STAMP)


def plan(seconds: float = ENDLESS, share: int = 50) -> Plan:
    steps = tuple((w, seconds if w == share else hold) for w, hold in PLAN.steps)
    return replace(PLAN, steps=steps, experiment=(share, seconds))


def begun(**changes: Any) -> Rollout:
    """Half of the users, since now, for a test without an end."""
    memory = {"began": STAMP, "counted": {"router-0@2026-01-01T11:00:00Z": {}}}
    return at(m.HOLDING, 50, 2, memory, experiment=TODAY, **changes)


def after(seconds: float, p: Plan, rollout: Rollout, seen: Any = None, **changes: Any) -> Rollout:
    """The rollout as the next cycle leaves it, so many seconds later."""
    state = router(**{**(seen or FINE), "weight": rollout.weight})
    return advance(p, scene(state, now=NOW + timedelta(seconds=seconds), **changes), rollout).rollout


def test_an_experiment_begins_when_every_router_has_its_split() -> None:
    moving = at(m.SHIFTING, 50, 2, {"began": STAMP})
    told = advance(plan(), scene(router(weight=50)), moving)
    assert (told.rollout.state, told.rollout.next_step_at, told.rollout.experiment) == (m.HOLDING, None, TODAY)
    assert told.message == "step 2 of 3: 50 % of the users until promote or abort is asked for"
    assert advance(plan(), scene(router(weight=10)), moving).rollout.experiment is None
    smaller = at(m.SHIFTING, 10, 1, {"began": STAMP})
    assert advance(plan(), scene(router(weight=10)), smaller).rollout.experiment is None
    assert advance(PLAN, scene(router(weight=50)), moving).rollout.experiment is None


@pytest.mark.parametrize("days", [1, 30, 1000])
def test_without_a_duration_it_goes_on_whatever_is_seen(days: int) -> None:
    held = after(days * DAY, plan(), begun())
    assert (held.state, held.weight, held.experiment) == (m.HOLDING, 50, TODAY)


# what is asked, or seen → (state, weight) afterwards, and whether the experiment is over
ENDS: dict[str, tuple[dict[str, Any], Any, tuple[str, int], bool]] = {
    "promote": ({"wish": m.PROMOTE}, FINE, (m.SHIFTING, 100), True),
    "abort": ({"wish": m.ABORT}, FINE, (m.ROLLING_BACK, 0), True),
    "a guard fails": ({}, BAD, (m.ROLLING_BACK, 0), True),
    "another revision": ({"abort": "the spec asks for revision r2 now"}, FINE, (m.ROLLING_BACK, 0), True),
    "a pause": ({"wish": m.PAUSE}, FINE, (m.HOLDING, 50), False),
    "suspended": ({"hold": True}, FINE, (m.HOLDING, 50), False),
    "nothing": ({}, FINE, (m.HOLDING, 50), False),
    "no traffic": ({}, counted(totals(0), totals(0)), (m.HOLDING, 50), False),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_ends_it(case: str) -> None:
    changes, seen, expected, over = ENDS[case]
    found = after(DAY, plan(), begun(), seen, **changes)
    assert (found.state, found.weight) == expected
    assert found.experiment is not None
    assert found.experiment.until == ("2026-01-02T12:00:00Z" if over else None)


def test_after_its_duration_the_larger_steps_follow() -> None:
    week = plan(7 * DAY)
    rollout = advance(week, scene(router(weight=50)), at(m.SHIFTING, 50, 2, {"began": STAMP})).rollout
    assert rollout.next_step_at == "2026-01-08T12:00:00Z"
    assert after(7 * DAY - 1, week, rollout).state == m.HOLDING
    moved = after(7 * DAY, week, rollout)
    assert (moved.state, moved.weight) == (m.SHIFTING, 100)
    assert moved.experiment == TODAY.model_copy(update={"until": "2026-01-08T12:00:00Z"})


# the spec as it is after a day → when the split is to move (None: only when that is asked for)
EDITS: dict[str, tuple[Plan, str | None]] = {
    "a duration": (plan(7 * DAY), "2026-01-08T12:00:00Z"),
    "another weight": (plan(ENDLESS, 10), None),
    "another weight and a duration": (plan(2 * DAY, 10), "2026-01-03T12:00:00Z"),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_moves_the_end_and_never_the_split(case: str) -> None:
    edited, end = EDITS[case]
    found = after(DAY, edited, begun())
    assert (found.state, found.weight, found.next_step_at) == (m.HOLDING, 50, end)


def test_a_duration_that_is_taken_away_or_changed_counts_from_the_beginning() -> None:
    lasting = after(DAY, plan(7 * DAY), begun())
    assert after(8 * DAY, plan(), lasting).state == m.HOLDING
    assert after(8 * DAY, plan(14 * DAY), lasting).next_step_at == "2026-01-15T12:00:00Z"
    assert after(1.5 * DAY, plan(DAY), lasting).state == m.SHIFTING


def test_an_experiment_that_is_taken_away_was_a_step_like_another() -> None:
    assert (after(DAY, PLAN, begun()).state, after(DAY, PLAN, begun()).weight) == (m.SHIFTING, 100)


def test_what_is_over_does_not_begin_again() -> None:
    moved = at(m.SHIFTING, 75, 3, {"began": STAMP}, experiment=DONE)
    held = advance(plan(ENDLESS, 75), scene(router(weight=75)), moved).rollout
    assert held.experiment == DONE


def test_its_evidence_is_written_ever_more_seldom() -> None:
    written, rollout = 0, begun()
    for hour in range(1, 24 * 60):
        found = after(3600.0 * hour, plan(), rollout)
        written, rollout = written + (found != rollout), found
    assert written <= 20, "in two months"
    assert rollout.evidence


# seconds since it began → the look that is written
LOOKS = {-300: 0, 0: 0, 59: 0, 60: 1, 179: 1, 180: 2, 419: 2, 420: 3, 30 * 86400: 15}


@pytest.mark.parametrize("seconds", LOOKS)
def test_the_looks_of_a_test_without_an_end(seconds: int) -> None:
    assert after(seconds, plan(), begun()).memory["look"] == [LOOKS[seconds]]


def test_a_test_without_an_end_remembers_no_time() -> None:
    lasting = after(DAY, plan(7 * DAY), begun())
    assert lasting.memory["seconds"] == 7 * DAY
    assert "seconds" not in after(DAY, plan(), lasting).memory


def test_what_it_waits_for_is_told() -> None:
    seen = scene(router(**{**FINE, "weight": 50}), now=NOW + timedelta(hours=1))
    assert advance(plan(), seen, begun()).message == "step 2 of 3: 50 % of the users until promote or abort is asked for"
    assert advance(plan(DAY), seen, begun()).message == "step 2 of 3: 50 % of the users until 2026-01-02T12:00:00Z"


def test_an_arm_that_was_promoted_before_is_tested_no_more() -> None:
    o = make_observed(changes={"rollout": {"experiment": {"weight": 50}}}, status={"arms": [Arm(name="new", revision="r1", promoted=True)]})
    again = plan_of(o, draft(o), "new")
    assert (again.steps, again.experiment) == (((100, 0.0),), None)


def planned(fixed: Experiment | None = None, **experiment: Any) -> Plan:
    o = make_observed(changes={"rollout": {"experiment": experiment}})
    return plan_of(o, draft(o), "new", fixed)


def test_it_is_a_step_among_the_steps() -> None:
    assert planned(weight=50, duration="14d").steps == ((10, 1800.0), (50, 14 * DAY), (100, 0.0))
    assert planned(weight=30).steps == ((10, 1800.0), (30, ENDLESS), (50, 3600.0), (100, 0.0))
    assert planned(weight=5).experiment == (5, ENDLESS)


def test_a_split_that_is_fixed_stays_whatever_weight_the_spec_names_meanwhile() -> None:
    assert planned(TODAY, weight=30, duration="14d").experiment == (50, 14 * DAY)
    assert after(DAY, planned(TODAY, weight=30), begun()).weight == 50


def test_after_its_end_the_spec_names_another_one_and_users_move_on_as_by_the_steps() -> None:
    edited = planned(DONE, weight=75)
    assert (edited.steps, edited.experiment) == (((10, 1800.0), (50, 3600.0), (100, 0.0)), None)
    held = advance(edited, scene(router(weight=50)), at(m.SHIFTING, 50, 2, {"began": STAMP}, experiment=DONE)).rollout
    assert (held.state, held.next_step_at) == (m.HOLDING, "2026-01-01T13:00:00Z")


def test_a_weight_that_is_held_below_an_experiment_without_end_has_an_end() -> None:
    held = advance(planned(weight=30), scene(router(weight=20)), at(m.SHIFTING, 20, 2, {"began": STAMP})).rollout
    assert held.next_step_at == "2026-01-01T13:00:00Z"
