"""The edges of a rollout: the second in which patience ends, what is counted, and what is written of it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.api.status import Rollout
from finetune_operator.decide.arms import rollout as arms
from finetune_operator.decide.rollout import states as m
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back
from finetune_operator.observed import ArmHealth
from finetune_operator.traffic import ArmTotals, RouterState
from finetune_operator.workloads.run import Waiting

from tests.unit.operator.helpers import NOW, STAMP, draft, make_observed, make_revision
from tests.unit.operator.test_rollout import BOTH_BAD, EMPTY, FINE, PLAN, READY, at, baking, counted, holding, router, scene, totals

ONE = ArmHealth(wanted=1, ready=1, pods=1)
OLD = "2026-01-01T11:00:00Z"


def before(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def remembering(rollout: Rollout, **memory: Any) -> Rollout:
    return rollout.model_copy(update={"memory": {**rollout.memory, **memory}})


# what has lasted how long → the state afterwards, at the last second of patience and one later
PATIENCE: dict[str, tuple[int, Any, Any, tuple[str, str]]] = {
    "the new arm gets ready": (
        600, lambda t: at(m.DEPLOYING, memory={"since": t}), lambda: scene(canary=EMPTY), (m.DEPLOYING, m.ROLLING_BACK),
    ),
    "the routers connect": (
        600, lambda t: at(m.CONNECTING, memory={"since": t}), lambda: scene(router(version="x")), (m.CONNECTING, m.ROLLING_BACK),
    ),
    "the routers hear a weight": (
        600, lambda t: at(m.SHIFTING, 10, 1, {"began": t}), lambda: scene(router(weight=0)), (m.SHIFTING, m.ROLLING_BACK),
    ),
    "what is live is down": (
        60, lambda t: at(m.DEPLOYING, memory={"dark": t}), lambda: scene(stable=EMPTY), (m.DEPLOYING, m.CONNECTING),
    ),
    "the new arm is down": (
        60, lambda t: remembering(holding(), down=t), lambda: scene(router(**FINE), canary=EMPTY), (m.HOLDING, m.ROLLING_BACK),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PATIENCE)
def test_patience_lasts_to_the_second(case: str) -> None:
    seconds, rollout, seen, states = PATIENCE[case]
    assert tuple(advance(PLAN, seen(), rollout(before(s))).rollout.state for s in (seconds, seconds + 1)) == states


def test_what_never_began_is_not_late() -> None:
    hasty = replace(PLAN, deadline=0.0)
    unmarked = at(m.CONNECTING).model_copy(update={"memory": {}})
    assert advance(hasty, scene(router(version="x")), unmarked).rollout.state == m.CONNECTING


def test_a_scene_holds_nothing_unless_it_is_told_to() -> None:
    assert advance(PLAN, scene(router()), at(m.CONNECTING)).rollout.state == m.SHIFTING


def test_restarts_are_told_while_the_new_arm_is_not_ready() -> None:
    seen = scene(canary=replace(EMPTY, restarts=3))
    assert advance(PLAN, seen, at(m.DEPLOYING)).message == "the new arm: 0 of 2 pods are ready; its containers were restarted 3 times"


def test_one_pod_is_enough_where_one_is_wanted() -> None:
    warm = router(totals={"old": totals(healthy=1), "new": totals(healthy=1)})
    assert advance(PLAN, scene(warm, stable=ONE, canary=ONE), at(m.DEPLOYING)).rollout.state == m.SHIFTING
    back = advance(PLAN, scene(router(weight=10), stable=ONE, abort="r2 is wanted"), holding())
    assert back.rollout.state == m.ROLLING_BACK


def test_before_anybody_is_on_it_a_rollout_is_taken_back_though_nothing_else_serves() -> None:
    assert advance(PLAN, scene(router(), stable=EMPTY, abort="r2 is wanted"), at(m.CONNECTING)).rollout.state == m.ROLLING_BACK


COLD = {"old": totals(), "new": totals(healthy=0)}
CONNECTING: dict[str, tuple[tuple[RouterState, ...], str]] = {
    "one of two is cold": ((router(), router("router-1", totals=COLD)), m.CONNECTING),
    "the cold one is not ready": ((router(), router("router-1", totals=COLD, ready=False)), m.SHIFTING),
    "what is live is cold": ((router(totals={"old": totals(healthy=0), "new": totals()}),), m.CONNECTING),
}


@pytest.mark.parametrize("case", CONNECTING)
def test_every_ready_router_must_be_warm_for_both(case: str) -> None:
    routers, state = CONNECTING[case]
    assert advance(PLAN, scene(*routers), at(m.CONNECTING)).rollout.state == state


def test_the_routers_that_serve_a_weight_are_counted() -> None:
    routers = (router(weight=10), router("router-1", weight=10), router("router-2"))
    assert advance(PLAN, scene(*routers), at(m.SHIFTING, 10, 1)).message == "step 1 of 3: 2 of 3 routers serve 10 %"


STEPS = Plan(((10, 30.0), (50, 60.0), (100, 7.0)), bake=90.0, deadline=600.0, guards=Guards())
# weight in force → (state, seconds until the next step)
HOLDS = {10: (m.HOLDING, 30), 20: (m.HOLDING, 60), 50: (m.HOLDING, 60), 99: (m.HOLDING, 7), 100: (m.BAKING, 90)}


@pytest.mark.parametrize("weight", HOLDS)
def test_a_step_is_held_as_long_as_the_plan_says(weight: int) -> None:
    state, seconds = HOLDS[weight]
    held = advance(STEPS, scene(router(weight=weight)), at(m.SHIFTING, weight, 1)).rollout
    assert (held.state, held.next_step_at, held.memory["seconds"]) == (state, before(-seconds), seconds)


def test_a_weight_beyond_all_steps_is_not_held() -> None:
    short = replace(STEPS, steps=((10, 30.0), (50, 60.0)))
    assert advance(short, scene(router(weight=70)), at(m.SHIFTING, 70, 2)).rollout.next_step_at == STAMP


def test_a_step_is_not_over_a_second_early() -> None:
    early = holding(next_step_at=before(-1))
    assert advance(PLAN, scene(router(**FINE)), early).rollout.state == m.HOLDING


@pytest.mark.parametrize(("left", "whole", "begins_again"), [(31, 30.0, False), (32, 30.0, True), (3630, 30.0, True), (3600, 0.0, True)])
def test_a_step_that_began_while_the_clock_was_ahead_begins_again(left: int, whole: float, begins_again: bool) -> None:
    rollout = remembering(holding(next_step_at=before(-left)), began=before(whole - left), seconds=whole)
    found = advance(PLAN, scene(router(**FINE)), rollout)
    if whole:
        assert found.rollout.state == m.HOLDING
        assert (found.rollout.next_step_at, found.rollout.memory["began"]) == (
            (before(-whole), STAMP) if begins_again else (before(-left), before(whole - left))
        )
    else:
        assert found.rollout.state == m.SHIFTING


def test_both_arms_failing_while_it_bakes_holds_it() -> None:
    step = advance(PLAN, scene(router(**{**BOTH_BAD, "weight": 100})), baking())
    assert (step.rollout.state, step.reason) == (m.BAKING, c.PAUSED)
    assert step.message.startswith("all users are on the new arm; the old one is kept warm: errors: canary 50.0 %")


def test_what_the_pods_of_an_arm_that_went_down_wait_for_is_told() -> None:
    seen = scene(router(**FINE), canary=replace(EMPTY, waiting=Waiting(c.UNSCHEDULABLE, "no node has room")))
    assert advance(PLAN, seen, holding()).message == "no pod of the new arm is ready, 10 % of the users are on it; no node has room"


def test_the_guard_that_failed_is_named() -> None:
    fast, slow = ((100.0, 500.0), (math.inf, 500.0)), ((100.0, 0.0), (9000.0, 500.0), (math.inf, 500.0))
    seen = scene(router(weight=10, totals={"new": ArmTotals(500, 0, slow, 2), "old": ArmTotals(500, 0, fast, 2)}))
    assert advance(PLAN, seen, holding()).message.startswith("rolling back: guard latency failed at 10 %: latency: p50")


def test_the_evidence_that_is_lacking_is_told() -> None:
    few = {"weight": 10, "totals": {"new": totals(150), "old": ArmTotals(900, 0, (), 2)}}
    step = advance(PLAN, scene(router(**few)), holding())
    lacking = "latency: canary 150, stable 0 answers timed, 10 of each are compared"
    assert step.message == f"step 1 of 3, 10 %: goes on once there is enough traffic to judge ({lacking})"


# seconds since the step began, of how many → the look that is written
LOOKS: list[tuple[int, float, list[Any]]] = [
    (0, 100.0, [0]), (9, 100.0, [0]), (10, 100.0, [1]), (55, 100.0, [5]), (100, 100.0, [10, "Insufficient"]),
    (199, 100.0, [10, "Insufficient"]), (200, 100.0, [11, "Insufficient"]), (300, 100.0, [12, "Insufficient"]),
    (30, 10.0, [10, "Insufficient"]), (69, 10.0, [10, "Insufficient"]), (70, 10.0, [11, "Insufficient"]), (130, 10.0, [12, "Insufficient"]),
    (0, 0.0, [10, "Insufficient"]), (60, 0.0, [11, "Insufficient"]),
]  # fmt: skip


@pytest.mark.parametrize(("elapsed", "seconds", "look"), LOOKS)
def test_looks(elapsed: int, seconds: float, look: list[Any]) -> None:
    rollout = remembering(holding(next_step_at=before(elapsed - seconds)), began=before(elapsed), seconds=seconds)
    seen = scene(router(**counted(totals(5), totals(45))))
    written = advance(PLAN, seen, rollout).rollout
    assert written.memory["look"] == look
    again = advance(PLAN, scene(router(**counted(totals(6), totals(46)))), written).rollout
    assert again == written, "the next one is written at the next look"


def test_a_look_without_a_beginning_is_the_last_one() -> None:
    rollout = holding(next_step_at=before(-60)).model_copy(update={"memory": {}})
    assert advance(PLAN, scene(router(**FINE)), rollout).rollout.memory["look"] == [10]
    timed = holding(next_step_at=before(-60)).model_copy(update={"memory": {"seconds": 5.0}})
    assert advance(PLAN, scene(router(**FINE)), timed).rollout.memory["look"] == [0]


def test_a_step_that_is_held_does_not_write_its_evidence_again() -> None:
    seen = scene(router(**FINE))
    looked = advance(PLAN, replace(seen, hold=True), holding()).rollout
    held = advance(PLAN, replace(scene(router(**counted(totals(300), totals(900)))), hold=True), looked).rollout
    gone_on = advance(PLAN, scene(router(**counted(totals(300), totals(900)))), looked).rollout
    assert ("of 200 requests" in held.evidence[0], "of 300 requests" in gone_on.evidence[0]) == (True, True)


def test_the_next_look_is_written_over_the_last_one() -> None:
    rollout = remembering(holding(next_step_at=before(-60)), began=before(20), seconds=80.0)
    seen = scene(router(**counted(totals(5), totals(45))))
    first = advance(PLAN, seen, rollout).rollout
    second = advance(PLAN, replace(seen, now=NOW + timedelta(seconds=10)), first).rollout
    assert (first.memory["look"], second.memory["look"]) == ([2], [3])


def test_a_story_without_end_is_cut_to_what_the_status_holds() -> None:
    step = roll_back(scene(router()), holding(), "X", "w" * 5000)
    assert (len(step.rollout.memory["cause"]), len(step.rollout.last_decision or "")) == (900, 1024)
    done = advance(PLAN, scene(router()), at(m.ROLLING_BACK, memory={"cause": "w" * 5000}))
    assert len(done.rollout.last_decision or "") == 1024


def test_a_step_counts_its_own_two_arms_and_no_router_that_could_not_be_asked() -> None:
    shifted = advance(PLAN, scene(router(), router("router-1", ready=False, error="refused")), at(m.CONNECTING)).rollout
    assert list(shifted.memory["counted"]) == [f"router-0@{OLD}"]
    third = {"new": totals(200), "old": totals(900), "older": totals(5000, 5000)}
    assert (
        "stable 0.0 % of 900" in advance(PLAN, scene(router(weight=10, totals=third)), holding(next_step_at=before(-9))).rollout.evidence[0]
    )


def test_a_router_that_started_in_the_second_in_which_the_step_began_was_not_asked_then() -> None:
    began = holding().memory["began"]
    late = router("router-1", started=began, **counted(totals(70), totals(0)))
    step = advance(PLAN, scene(router(**counted(totals(5), totals(45))), late), holding(next_step_at=before(-9)))
    assert "of 5 requests" in step.rollout.evidence[0]


def test_histograms_are_read_as_they_were_written() -> None:
    fast = ArmTotals(100, 0, ((100.0, 100.0), (900.0, 100.0), (math.inf, 100.0)), 2)
    shifted = advance(PLAN, scene(router(totals={"new": fast, "old": totals(100)})), at(m.CONNECTING)).rollout
    held = holding(next_step_at=before(-9), memory={**shifted.memory, "began": before(60), "seconds": 60.0})
    slow = ArmTotals(400, 0, ((100.0, 100.0), (900.0, 400.0), (math.inf, 400.0)), 2)
    step = advance(PLAN, scene(router(weight=10, totals={"new": slow, "old": totals(500)})), held)
    assert "latency: p50 canary 500 ms" in step.message, "300 answers since then, all slow, and none lost in the last bucket"
    assert shifted.memory["counted"][f"router-0@{OLD}"]["new"] == [100, 0, [[100.0, 100]]], "all that is above adds nothing"
    few = ArmTotals(105, 0, ((100.0, 105.0), (900.0, 105.0), (math.inf, 105.0)), 2)
    unmeasured = advance(PLAN, scene(router(weight=10, totals={"new": few, "old": totals(500)})), held)
    assert "5 of 100 canary requests seen" in unmeasured.rollout.evidence[1]


# ---- arms


def test_a_base_model_that_is_good_enough_serves_and_says_so() -> None:
    o = make_observed(make_revision(gate="NotNeeded"))
    status = arms(o, draft(o)).status
    assert status.rollout
    at_rest = status.rollout.model_copy(update={"memory": {"settled": True}})
    live = make_observed(
        make_revision(gate="NotNeeded"), status={**dict(status), "rollout": at_rest}, arms={str(status.live_arm): READY},
    )  # fmt: skip
    found = arms(live, draft(live).block(c.NOT_NEEDED, "good enough", reason=c.BASELINE_GOOD_ENOUGH))
    assert (found.phase, found.reason, found.message) == (c.NOT_NEEDED, c.BASELINE_GOOD_ENOUGH, "good enough")


def test_a_step_whose_beginning_is_not_known_is_at_its_first_look() -> None:
    rollout = holding(memory={"seconds": 2.0}, next_step_at="2026-01-01T12:00:02Z")
    assert advance(PLAN, scene(router(**FINE)), rollout).rollout.memory["look"] == [0]
