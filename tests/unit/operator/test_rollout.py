"""The rollout: each state's transitions, one cycle at a time, and which arm is to serve."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator.api.blocks.guards import Guards
from finetune_operator.api.status import Arm, Rollout, Stopped
from finetune_operator.build.router import LATENCY_BOUNDS
from finetune_operator.decide.arms import rollout as arms
from finetune_operator.decide.arms import router_moves
from finetune_operator.decide.draft import ArmWanted, Draft, stamp
from finetune_operator.decide.rollout import counters
from finetune_operator.decide.rollout import states as m
from finetune_operator.decide.rollout.evidence import LOOKS
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.scene import Scene
from finetune_operator.observe import SERVERS_ASKED
from finetune_operator.observed import ArmHealth
from finetune_operator.traffic import ArmTotals, Backend, RouterState, ServerState, Structure
from finetune_operator.workloads.endings import Fall
from finetune_operator.workloads.run import Waiting

from tests.unit.operator.helpers import BY_HEADER, NOW, STAMP, draft, make_observed, make_revision, tried

STRUCTURE = Structure(Backend("old", "old.ml.svc", "r0"), Backend("new", "new.ml.svc", "r1"), "salt", BY_HEADER)
PLAN = Plan(((10, 60.0), (50, 60.0), (100, 0.0)), bake=60.0, deadline=600.0, guards=Guards(minRequests=100))
READY, EMPTY = ArmHealth(wanted=2, ready=2, pods=2), ArmHealth(wanted=2)


def totals(requests: int = 0, errors: int = 0, healthy: int = 2) -> ArmTotals:
    return ArmTotals(requests, errors, ((100.0, requests), (math.inf, requests)), healthy)


def router(pod: str = "router-0", **changes: Any) -> RouterState:
    state = RouterState(
        pod, pod, "2026-01-01T11:00:00Z", ready=True, version=STRUCTURE.version, weight=0, totals={"old": totals(), "new": totals()}
    )
    return replace(state, **changes)


def counted(new: ArmTotals, old: ArmTotals) -> dict[str, Any]:
    return {"weight": 10, "totals": {"new": new, "old": old}}


def scene(*routers: RouterState, **changes: Any) -> Scene:
    known: dict[str, Any] = {"now": NOW, "stable": READY, "canary": READY, "routers_wanted": 2, "structure": STRUCTURE}
    return Scene(routers=routers, **{**known, **changes})


def at(state: str, weight: int = 0, step: int = 0, memory: dict[str, Any] | None = None, **changes: Any) -> Rollout:
    base = Rollout(arm="new", revision="r1", stable="old", state=state, weight=weight, step=step, steps=3)
    return base.model_copy(update={"memory": {"since": STAMP, "created": "c", **(memory or {})}, **changes})


def holding(**changes: Any) -> Rollout:
    """At 10 %, its time over; the routers counted nothing when it began."""
    memory = {"began": "2026-01-01T11:59:00Z", "seconds": 60.0, "counted": {"router-0@2026-01-01T11:00:00Z": {}}}
    return at(**{"state": m.HOLDING, "weight": 10, "step": 1, "memory": memory, "next_step_at": STAMP, **changes})


def dark(**changes: Any) -> Rollout:
    """The same; what is live has had no pod for two minutes."""
    return holding(**{"memory": {**holding().memory, "dark": "2026-01-01T11:58:00Z"}, **changes})


def baking() -> Rollout:
    return holding(state=m.BAKING, weight=100, step=3)


FINE, BAD = counted(totals(200), totals(900)), counted(totals(200, 100), totals(900))
BOTH_BAD = counted(totals(200, 100), totals(900, 450))
UNSEEN = router(version="another", weight=None)
LATE = {"since": "2026-01-01T11:00:00Z"}
GONE = Waiting(c.IMAGE_UNAVAILABLE, "image x cannot be pulled")
# rollout, scene → (state, weight, pushes, words of the message)
MOVES: dict[str, tuple[Rollout, Scene, tuple[str, int, dict[str, int], str]]] = {
    "the new arm is not ready": (at(m.DEPLOYING), scene(canary=EMPTY), (m.DEPLOYING, 0, {}, "the new arm: 0 of 2 pods")),
    "its image cannot be pulled": (at(m.DEPLOYING), scene(canary=replace(EMPTY, waiting=GONE)), (m.DEPLOYING, 0, {}, "image x cannot")),
    "it is never ready: taken back": (at(m.DEPLOYING, memory=LATE), scene(canary=EMPTY), (m.ROLLING_BACK, 0, {}, "progressDeadline")),
    "what is live is not ready: the new one is not to blame": (
        at(m.DEPLOYING, memory=LATE),
        scene(stable=EMPTY),
        (m.DEPLOYING, 0, {}, "the present arm: 0 of 2"),
    ),
    "what is live has one pod of two: enough to begin": (
        at(m.DEPLOYING),
        scene(UNSEEN, stable=ArmHealth(wanted=2, ready=1, pods=2)),
        (m.CONNECTING, 0, {}, "0 of 2 routers"),
    ),
    "what is live has been down for long: the new one need not wait for it": (
        at(m.DEPLOYING, memory={"dark": "2026-01-01T11:00:00Z"}),
        scene(router(totals={"old": totals(healthy=0), "new": totals()}), stable=EMPTY),
        (m.SHIFTING, 100, {"router-0": 100}, "moving 100 %"),
    ),
    "the router's image cannot be pulled: it says so": (
        at(m.CONNECTING),
        scene(router_waiting=GONE),
        (m.CONNECTING, 0, {}, "image x cannot"),
    ),
    "both are ready and no router knows yet": (at(m.DEPLOYING), scene(UNSEEN), (m.CONNECTING, 0, {}, "0 of 2 routers serve both")),
    "a router remembers another weight: it is told 0 before anything else": (
        at(m.CONNECTING),
        scene(router(weight=100)),
        (m.CONNECTING, 0, {"router-0": 0}, "routers serve both"),
    ),
    "a router's cluster is cold": (
        at(m.CONNECTING),
        scene(router(totals={"old": totals(), "new": totals(healthy=0)})),
        (m.CONNECTING, 0, {}, "0 of 2 routers"),
    ),
    "a router cannot be asked: it says which and why": (
        at(m.CONNECTING),
        scene(router(), router("router-1", version=None, error="refused")),
        (m.CONNECTING, 0, {}, "1 of 2 routers serve both arms, the new one to nobody yet; router router-1 cannot be asked: refused"),
    ),
    "the routers never serve it: taken back": (at(m.CONNECTING, memory=LATE), scene(UNSEEN), (m.ROLLING_BACK, 0, {}, "progressDeadline")),
    "its pods are gone again": (at(m.CONNECTING), scene(router(), canary=EMPTY), (m.CONNECTING, 0, {}, "no pod of the new arm is ready")),
    "its pods are gone for good: taken back": (
        at(m.CONNECTING, memory=LATE),
        scene(router(), canary=EMPTY),
        (m.ROLLING_BACK, 0, {}, "no pod of the new arm is ready, not ready within rollout.progressDeadline. Look at its pods."),
    ),
    "what is live goes down before the first step: the new one is not to blame": (
        at(m.CONNECTING, memory=LATE),
        scene(router(totals={"old": totals(healthy=0), "new": totals()}), stable=EMPTY),
        (m.CONNECTING, 0, {}, "0 of 2 routers serve both arms, the new one to nobody yet; no pod of the present arm is ready"),
    ),
    "and stays down: the new one takes over": (
        at(m.CONNECTING, memory={**LATE, "dark": "2026-01-01T11:58:00Z"}),
        scene(router(totals={"old": totals(healthy=0), "new": totals()}), stable=EMPTY, capacity=3),
        (m.SHIFTING, 100, {"router-0": 100}, "moving 100 %"),
    ),
    "it takes over, and then none of its pods is ready either: its time runs": (
        at(m.CONNECTING, memory={**LATE, "outage": True}),
        scene(router(), stable=EMPTY, canary=EMPTY),
        (m.ROLLING_BACK, 0, {}, "no pod of the new arm is ready"),
    ),
    "every router serves both: the first step": (at(m.CONNECTING), scene(router()), (m.SHIFTING, 10, {"router-0": 10}, "moving 10 %")),
    "suspended before the first step": (at(m.CONNECTING), scene(router(), hold=True), (m.CONNECTING, 0, {}, "held at 0 %")),
    "one of two routers serves the weight": (
        at(m.SHIFTING, 10, 1),
        scene(router(weight=10), router("router-1")),
        (m.SHIFTING, 10, {"router-1": 10}, "1 of 2 routers serve 10 %"),
    ),
    "the canary fails while one router is still told": (
        at(m.SHIFTING, 50, 2, {"began": "2026-01-01T11:59:00Z", "counted": {"router-0@2026-01-01T11:00:00Z": {}}}),
        scene(router(**{**BAD, "weight": 50}), router("router-1")),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "guard errors failed at 50 %"),
    ),
    "a router never hears the weight: taken back": (
        at(m.SHIFTING, 50, 2, {"began": "2026-01-01T11:00:00Z"}),
        scene(router(weight=50), router("router-1", version=None, error="refused")),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "router-1 cannot be asked"),
    ),
    "a router that is not ready holds nothing up, but is told": (
        at(m.SHIFTING, 10, 1),
        scene(router(weight=10), router("router-1", ready=False)),
        (m.HOLDING, 10, {}, "10 % of the users until"),
    ),
    "a router was restarted and serves the mounted document": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(weight=0)),
        (m.HOLDING, 10, {"router-0": 10}, "until"),
    ),
    "time is over and the guards pass: the next step": (
        holding(),
        scene(router(**FINE)),
        (m.SHIFTING, 50, {"router-0": 50}, "moving 50 %"),
    ),
    "time is over and suspended": (holding(), scene(router(**FINE), hold=True), (m.HOLDING, 10, {}, "held at 10 %")),
    "time is over with too little traffic: it goes on waiting": (
        holding(),
        scene(router(**counted(totals(5), totals(45)))),
        (m.HOLDING, 10, {}, "enough traffic to judge"),
    ),
    "the canary fails: everybody back, before the time is over": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**BAD)),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "guard errors failed at 10 %"),
    ),
    "the canary fails while suspended: back all the same": (
        holding(),
        scene(router(**BAD), hold=True),
        (m.ROLLING_BACK, 0, {"router-0": 0}, ""),
    ),
    "the canary fails and what is live has no pod: nobody is taken back": (
        holding(),
        scene(router(**BAD), stable=EMPTY),
        (m.HOLDING, 10, {}, "no pod of the present arm"),
    ),
    "what is live goes down in a step: it may come back": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**FINE), stable=EMPTY),
        (m.HOLDING, 10, {}, "10 % of the users until"),
    ),
    "and stays down: all are moved to the new one": (
        dark(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**FINE), stable=EMPTY, capacity=3),
        (m.SHIFTING, 100, {"router-0": 100}, "moving 100 %"),
    ),
    "and stays down, and the new one is suspended: held": (
        dark(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**FINE), stable=EMPTY, hold=True),
        (m.HOLDING, 10, {}, "10 % of the users until"),
    ),
    "and stays down, its time is over and it is paused: held": (
        dark(),
        scene(router(**FINE), stable=EMPTY, wish=m.PAUSE),
        (m.HOLDING, 10, {}, "paused by the user"),
    ),
    "and stays down, and the new one has no pod either: held": (
        dark(),
        scene(router(**FINE), stable=EMPTY, canary=EMPTY),
        (m.HOLDING, 10, {}, "no pod of the new arm"),
    ),
    "and stays down, and both fail: nobody is moved": (
        dark(),
        scene(router(**BOTH_BAD), stable=EMPTY),
        (m.HOLDING, 10, {}, "both arms"),
    ),
    "the canary's pods are all gone: nobody else is moved": (holding(), scene(router(**FINE), canary=EMPTY), (m.HOLDING, 10, {}, "no pod")),
    "its containers crash in the step: everybody back at once": (
        holding(),
        scene(router(**FINE), canary=replace(EMPTY, fall=Fall(NOW - timedelta(seconds=60), "out of memory"))),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "10 % of the users are on it; out of memory"),
    ),
    "they crashed before the step, and its pods are gone: nobody else is moved": (
        holding(),
        scene(router(**FINE), canary=replace(EMPTY, fall=Fall(NOW - timedelta(seconds=61), "out of memory"))),
        (m.HOLDING, 10, {}, "10 % of the users are on it"),
    ),
    "they crash while it bakes: everybody back at once": (
        baking(),
        scene(router(**{**FINE, "weight": 100}), canary=replace(EMPTY, fall=Fall(NOW, "out of memory"))),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "out of memory"),
    ),
    "one of them crashed and another is ready: on to the next step": (
        holding(),
        scene(router(**FINE), canary=replace(READY, fall=Fall(NOW, "out of memory"))),
        (m.SHIFTING, 50, {"router-0": 50}, "moving 50 %"),
    ),
    "both arms crash: held": (
        holding(),
        scene(router(**FINE), canary=replace(EMPTY, fall=Fall(NOW, "out of memory")), stable=EMPTY),
        (m.HOLDING, 10, {}, "out of memory"),
    ),
    "and stay away: everybody back": (
        baking().model_copy(update={"memory": {**baking().memory, "down": "2026-01-01T11:58:00Z"}}),
        scene(router(**{**FINE, "weight": 100}), canary=EMPTY),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "no pod of the new arm"),
    ),
    "both arms have no pod: held": (
        baking().model_copy(update={"memory": {**baking().memory, "down": "2026-01-01T11:58:00Z"}}),
        scene(router(**{**FINE, "weight": 100}), canary=EMPTY, stable=EMPTY),
        (m.BAKING, 100, {}, "no pod of the new arm"),
    ),
    "both arms fail: held, and nobody is moved": (holding(), scene(router(**BOTH_BAD)), (m.HOLDING, 10, {}, "both arms")),
    "the steps were shortened meanwhile: on to the next above": (
        holding(weight=50, step=2),
        scene(router(**{**FINE, "weight": 50})),
        (m.SHIFTING, 100, {"router-0": 100}, "moving 100 %"),
    ),
    "the last step bakes": (at(m.SHIFTING, 100, 3), scene(router(weight=100)), (m.BAKING, 100, {}, "kept warm until")),
    "baked: promoted": (baking(), scene(router(**{**FINE, "weight": 100})), (m.PROMOTED, 100, {}, "promoted")),
    "baked while suspended": (baking(), scene(router(**{**FINE, "weight": 100}), hold=True), (m.BAKING, 100, {}, "kept warm")),
    "it fails while it bakes": (baking(), scene(router(**{**BAD, "weight": 100})), (m.ROLLING_BACK, 0, {"router-0": 0}, "failed at 100 %")),
    "another arm is asked for": (holding(), scene(router(weight=10), abort="r2 is wanted"), (m.ROLLING_BACK, 0, {"router-0": 0}, "r2 is")),
    "another arm is asked for and what is live has no pod: it goes on": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(weight=10), abort="r2 is wanted", stable=EMPTY),
        (m.HOLDING, 10, {}, "until"),
    ),
    "no router ever got the new document: it is over": (
        at(m.ROLLING_BACK, memory={"cause": "refused"}),
        scene(router(version="another", weight=0)),
        (m.ROLLED_BACK, 0, {}, "rolled back: refused"),
    ),
    "not every router is back": (
        at(m.ROLLING_BACK),
        scene(router(), router("router-1", weight=10)),
        (m.ROLLING_BACK, 0, {"router-1": 0}, "rolling back"),
    ),
    "every router is back": (
        at(m.ROLLING_BACK, memory={"cause": "errors"}),
        scene(router()),
        (m.ROLLED_BACK, 0, {}, "rolled back: errors"),
    ),
    "paused before the first step": (at(m.CONNECTING), scene(router(), wish=m.PAUSE), (m.CONNECTING, 0, {}, "paused by the user at 0 %")),
    "paused in a step: it says so at once": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**FINE), wish=m.PAUSE),
        (m.HOLDING, 10, {}, "paused by the user at 10 %"),
    ),
    "time is over and paused": (holding(), scene(router(**FINE), wish=m.PAUSE), (m.HOLDING, 10, {}, "paused by the user")),
    "time is over, both arms fail and paused": (
        holding(),
        scene(router(**BOTH_BAD), wish=m.PAUSE),
        (m.HOLDING, 10, {}, "paused by the user"),
    ),
    "paused while a router is still told": (
        at(m.SHIFTING, 10, 1),
        scene(router(weight=10), router("router-1"), wish=m.PAUSE),
        (m.SHIFTING, 10, {"router-1": 10}, "1 of 2 routers"),
    ),
    "paused, and the canary fails: back all the same": (
        holding(),
        scene(router(**BAD), wish=m.PAUSE),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "guard errors failed"),
    ),
    "paused while it bakes": (
        baking(),
        scene(router(**{**FINE, "weight": 100}), wish=m.PAUSE),
        (m.BAKING, 100, {}, "paused by the user at 100 %"),
    ),
    "resumed: the next step, for its time is over": (
        holding(),
        scene(router(**FINE), wish=m.RESUME),
        (m.SHIFTING, 50, {"router-0": 50}, "moving 50 %"),
    ),
    "promoted before the first step: all at once": (
        at(m.CONNECTING),
        scene(router(), wish=m.PROMOTE),
        (m.SHIFTING, 100, {"router-0": 100}, "step 3 of 3: moving 100 %"),
    ),
    "promoted in a step: its time and its traffic are not waited for": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**counted(totals(5), totals(45))), wish=m.PROMOTE),
        (m.SHIFTING, 100, {"router-0": 100}, "moving 100 %"),
    ),
    "promoted, and it has fewer pods than the load needs: nobody else is moved": (
        holding(),
        scene(router(**FINE), capacity=3, wish=m.PROMOTE),
        (m.HOLDING, 10, {}, "2 of the 3 pods"),
    ),
    "promoted in place of what serves nobody: fewer pods are better than none": (
        holding(),
        scene(router(**FINE), stable=EMPTY, capacity=3, wish=m.PROMOTE),
        (m.SHIFTING, 100, {"router-0": 100}, "moving 100 %"),
    ),
    "promoted, and the canary fails: back all the same": (
        holding(),
        scene(router(**BAD), wish=m.PROMOTE),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "guard errors failed"),
    ),
    "promoted, and no pod of it is ready: nobody else is moved": (
        holding(),
        scene(router(**FINE), canary=EMPTY, wish=m.PROMOTE),
        (m.HOLDING, 10, {}, "no pod of the new arm"),
    ),
    "promoted while suspended": (holding(), scene(router(**FINE), hold=True, wish=m.PROMOTE), (m.HOLDING, 10, {}, "held at 10 %")),
    "promoted while suspended, in a step": (
        holding(next_step_at="2026-01-01T12:00:50Z"),
        scene(router(**FINE), hold=True, wish=m.PROMOTE),
        (m.HOLDING, 10, {}, "until"),
    ),
    "promoted already: the bake is not cut short": (
        baking().model_copy(update={"next_step_at": "2026-01-01T12:00:50Z"}),
        scene(router(**{**FINE, "weight": 100}), wish=m.PROMOTE),
        (m.BAKING, 100, {}, "kept warm until"),
    ),
    "aborted before it is ready": (at(m.DEPLOYING), scene(canary=EMPTY, wish=m.ABORT), (m.ROLLING_BACK, 0, {}, "aborted by the user")),
    "aborted in a step: everybody back": (
        holding(),
        scene(router(**FINE), wish=m.ABORT),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "aborted by the user"),
    ),
    "aborted while it bakes": (
        baking(),
        scene(router(**{**FINE, "weight": 100}), wish=m.ABORT),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "aborted"),
    ),
    "aborted and what is live has no pod: nobody is moved": (
        holding(),
        scene(router(**FINE), stable=EMPTY, wish=m.ABORT),
        (m.HOLDING, 10, {}, "to be aborted at 10 %"),
    ),
    "aborted, and everybody is going back already": (
        at(m.ROLLING_BACK, memory={"cause": "errors"}),
        scene(router(weight=10), wish=m.ABORT),
        (m.ROLLING_BACK, 0, {"router-0": 0}, "rolling back: errors"),
    ),
    "there is no router": (at(m.ROLLING_BACK), scene(), (m.ROLLED_BACK, 0, {}, "rolled back")),
}


@pytest.mark.parametrize("case", MOVES)
def test_move(case: str) -> None:
    rollout, seen, (state, weight, pushes, words) = MOVES[case]
    step = advance(PLAN, seen, rollout)
    assert (step.rollout.state, step.rollout.weight, dict(step.pushes)) == (state, weight, pushes)
    assert words in step.message


def test_a_step_counts_from_its_beginning_and_a_restarted_router_from_zero() -> None:
    began = {
        "began": "2026-01-01T11:59:00Z",
        "seconds": 60.0,
        "counted": {"router-0@2026-01-01T11:00:00Z": {"new": [100, 90, [[100.0, 100]]]}},
    }
    before = router(**counted(totals(250, 90), totals(0)))
    restarted = router("router-1", started="2026-01-01T11:59:30Z", **counted(totals(40, 1), totals(0)))
    unasked = router("router-2", **counted(totals(9999, 9999), totals(0)))
    step = advance(PLAN, scene(before, restarted, unasked), at(m.HOLDING, 10, 1, began, next_step_at=STAMP))
    assert "of 190 requests" in step.rollout.evidence[0], "150 since the step began, 40 of the restarted one, none of other steps"


def test_evidence_is_written_at_ten_looks_and_then_when_the_verdict_changes() -> None:
    rollout, written = holding(next_step_at="2026-01-01T12:00:00Z"), 0
    for second in range(-60, 300, 2):
        new = advance(PLAN, scene(router(**counted(totals(60 + second // 10), totals(500))), now=NOW + timedelta(seconds=second)), rollout)
        written, rollout = written + (new.rollout != rollout), new.rollout
        assert new.rollout.state == m.HOLDING
    assert written <= LOOKS + 1 + 5 + 1


UNJUDGED = scene(router(**counted(totals(5), totals(45))))
# what is asked for, seconds after the step's time → (state, weight, words, reason)
INSUFFICIENT: dict[str, tuple[str, int, tuple[str, int, str, str]]] = {
    "extended": ("Rollback", 300, (m.HOLDING, 10, "goes on once there is enough traffic", "")),
    "extended for ever": ("Extend", 301, (m.HOLDING, 10, "goes on once there is enough traffic", "")),
    "held, which is told": ("Hold", 301, (m.HOLDING, 10, "goes on once there is enough traffic", c.PAUSED)),
    "the next step all the same": ("Promote", 301, (m.SHIFTING, 50, "moving 50 %", "")),
    "everybody back": (
        "Rollback",
        301,
        (m.ROLLING_BACK, 0, "not enough to judge within guards.maxExtension (errors: canary", c.GUARD_FAILED),
    ),
}


@pytest.mark.parametrize("case", INSUFFICIENT)
def test_a_step_that_cannot_be_judged(case: str) -> None:
    choice, late, (state, weight, words, reason) = INSUFFICIENT[case]
    plan = replace(PLAN, extension=300.0, guards=PLAN.guards.model_copy(update={"on_insufficient": choice}))
    rollout = holding(next_step_at=stamp(NOW - timedelta(seconds=late)))
    step = advance(plan, UNJUDGED, rollout)
    assert (step.rollout.state, step.rollout.weight, step.reason) == (state, weight, reason)
    assert words in step.message


@pytest.mark.parametrize("held", [{"wish": m.PAUSE}, {"hold": True}], ids=["paused", "suspended"])
def test_for_want_of_evidence_while_it_was_held_nobody_is_taken_back(held: dict[str, Any]) -> None:
    plan = replace(PLAN, extension=300.0, guards=PLAN.guards.model_copy(update={"on_insufficient": "Rollback"}))
    rollout = holding(next_step_at=stamp(NOW - timedelta(hours=5)))
    rollout = advance(plan, replace(UNJUDGED, **held), rollout).rollout
    assert rollout.state == m.HOLDING

    def after(seconds: float) -> str:
        nonlocal rollout
        rollout = advance(plan, replace(UNJUDGED, now=NOW + timedelta(seconds=seconds)), rollout).rollout
        return rollout.state

    assert (after(60), after(359), after(361)) == (m.HOLDING, m.HOLDING, m.ROLLING_BACK)


def test_nobody_is_taken_back_to_an_arm_without_a_pod_for_want_of_evidence() -> None:
    plan = replace(PLAN, guards=PLAN.guards.model_copy(update={"on_insufficient": "Rollback"}))
    rollout = holding(next_step_at=stamp(NOW - timedelta(seconds=1)))
    assert advance(plan, replace(UNJUDGED, stable=EMPTY), rollout).rollout.state == m.HOLDING


def test_evidence_that_comes_late_counts_whatever_was_chosen() -> None:
    plan = replace(PLAN, guards=PLAN.guards.model_copy(update={"on_insufficient": "Rollback"}))
    rollout = holding(next_step_at=stamp(NOW - timedelta(seconds=999)))
    assert advance(plan, scene(router(**FINE)), rollout).rollout.state == m.SHIFTING


def served(
    arm: str, pod: str, answers: int, milliseconds: float = 90.0, unusable: int = 0, started: str = "2026-01-01T11:00:00Z"
) -> ServerState:
    bounds = ((50.0, 0.0), (milliseconds, float(answers)), (math.inf, float(answers)))
    return ServerState(pod, started, arm, ArmTotals(first_token=bounds, output_token=bounds, answers=answers, unusable=unusable))


TOKENS = replace(PLAN, guards=PLAN.guards.model_copy(update={"max_time_to_first_token_regression_percent": 25}))


def test_servers_count_from_the_beginning_of_the_step() -> None:
    old, new = served("old", "old-0", 5000), served("new", "new-0", 3000, 900.0)
    began = advance(TOKENS, replace(scene(router(weight=10)), servers=(old, new)), at(m.SHIFTING, 10, 1)).rollout
    assert set(began.memory["counted"]) == {"router-0@2026-01-01T11:00:00Z", "old-0@2026-01-01T11:00:00Z", "new-0@2026-01-01T11:00:00Z"}
    assert began.memory["counted"]["new-0@2026-01-01T11:00:00Z"] == {"new": [0, 0, [], [[900.0, 3000]], [[900.0, 3000]], 3000, 0]}
    seen = scene(router(**FINE), now=NOW + timedelta(seconds=30))
    slow = (served("old", "old-0", 5900), served("new", "new-0", 3200, 900.0))
    step = advance(TOKENS, replace(seen, servers=slow), began)
    assert step.rollout.state == m.ROLLING_BACK
    assert "guard time to first token failed at 10 %: time to first token: p50 canary 475 ms" in step.message, "of 200 answers, not 3,200"
    late = served("new", "new-1", 300, started="2026-01-01T12:00:10Z")
    mixed = (served("old", "old-0", 5900), served("new", "new-0", 3000, 900.0), late)
    assert advance(TOKENS, replace(seen, servers=mixed), began).rollout.state == m.HOLDING, "a server that started since counts from zero"


def large(counted: float, bounds: int = 40, first: int = 0) -> list[ServerState]:
    """Both arms' servers that are asked, with so many bounds of each of their histograms in use."""
    times = tuple((round(10.0 * 1.3**i, 1), counted + i) for i in range(bounds))
    full = ArmTotals(first_token=times, output_token=times, answers=int(counted), unusable=10**5)
    pods = [(arm, f"support-bot-{arm}-6f7d8c9b4-abc{i + first:02}") for arm in ("old", "new") for i in range(SERVERS_ASKED)]
    return [ServerState(pod, "2026-01-01T11:00:00Z", arm, full) for arm, pod in pods]


