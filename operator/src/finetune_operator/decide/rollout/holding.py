"""Holding: a step has its time, and then its evidence decides."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.guards import overall
from finetune_operator.decide.rollout import evidence
from finetune_operator.decide.rollout.guarded import guarded
from finetune_operator.decide.rollout.memory import changed, darkened, taking_over
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back
from finetune_operator.decide.rollout.scene import Scene, Step, can_go_back, too_few, unheard
from finetune_operator.decide.rollout.shifting import shift
from finetune_operator.decide.rollout.states import PROMOTE
from finetune_operator.workloads.objects import time


def holding(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """On to the next step once its time is over, or the user wants it at once, if the guards pass. In place of a present arm that has
    served nobody for a while the new one takes all users, unless what fails is common to both."""
    r, dark = darkened(scene, r)
    early, r, findings = guarded(plan, scene, r, hurried=dark or scene.wish == PROMOTE)
    if early is not None:
        return early
    if dark and overall(findings) != "Error":
        return shift(plan, scene, taking_over(r))
    if scene.wish == PROMOTE:
        return shift(plan, scene, r)
    where = f"step {r.step} of {r.steps}, {r.weight} %"
    match overall(findings):
        case "Pass":
            stays = scene.held or too_few(scene, r)
            return shift(plan, scene, r if stays else changed(r, evidence=evidence.lines(findings)))
        case "Insufficient":
            return _unjudged(plan, scene, r, where)
        case _:
            return Step(r, unheard(scene, r.weight), f"{where}: held, {evidence.first(r, 'Error')}", conditions.PAUSED)


def _unjudged(plan: Plan, scene: Scene, r: Rollout, where: str) -> Step:
    """A step whose time is over and which the guards cannot judge: it is extended, and then what the user asked for is done."""
    over = max((t for t in (time(r.next_step_at), time(r.memory.get("freed"))) if t), default=None)
    extended = scene.held or (over is not None and (scene.now - over).total_seconds() <= plan.extension)
    lacking = evidence.first(r, "Insufficient")
    wait = Step(r, unheard(scene, r.weight), f"{where}: goes on once there is enough traffic to judge ({lacking})")
    match "Extend" if extended else plan.guards.on_insufficient:
        case "Promote":
            return shift(plan, scene, r)
        case "Rollback" if can_go_back(scene, r):
            return roll_back(scene, r, conditions.GUARD_FAILED, f"{where}: not enough to judge within guards.maxExtension ({lacking})")
        case "Hold":
            return replace(wait, reason=conditions.PAUSED)
        case _:
            return wait
