"""How long is the weight in force held? As its step, the bake or the A/B test says today."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import later, seconds_until, stamp
from finetune_operator.decide.rollout.experiment import experimenting
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.plan import ENDLESS, Plan
from finetune_operator.decide.rollout.states import HOLDING
from finetune_operator.workloads.objects import time


def hold(plan: Plan, r: Rollout) -> float:
    """How many seconds the weight in force is held. A split that is fixed stays so, whatever weight the spec names meanwhile."""
    if plan.experiment and (experimenting(r) or (r.experiment is None and r.weight == plan.experiment[0])):
        return plan.experiment[1]
    return next((hold for weight, hold in plan.steps if weight >= r.weight and hold != ENDLESS), 0.0)


def until(r: Rollout, began: datetime, seconds: float) -> Rollout:
    """The rollout whose weight is held for so long."""
    memory = {k: v for k, v in r.memory.items() if k != "seconds"}
    if seconds == ENDLESS:
        return changed(r, next_step_at=None, memory=memory)
    return changed(r, next_step_at=later(began, seconds), memory={**memory, "seconds": seconds})


def timed(plan: Plan, r: Rollout) -> Rollout:
    """The rollout with the end that its experiment has today; with any, where one without end is asked for no longer."""
    began = time(r.memory.get("began"))
    if r.state != HOLDING or began is None or not experimenting(r) or (r.next_step_at and plan.experiment is None):
        return r
    return until(r, began, hold(plan, r))


def rewound(r: Rollout, now: datetime) -> Rollout:
    """With more left than the whole time, the clock was ahead when it began: it begins again."""
    left = seconds_until(r.next_step_at, now)
    whole = float(r.memory.get("seconds", left))
    if left <= whole + 1:  # a second, for times are told in whole ones
        return r
    return changed(r, next_step_at=later(now, whole), memory={**r.memory, "began": stamp(now)})