def large_routers() -> list[RouterState]:
    both = {arm: ArmTotals(10**6, 10**4, tuple((bound, 1e6 + i) for i, bound in enumerate(LATENCY_BOUNDS)), 2) for arm in ("old", "new")}
    return [router(f"support-bot-router-6f7d8c9b4-abc{i}", weight=10, totals=both) for i in range(3)]


def arms_of(counted: dict[str, Any]) -> Counter[str]:
    """How many servers of each arm are in it."""
    return Counter(arm for name, arms in counted.items() for arm in arms if "router" not in name)


def test_counters_of_large_arms_leave_room_in_the_status() -> None:
    """Of 64 KiB: no more servers than there is room for, of both arms alike, and every router."""
    routers = large_routers()
    for bounds, servers in ((12, [8, 8]), (40, [2, 2]), (400, [])):
        seen = scene(*routers, servers=tuple(large(1e6, bounds)))
        held = advance(TOKENS, seen, at(m.SHIFTING, 10, 1)).rollout
        found = held.memory["counted"]
        assert (len(found) - sum(servers), sorted(arms_of(found).values())) == (3, servers), bounds
        assert len(json.dumps(held.to_dict())) < 18 * 1024, bounds


def test_a_server_whose_counters_there_was_no_room_for_does_not_count() -> None:
    seen = scene(router(**FINE), servers=tuple(large(1e6)))
    began = advance(TOKENS, seen, at(m.SHIFTING, 10, 1)).rollout
    later = replace(seen, servers=tuple(large(1e6 + 10)), now=NOW + timedelta(seconds=30))
    canary, stable = counters.counted(later, began)
    assert (canary.answers, stable.answers) == (20, 20), "ten of each of those that there was room for"
    assert counters.based(later, began) == began, "nor is it written again and again"


