"""RollingBack: everybody back to stable, until every router says so."""

from __future__ import annotations

from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.scene import Scene, Step, in_force, unheard
from finetune_operator.decide.rollout.states import ROLLED_BACK, ROLLING_BACK


def roll_back(scene: Scene, rollout: Rollout, reason: str, message: str) -> Step:
    """Everybody back to stable, now: committed, then pushed to every router that can be reached."""
    memory = {**rollout.memory, "reason": reason, "cause": message[:900]}
    back = changed(
        rollout,
        state=ROLLING_BACK,
        weight=0,
        next_step_at=None,
        last_decision=f"{stamp(scene.now)}: rolling back: {message}"[:1024],
        memory=memory,
    )
    return Step(back, unheard(scene, 0), f"rolling back: {message}", reason)


def rolling_back(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Back is back once every ready router serves nobody the new arm, or none can know it."""
    cause = str(r.memory.get("cause", ""))
    unknown = all(s.version not in (None, scene.structure.version) for s in scene.routers)  # then nobody can have the new arm
    if in_force(scene, 0) or unknown:
        decision = f"{stamp(scene.now)}: rolled back: {cause}"[:1024]
        return Step(changed(r, state=ROLLED_BACK, last_decision=decision), {}, f"rolled back: {cause}")
    return Step(r, unheard(scene, 0), f"rolling back: {cause}")
