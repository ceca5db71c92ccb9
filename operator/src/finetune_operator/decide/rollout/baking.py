"""Baking: everybody has the new arm, and the old one is kept warm."""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.guards import overall
from finetune_operator.decide.rollout import evidence
from finetune_operator.decide.rollout.guarded import guarded, held
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.scene import Scene, Step, unheard
from finetune_operator.decide.rollout.states import PROMOTED


def baking(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Everybody is on the new arm; the old one is kept warm for this time. A quiet service is promoted all the same."""
    early, r, findings = guarded(plan, scene, r)
    if early is not None:
        return early
    if scene.held:
        return held(scene, r, "all users are on the new arm; the old one is kept warm")
    if overall(findings) == "Error":
        message = f"all users are on the new arm; the old one is kept warm: {evidence.first(r, 'Error')}"
        return Step(r, unheard(scene, r.weight), message, conditions.PAUSED)
    decision = f"{stamp(scene.now)}: promoted"
    return Step(changed(r, state=PROMOTED, next_step_at=None, last_decision=decision, memory={}), {}, "promoted")