def test_an_arm_of_which_no_server_answered_when_the_step_began_has_room_all_the_same() -> None:
    seen = scene(router(**FINE), servers=tuple(large(1e6)))
    mute = tuple(replace(s, totals=None) if s.arm == "new" else s for s in seen.servers)
    began = advance(TOKENS, replace(seen, servers=mute), at(m.SHIFTING, 10, 1)).rollout
    based = counters.based(replace(seen, now=NOW + timedelta(seconds=2)), began)
    assert arms_of(based.memory["counted"]) == {"old": 2, "new": 2}


def test_what_servers_counted_that_are_gone_is_forgotten_when_others_come() -> None:
    """An arm's pods come and go while a split is kept for weeks."""
    began = advance(TOKENS, scene(router(**FINE), servers=tuple(large(1e6))), at(m.SHIFTING, 10, 1)).rollout
    r = began
    for generation in range(1, 4):
        r = counters.based(scene(router(**FINE), servers=tuple(large(1e6, first=10 * generation))), r)
        names = [name for name in r.memory["counted"] if "router" not in name]
        assert len(names) == 4
        assert all(f"abc{generation}" in name for name in names)
    assert "router-0@2026-01-01T11:00:00Z" in r.memory["counted"]


def test_a_server_that_cannot_be_asked_holds_the_step_when_its_time_is_over() -> None:
    mute = (ServerState("old-0", "2026-01-01T11:00:00Z", "old"), ServerState("new-0", "2026-01-01T11:00:00Z", "new"))
    step = advance(TOKENS, replace(scene(router(**FINE)), servers=mute), holding())
    assert (step.rollout.state, step.reason) == (m.HOLDING, c.PAUSED)
    assert step.message == "step 1 of 3, 10 %: held, time to first token: no server of the canary tells it"


