"""Connecting: the routers learn of both arms, and the new one has nobody yet."""

from __future__ import annotations

from finetune_operator import conditions
from finetune_operator.api.status import Rollout
from finetune_operator.decide import queries
from finetune_operator.decide.rollout.memory import darkened, freed, overdue, taking_over
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.rolling_back import roll_back
from finetune_operator.decide.rollout.scene import Scene, Step, first_error, in_force, staying, too_few, unheard
from finetune_operator.decide.rollout.shifting import shift
from finetune_operator.decide.rollout.states import PROMOTE
from finetune_operator.traffic import ArmTotals, RouterState, Structure


def connecting(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """The structure first, at canary 0, until every router serves it, its clusters are warm, and Kubernetes counts the new arm's pods as
    ready too: a router that has not looked since knows of pods that are gone. While the present arm serves nobody no time is counted, and
    after a while the new one takes over."""
    if not r.memory.get("outage"):
        r, dark = darkened(scene, r)
        r = taking_over(r) if dark else r
    unasked = _unasked(plan, scene, r)
    needed = _needed(scene.structure, outage=bool(r.memory.get("outage")))
    connected = scene.canary.ready > 0 and in_force(scene, 0) and all(_warm(state, needed) for state in scene.routers if state.ready)
    awaits_pods = connected and too_few(scene, r)  # for as long as that lasts: a router that comes new meanwhile has its own time
    held = scene.held or unasked or awaits_pods or "dark" in r.memory or scene.barred(scene.routers_wanted)
    r = freed(r, scene.now, held=bool(held))
    if connected:
        if unasked:
            return Step(r, unheard(scene, 0), f"nobody is moved before all guards can be asked; {unasked}", conditions.PAUSED)
        return shift(plan, scene, r)
    routers = staying(scene)
    waiting = [s for s in routers if s.version != scene.structure.version or not _warm(s, needed)]
    message = f"{len(routers) - len(waiting)} of {scene.routers_wanted or '?'} routers serve both arms, the new one to nobody yet"
    held_up = scene.router_waiting
    message += f"; {held_up.message}" if held_up else first_error(waiting)
    message += "; no pod of the present arm is ready" if "dark" in r.memory else ""
    message += "" if scene.canary.ready else "; no pod of the new arm is ready"
    if "held" not in r.memory and overdue(plan, scene, r) and ("freed" not in r.memory or overdue(plan, scene, r, "freed")):
        fix = (
            "Look at the routers' pods; the operator's setting images.router names their image."
            if scene.canary.ready
            else "Look at its pods."
        )
        return roll_back(scene, r, conditions.NEVER_READY, f"{message}, not ready within rollout.progressDeadline. {fix}")
    return Step(r, unheard(scene, 0), message, held_up.reason if held_up else "")


def _needed(structure: Structure, *, outage: bool) -> list[str]:
    """Arms of which a router must know a healthy pod: both, or the new one alone when the present one serves nobody."""
    canary = [structure.canary.arm] if structure.canary else []
    return canary if outage else [structure.stable.arm, *canary]


def _warm(state: RouterState, arms: list[str]) -> bool:
    return all(state.totals.get(arm, ArmTotals()).healthy > 0 for arm in arms)


def _unasked(plan: Plan, scene: Scene, r: Rollout) -> str:
    """Why a query that is to guard the first step cannot be asked; empty too where users are moved all at once."""
    at_once = bool(r.memory.get("outage")) or scene.wish == PROMOTE or plan.steps[0][0] >= 100
    return "" if at_once else queries.unasked(scene.answers)
