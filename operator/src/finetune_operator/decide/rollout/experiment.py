"""A/B tests: a split that is fixed until it is decided."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.status import Experiment, Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.states import HOLDING


def experimenting(rollout: Rollout) -> bool:
    """Is the split fixed for an A/B test?"""
    return rollout.experiment is not None and rollout.experiment.until is None


def endless(r: Rollout) -> bool:
    """Does only the user end its hold?"""
    return r.state == HOLDING and r.next_step_at is None and experimenting(r)


def recorded(plan: Plan, now: datetime, r: Rollout) -> Rollout:
    """The rollout that says since when, and until when, its split was fixed."""
    if experimenting(r) and r.state != HOLDING:
        return changed(r, experiment=r.experiment and r.experiment.model_copy(update={"until": stamp(now)}))
    if r.experiment is None and r.state == HOLDING and plan.experiment and plan.experiment[0] == r.weight:
        return changed(r, experiment=Experiment(weight=r.weight, since=stamp(now)))
    return r