# ---- which arm


def decided(o: Any) -> Draft:
    return arms(o, draft(o))


PASSED = make_revision(gate="Passed", artifact="/a", promoted=False)


def wanted_arm(**changes: Any) -> str:
    """The name of r1's arm under that spec."""
    first = decided(make_observed(PASSED, changes=changes))
    return first.arms[-1].name


def test_the_first_rollout_goes_against_the_base_model_which_is_made_for_it() -> None:
    d = decided(make_observed(PASSED))
    assert [a.revision for a in d.arms] == ["base", "r1"]
    assert d.status.rollout is not None
    assert (d.status.live_revision, d.status.rollout.weight, d.status.rollout.steps) == ("base", 0, 3)
    assert (d.phase, d.routing and d.routing.weight) == (c.DEPLOYING, 0)


NEW = wanted_arm()
OTHER = wanted_arm(serving={"replicas": 2, "image": "other:1"})
LIVE = {"live_arm": NEW, "live_revision": "r1", "arms": [Arm(name=NEW, revision="r1", promoted=True)]}
SETTLED = {"rollout": Rollout(arm=NEW, revision="r1", stable="base", state=m.PROMOTED, weight=100, steps=3, memory={"settled": True})}
UNSETTLED = {"rollout": SETTLED["rollout"].model_copy(update={"memory": {}})}
HEALTHY = {"arms": {NEW: READY}}
REJECTED = Stopped(reason=c.GUARD_FAILED, message="it failed", time=STAMP, tried=tried("t1"))
WITH_OTHER = {"serving": {"replicas": 2, "image": "other:1"}}
PROMOTED = PASSED.model_copy(update={"promoted": True})


