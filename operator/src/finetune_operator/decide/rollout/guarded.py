"""What every weight that some users have must bear, held or baking: guards, an arm that is down, a user who holds it."""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import seconds_until
from finetune_operator.decide.guards import Finding, overall
from finetune_operator.decide.rollout import evidence
from finetune_operator.decide.rollout.counters import based
from finetune_operator.decide.rollout.experiment import endless
from finetune_operator.decide.rollout.hold import rewound, timed
from finetune_operator.decide.rollout.memory import changed, elapsed, freed, marked
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back
from finetune_operator.decide.rollout.scene import OUTAGE_SECONDS, Scene, Step, can_go_back, unheard
from finetune_operator.decide.rollout.states import ABORT, BAKING, PAUSE, PROMOTE
from finetune_operator.workloads.objects import time


def guarded(plan: Plan, scene: Scene, r: Rollout, *, hurried: bool = False) -> tuple[Step | None, Rollout, list[Finding]]:
    """What holding and baking share: (the step where it is neither time to go on nor well, the rollout with its evidence, findings).
    `hurried`: it is time to go on."""
    r = marked(r, "down", None if scene.canary.ready else scene.now)
    if not scene.canary.ready:
        return _down(scene, r), r, []
    r = based(scene, r)
    findings = evidence.findings(plan, scene, r)
    if overall(findings) == "Fail":
        return failed(scene, r, findings), r, findings
    r = rewound(timed(plan, r), scene.now)
    over = not endless(r) and seconds_until(r.next_step_at, scene.now) <= 0
    r = freed(evidence.looked(scene, r, findings, over), scene.now, held=bool(scene.held))
    if scene.held == conditions.PAUSED_BY_USER:
        return held(scene, r), r, findings
    if over or (hurried and not scene.held):
        return None, r, findings
    return Step(r, unheard(scene, r.weight), waiting_message(r)), r, findings


def held(scene: Scene, r: Rollout, message: str = "") -> Step:
    """It stays at its weight: as the user asked, or as `message` says."""
    if scene.wish == PAUSE:
        message = f"paused by the user at {r.weight} %: no further step is taken; the guards watch on, and take everybody back if they fail"
    if scene.wish == ABORT:
        message = f"to be aborted at {r.weight} %, once there is where to go back to: no pod of the present arm is ready"
    return Step(r, unheard(scene, r.weight), message, scene.held)


def _down(scene: Scene, r: Rollout) -> Step:
    """No pod of the new arm is ready: nobody else is moved to it, and everybody is taken back, if there is where to: at once where its
    containers crash or run out of memory, soon where its pods are gone, which is more likely their node's doing."""
    fall, waiting = scene.canary.fall, scene.canary.waiting
    began = time(r.memory.get("began"))
    crashed = fall is not None and began is not None and fall.at >= began
    cause = f"; {waiting.message}" if waiting else f"; {fall.message}" if fall and crashed else ""
    message = f"no pod of the new arm is ready, {r.weight} % of the users are on it{cause}"
    if (crashed or elapsed(r, "down", scene.now) > OUTAGE_SECONDS) and can_go_back(scene, r):
        return roll_back(scene, r, conditions.NO_READY_PODS, message)
    return Step(r, unheard(scene, r.weight), message, conditions.PAUSED)


def failed(scene: Scene, r: Rollout, findings: list[Finding]) -> Step:
    """Everybody is taken back, if there is where to."""
    first = next(f for f in findings if f.verdict == "Fail")
    text = f"guard {first.guard} failed at {r.weight} %: {first.evidence}"
    if not can_go_back(scene, r):
        text = f"{text}; nobody is taken back, for no pod of the present arm is ready"
        return Step(r, unheard(scene, r.weight), text, conditions.PAUSED)
    return roll_back(scene, changed(r, evidence=evidence.lines(findings)), conditions.GUARD_FAILED, text)


def waiting_message(r: Rollout) -> str:
    """Until when the weight in force is held, or the old arm kept warm."""
    if r.state == BAKING:
        return f"all users are on the new arm; the old one is kept warm until {r.next_step_at}"
    until = f"until {r.next_step_at}" if r.next_step_at else f"until {PROMOTE} or {ABORT} is asked for"
    return f"step {r.step} of {r.steps}: {r.weight} % of the users {until}"
