"""Deploying: both arms get ready."""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.rollout.connecting import connecting
from finetune_operator.decide.rollout.memory import changed, darkened, marked, overdue
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back
from finetune_operator.decide.rollout.scene import Scene, Step, enough
from finetune_operator.decide.rollout.states import CONNECTING
from finetune_operator.observed import ArmHealth


def deploying(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Both arms get ready. What the present one takes is not the new one's fault: its time begins once that one serves."""
    serving, ready = scene.stable.ready > 0, _serves(scene.canary)
    r, dark = darkened(scene, r)
    if ready and (serving or dark):
        r = changed(r, state=CONNECTING, memory={**r.memory, "since": stamp(scene.now)})
        return connecting(plan, scene, r)
    arm, health = ("the new arm", scene.canary) if serving or dark else ("the present arm", scene.stable)
    message = f"{arm}: {health.ready} of {health.wanted or '?'} pods are ready"
    if health.waiting:
        message += f"; {health.waiting.message}"
    elif health.restarts:
        message += f"; its containers were restarted {health.restarts} times"
    r = marked(r, "since", scene.now if serving and not scene.barred(scene.canary.wanted) else None)
    if serving and overdue(plan, scene, r):
        fix = "Look at its pods' logs, or raise rollout.progressDeadline if they only need longer."
        return roll_back(scene, r, conditions.NEVER_READY, f"{message}, not ready within rollout.progressDeadline. {fix}")
    return Step(r, {}, message, health.waiting.reason if health.waiting else "")


def _serves(health: ArmHealth) -> bool:
    return health.wanted > 0 and health.ready >= enough(health.wanted)