def test_names_of_arms_depend_on_revision_and_redeployed_fields_alone() -> None:
    assert wanted_arm(serving={"replicas": 7}, compute={"nodes": 1}, rollout={}) == NEW
    assert len({NEW, OTHER, wanted_arm(pods={"nodeSelector": {"a": "b"}})}) == 3


# status, seen, spec → (phase, reason, arms by name, state of the rollout)
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, str, list[str], str]]] = {
    "what is wanted is live": ({**LIVE, **SETTLED}, HEALTHY, {}, (c.LIVE, c.LIVE, [NEW], m.PROMOTED)),
    "what is live lost its pods": (
        {**LIVE, **SETTLED},
        {"arms": {NEW: EMPTY}},
        {},
        (c.DEPLOYING, c.NO_READY_PODS, [NEW], m.PROMOTED),
    ),
    "another image is wanted": ({**LIVE, **SETTLED}, HEALTHY, WITH_OTHER, (c.DEPLOYING, c.DEPLOYING, [NEW, OTHER], m.DEPLOYING)),
    "another image, but suspended": (
        {**LIVE, **SETTLED},
        HEALTHY,
        {**WITH_OTHER, "suspend": True},
        (c.PENDING, "", [NEW], m.PROMOTED),
    ),
    "another image, but a router still serves the last rollout": (
        {**LIVE, **UNSETTLED},
        {**HEALTHY, "routers": (UNSEEN,)},
        WITH_OTHER,
        (c.DEPLOYING, c.DEPLOYING, [NEW], m.PROMOTED),
    ),
    "the wanted arm was rejected": (
        {**LIVE, **SETTLED, "arms": [*LIVE["arms"], Arm(name=OTHER, revision="r1", stopped=REJECTED)]},
        HEALTHY,
        WITH_OTHER,
        (c.REJECTED, c.GUARD_FAILED, [NEW], m.PROMOTED),
    ),
    "it was rejected under another spec": (
        {
            **LIVE,
            **SETTLED,
            "arms": [*LIVE["arms"], Arm(name=OTHER, revision="r1", stopped=REJECTED.model_copy(update={"tried": tried("t0")}))],
        },
        HEALTHY,
        WITH_OTHER,
        (c.DEPLOYING, c.DEPLOYING, [NEW, OTHER], m.DEPLOYING),
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choice(case: str) -> None:
    status, seen, spec, (phase, reason, names, state) = CHOICES[case]
    d = decided(make_observed(PROMOTED, status=status, changes=spec, **seen))
    assert (d.phase, d.reason, [a.name for a in d.arms]) == (phase, reason, names)
    assert d.status.rollout is not None
    assert d.status.rollout.state == state
    assert d.serving is not None, "users are served whatever is decided"


@pytest.mark.parametrize(("health", "state", "weight"), [(EMPTY, m.CONNECTING, 0), (READY, m.SHIFTING, 10)], ids=["gone", "ready"])
def test_nobody_is_moved_to_pods_that_the_routers_know_and_kubernetes_does_not(health: ArmHealth, state: str, weight: int) -> None:
    connecting = at(m.CONNECTING, arm=OTHER, stable=NEW)
    status = {**LIVE, "arms": [*LIVE["arms"], Arm(name=OTHER, revision="r1")], "rollout": connecting}
    seen = {"status": status, "changes": WITH_OTHER, "arms": {NEW: READY, OTHER: health}}
    routing = decided(make_observed(PROMOTED, **seen)).routing
    assert routing is not None
    warm = router(version=routing.structure.version, totals={NEW: totals(), OTHER: totals()})
    d = decided(make_observed(PROMOTED, routers=(warm,), **seen))
    assert d.status.rollout is not None
    assert (d.status.rollout.state, d.status.rollout.weight) == (state, weight)
    assert ("no pod of the new arm is ready" in d.message) == (health is EMPTY)


def test_arms_that_serve_nobody_are_kept_until_the_routers_know() -> None:
    template = {"revision": "r0", "template": {"spec": {"containers": [{"readinessProbe": {"httpGet": {"path": "/readyz"}}}]}}}
    seen = {"arms": {NEW: READY, "0ld": READY}, "templates": {"0ld": template}}
    d = decided(make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, **seen))
    assert ArmWanted("0ld", "r0") in d.arms
    assert router_moves(d.status), "the routers are asked until the new document is in force"
    assert d.routing is not None
    known = router(version=d.routing.structure.version)
    d = decided(make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, routers=(known,), **seen))
    assert [a.name for a in d.arms] == [NEW]
    assert not router_moves(d.status)


