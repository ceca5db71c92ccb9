"""Shifting: the next step's weight, until every router has it."""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.guards import overall
from finetune_operator.decide.rollout import evidence
from finetune_operator.decide.rollout.counters import counters
from finetune_operator.decide.rollout.guarded import failed, held, waiting_message
from finetune_operator.decide.rollout.hold import hold, until
from finetune_operator.decide.rollout.memory import changed, marked, overdue
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back
from finetune_operator.decide.rollout.scene import Scene, Step, can_go_back, first_error, in_force, staying, too_few, unheard
from finetune_operator.decide.rollout.states import BAKING, HOLDING, PROMOTE, SHIFTING


def shift(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """The next step of today's plan: the first that is above the weight in force, whatever was edited meanwhile."""
    r = marked(r, "short", scene.now if too_few(scene, r) else None)
    if scene.held:
        return held(scene, r, f"held at {r.weight} %")
    if "short" in r.memory:
        return _awaits_pods(plan, scene, r)
    outage, last = bool(r.memory.get("outage")), (len(plan.steps), 100)
    at_once = outage or scene.wish == PROMOTE
    step, weight = next(((n, w) for n, (w, _) in enumerate(plan.steps, 1) if w > r.weight and not at_once), last)
    why = ", promoted by the user" if scene.wish == PROMOTE else ", for no pod of the present arm is ready" if outage else ""
    decision = f"{stamp(scene.now)}: step {step} of {len(plan.steps)}: {weight} %{why}"
    memory = {k: v for k, v in r.memory.items() if k in ("since", "created")}
    memory |= {"began": stamp(scene.now), "counted": counters(scene)}
    shifted = changed(
        r, state=SHIFTING, step=step, steps=len(plan.steps), weight=weight, next_step_at=None, last_decision=decision, memory=memory
    )
    return Step(shifted, unheard(scene, weight), f"step {step} of {len(plan.steps)}: moving {weight} % of the users")


def _awaits_pods(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """It goes on by itself once they are there; what lasts too long is said as a pause is."""
    waits, late = scene.canary.waiting, overdue(plan, scene, r, "short")
    message = f"held at {r.weight} %: {scene.canary.ready} of the {scene.capacity} pods that the load needs are ready on the new arm"
    message += f"; {waits.message}" if waits else ""
    if late:
        message += ". rollout.progressDeadline is over: make room, lower serving.replicas or autoscaling.maxReplicas, or abort the rollout"
    reason = conditions.TOO_FEW_PODS if late else waits.reason if waits else ""
    return Step(r, unheard(scene, r.weight), message, reason)


def shifting(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Some users are on the new arm already while a router is told: the guards watch, and it is not tried for ever."""
    if not in_force(scene, r.weight):
        findings = evidence.findings(plan, scene, r)
        if overall(findings) == "Fail":
            return failed(scene, r, findings)
        routers = staying(scene)
        agreed = sum(1 for s in routers if (s.version, s.weight) == (scene.structure.version, r.weight))
        message = f"step {r.step} of {r.steps}: {agreed} of {len(routers)} routers serve {r.weight} %"
        message += first_error(routers)
        if overdue(plan, scene, r, "began") and can_go_back(scene, r):
            return roll_back(scene, r, conditions.NEVER_READY, f"{message}, not all within rollout.progressDeadline")
        return Step(r, unheard(scene, r.weight), message)
    last = r.weight >= 100
    memory = {**r.memory, "began": stamp(scene.now), "counted": counters(scene)}
    held = changed(r, state=BAKING if last else HOLDING, memory=memory, evidence=[])
    held = until(held, scene.now, plan.bake if last else hold(plan, r))
    return Step(held, {}, waiting_message(held))
