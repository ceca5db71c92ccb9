"""One cycle further, whatever the state."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.rollout.baking import baking
from finetune_operator.decide.rollout.connecting import connecting
from finetune_operator.decide.rollout.deploying import deploying
from finetune_operator.decide.rollout.experiment import recorded
from finetune_operator.decide.rollout.holding import holding
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back, rolling_back
from finetune_operator.decide.rollout.scene import Scene, Step, can_go_back
from finetune_operator.decide.rollout.shifting import shifting
from finetune_operator.decide.rollout.states import ABORT, BAKING, CONNECTING, DEPLOYING, HOLDING, ROLLING_BACK, SHIFTING


def advance(plan: Plan, scene: Scene, rollout: Rollout) -> Step:
    """One cycle further."""
    step = _moved(plan, scene, rollout)
    return replace(step, rollout=recorded(plan, scene.now, step.rollout))


def _moved(plan: Plan, scene: Scene, rollout: Rollout) -> Step:
    if rollout.state != ROLLING_BACK and can_go_back(scene, rollout):
        if scene.abort:
            return roll_back(scene, rollout, "Superseded", scene.abort)
        if scene.wish == ABORT:
            return roll_back(scene, rollout, conditions.ABORTED, "aborted by the user")
    moves = {
        DEPLOYING: deploying, CONNECTING: connecting, SHIFTING: shifting, HOLDING: holding, BAKING: baking,
        ROLLING_BACK: rolling_back,
    }  # fmt: skip
    return moves[rollout.state](plan, scene, rollout)