def test_a_changed_identity_is_settled_anew() -> None:
    d = decided(make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, **HEALTHY))
    assert d.routing is not None
    asked = make_observed(PROMOTED, status={**LIVE, **UNSETTLED}, routers=(router(version=d.routing.structure.version),), **HEALTHY)
    settled = decided(asked).status
    assert decided(make_observed(PROMOTED, status=dict(settled), **HEALTHY)).status == settled, "at rest nothing is written"
    edited = decided(make_observed(PROMOTED, status=dict(settled), changes={"rollout": {"identity": [{"header": "x-tenant"}]}}, **HEALTHY))
    assert router_moves(edited.status)


def test_a_live_finetune_says_what_a_new_router_waits_for() -> None:
    d = decided(make_observed(PROMOTED, status={**LIVE, **SETTLED}, router_waiting=GONE, **HEALTHY))
    assert (d.phase, d.message) == (c.LIVE, "revision r1 serves all users at Service bot; image x cannot be pulled")


def test_a_router_that_does_not_start_is_looked_at_again_though_nothing_tells_of_it() -> None:
    def requeue(starting: bool) -> float | None:
        return decided(make_observed(PROMOTED, status={**LIVE, **SETTLED}, routers_starting=starting, **HEALTHY)).requeue

    assert (requeue(False), requeue(True)) == (None, 15)


def test_a_rejected_arm_says_how_it_is_tried_again() -> None:
    back = at(m.ROLLING_BACK, memory={"reason": c.GUARD_FAILED, "cause": "errors"}).model_copy(update={"arm": OTHER})
    listed = [*LIVE["arms"], Arm(name=OTHER, revision="r1")]
    d = decided(make_observed(PROMOTED, status={**LIVE, "arms": listed, "rollout": back}, changes=WITH_OTHER, **HEALTHY))
    stopped = d.status.arms[-1].stopped
    assert (d.phase, d.reason) == (c.REJECTED, c.GUARD_FAILED)
    assert stopped is not None
    assert "finetune.dev/retry" in stopped.message
    assert stopped.tried == tried("t1")


def test_each_rollout_has_a_structure_of_its_own_and_the_users_keep_their_salt() -> None:
    one = decided(make_observed(PROMOTED, status={**LIVE, **SETTLED}, changes=WITH_OTHER, **HEALTHY))
    two = decided(make_observed(PROMOTED, status={**LIVE, **SETTLED}, changes=WITH_OTHER, now=NOW + timedelta(hours=1), **HEALTHY))
    assert one.routing is not None
    assert two.routing is not None
    assert one.routing.structure.version != two.routing.structure.version
    assert one.routing.structure.salt == two.routing.structure.salt


def test_a_source_that_could_not_be_asked_when_the_step_began_counts_from_then_on() -> None:
    """Else a guard that asks it would hold the step for ever."""
    rollout = holding(memory={**holding().memory, "counted": {}})
    fine = router(**FINE)
    first = advance(PLAN, scene(fine), rollout).rollout
    assert set(first.memory["counted"]) == {f"{fine.pod}@{fine.started}"}, "what it counted before is of other steps, too"
    again = advance(PLAN, replace(scene(fine), now=NOW + timedelta(minutes=1)), first).rollout
    assert again.memory["counted"] == first.memory["counted"]


@pytest.mark.parametrize("held", [{"wish": m.PAUSE}, {"hold": True}], ids=["paused", "suspended"])
def test_a_router_that_is_not_heard_while_a_rollout_is_held_is_no_reason_to_reject_it(held: dict[str, Any]) -> None:
    rollout = at(m.CONNECTING, memory={"since": stamp(NOW - timedelta(days=1))})
    gone = replace(scene(), routers=())
    rollout = advance(PLAN, replace(gone, **held), rollout).rollout
    assert rollout.state == m.CONNECTING

    def after(seconds: float) -> str:
        nonlocal rollout
        rollout = advance(PLAN, replace(gone, now=NOW + timedelta(seconds=seconds)), rollout).rollout
        return rollout.state

    assert (after(1), after(PLAN.deadline), after(PLAN.deadline + 2)) == (m.CONNECTING, m.CONNECTING, m.ROLLING_BACK)
