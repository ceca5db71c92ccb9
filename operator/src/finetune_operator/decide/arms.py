"""What serves, and what is to serve next: at most two arms, and one rollout at a time.

What is live goes on serving whatever becomes of the newest revision. A rollout in progress goes on while another revision
trains; when that one passes its gate, the unfinished rollout is taken back first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from finetune_operator import conditions as c
from finetune_operator.api.fields import digest
from finetune_operator.api.quantities import seconds
from finetune_operator.api.status import Arm, Rollout, Status, Stopped
from finetune_operator.decide import control
from finetune_operator.decide.capacity import capacity_of, with_capacity
from finetune_operator.decide.draft import ArmWanted, Draft, Routing, soonest, stamp
from finetune_operator.decide.rollout import states
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.rollout.plan import plan_of
from finetune_operator.decide.rollout.scene import OUTAGE_SECONDS, POLL_SECONDS, Scene
from finetune_operator.decide.served import arm_of, health_of, live_arms, other_arms, serving_of
from finetune_operator.decide.stages import BASE
from finetune_operator.decide.structure import structure_of
from finetune_operator.observed import Observed
from finetune_operator.traffic import Structure

START_SECONDS: Final = 15.0  # between two looks at a router that does not start
NO_PODS: Final = (
    "its Deployment was set to 0 replicas. Let its autoscaler keep at least one (KEDA: minReplicaCount): "
    "a model without pods tells no figure that would bring any back"
)
PHASES: Final = {
    states.DEPLOYING: c.DEPLOYING, states.CONNECTING: c.DEPLOYING, states.SHIFTING: c.ROLLING_OUT,
    states.HOLDING: c.ROLLING_OUT, states.BAKING: c.BAKING, states.ROLLING_BACK: c.ROLLING_OUT,
}  # fmt: skip


def rollout(o: Observed, d: Draft) -> Draft:
    """Move the users on, back, or leave them where they are."""
    if o.spec.serving is None:
        return _no_serving(d)
    wanted, running = _wanted(o, d), d.status.rollout
    if running is not None and running.state in states.ACTIVE:
        return _roll(o, d, running, wanted)
    if wanted is None or wanted.name == d.status.live_arm:
        return _steady(o, d, wanted)
    known = arm_of(d.status, wanted.name)
    if known and known.stopped and known.stopped.tried == o.tried:
        d = _steady(o, d, None)
        return d if d.blocked else d.block(c.REJECTED, known.stopped.message, reason=known.stopped.reason)
    if not _let_go(o, d):
        d = _steady(o, d, None)
        return d if d.blocked else d.block(c.DEPLOYING, "the next rollout begins once no router knows the last one any more")
    return _begin(o, d, wanted)


def router_moves(status: Status) -> bool:
    """Must the routers be asked? While users are moved, and until the document of what came of it is in force."""
    return status.rollout is not None and not status.rollout.memory.get("settled")


def _wanted(o: Observed, d: Draft) -> ArmWanted | None:
    """The arm of the newest revision once it may serve; the base model where training was not needed."""
    if d.revision.gate == "NotNeeded":
        return _base(o) if d.status.live_arm is None or d.status.live_revision == BASE else None
    if not (d.revision.gate == "Passed" or d.revision.promoted) or (d.blocked and d.phase != c.SUSPENDED):
        return None
    return ArmWanted(_named(o, d), d.revision.name)


def _named(o: Observed, d: Draft) -> str:
    """The arm's name. A revision that was trained again has another one: what is kept under the first serves an artifact that is gone."""
    fields = {"revision": d.revision.name, "redeploy": dict(o.redeploy)}
    kept = o.templates.get(digest(fields), {}).get("artifact")
    return digest(fields if kept in (None, d.revision.artifact) else {**fields, "artifact": d.revision.artifact})


def _base(o: Observed) -> ArmWanted:
    fields = {"revision": BASE, "model": o.retrain.get("model"), "redeploy": dict(o.redeploy)}
    return ArmWanted(digest(fields), BASE)


def _begin(o: Observed, d: Draft, wanted: ArmWanted) -> Draft:
    """A rollout against what is live; the first one against the base model, which is made for it."""
    if o.spec.suspend:
        return _steady(o, d, None)
    base = _base(o)
    if d.status.live_arm is None or (_never_served(o, d) and d.status.live_arm != base.name):
        d = _remember(d, base).set(live_arm=base.name, live_revision=BASE)
        if wanted.revision == BASE:
            return _steady(o, d, wanted)
    d = _remember(d, wanted)
    first = Rollout(
        name=digest({"uid": o.uid, "arm": wanted.name, "stable": d.status.live_arm, "created": stamp(o.now)}),
        arm=wanted.name, revision=wanted.revision, stable=d.status.live_arm or "", state=states.DEPLOYING, weight=0,
        steps=len(plan_of(o, d, wanted.name).steps), memory={"created": stamp(o.now)},
    )  # fmt: skip
    d = d.set(rollout=first).begin("deploy", o.now, wanted.revision)
    d = d.note("Normal", "RolloutStarted", f"revision {wanted.revision} is deployed beside {d.status.live_revision}")
    return _roll(o, d, first, wanted)


def _never_served(o: Observed, d: Draft) -> bool:
    """Is what is called live a base arm that was made for a first rollout and never got ready? It is made anew as the spec is now."""
    arm = arm_of(d.status, d.status.live_arm or "")
    return d.status.live_revision == BASE and not (arm and arm.promoted) and health_of(o, d.status.live_arm or "").ready == 0


def _roll(o: Observed, d: Draft, running: Rollout, wanted: ArmWanted | None) -> Draft:
    running = with_capacity(o, running)
    structure = structure_of(o, d, running)
    superseded = wanted is not None and wanted.name != running.arm
    live = arm_of(d.status, running.stable)
    scene = Scene(
        now=o.now,
        stable=health_of(o, running.stable),
        canary=health_of(o, running.arm),
        routers=o.routers,
        routers_wanted=o.routers_wanted,
        structure=structure,
        servers=o.servers,
        answers=o.answers,
        router_waiting=o.router_waiting,
        taken=o.status.reason == c.NAME_TAKEN,
        hold=o.spec.suspend,
        capacity=capacity_of(o, running),
        wish=control.wish(d.status, running),
        abort=_otherwise(wanted, running) if superseded and wanted else _refused(d, running),
        stable_patience=OUTAGE_SECONDS if live and live.promoted else seconds(o.spec.rollout.progress_deadline),
    )
    step = advance(plan_of(o, d, running.arm, running.experiment), scene, running)
    d = _stages(o, d, running, step.rollout.state)
    d = d.set(rollout=step.rollout)
    if step.rollout.last_decision != running.last_decision and step.rollout.last_decision:
        bad = step.rollout.state in (states.ROLLING_BACK, states.ROLLED_BACK)
        d = d.note("Warning" if bad else "Normal", "Rollout", step.rollout.last_decision.split(": ", 1)[-1])
    if step.rollout.state == states.PROMOTED:
        return _steady(o, _promoted(d, step.rollout), wanted)
    if step.rollout.state == states.ROLLED_BACK:
        return _rolled_back(o, d, step.rollout)
    canary = ArmWanted(running.arm, running.revision)
    routing = Routing(structure, step.rollout.weight, step.pushes)
    d = replace(d, arms=(*live_arms(d), canary), routing=routing, serving=serving_of(o, d.status.live_arm))
    d = replace(d, requeue=soonest(d.requeue, POLL_SECONDS))
    if d.blocked:
        return replace(d, message=f"{d.message}; rollout of revision {running.revision}: {step.message}"[:1024])
    if step.reason in (c.PAUSED, c.PAUSED_BY_USER, c.TOO_FEW_PODS):
        return d.block(c.PAUSED, step.message, reason=c.GUARD_UNDECIDED if step.reason == c.PAUSED else step.reason)
    return d.block(PHASES[step.rollout.state], step.message, reason=step.reason if step.reason != "Superseded" else "")


def _otherwise(wanted: ArmWanted, running: Rollout) -> str:
    if wanted.revision != running.revision:
        return f"the spec asks for revision {wanted.revision} now"
    return "serving was changed while it rolled out"


def _refused(d: Draft, running: Rollout) -> str:
    """The gate was edited, and what rolls out does not pass it any more."""
    return "it does not pass the gate any more" if running.revision == d.revision.name and d.revision.gate == "Failed" else ""


def _steady(o: Observed, d: Draft, wanted: ArmWanted | None) -> Draft:
    """One arm serves everybody. What else there was goes once the routers have let go of it."""
    live = d.status.live_arm
    if live is None:
        return d
    structure = structure_of(o, d, None)
    last = d.status.rollout or Rollout(arm=live, revision=d.status.live_revision or BASE, stable=live, state=states.PROMOTED, weight=0)
    d = replace(d, arms=live_arms(d), routing=Routing(structure, 0), serving=serving_of(o, live))
    if o.routers_starting:  # no watch tells that one waits for its Secret
        d = replace(d, requeue=soonest(d.requeue, START_SECONDS))
    last = last.model_copy(update={"capacity": None})  # it has ended: from now on each arm has what its own load needs
    health = health_of(o, live)
    settled = _acknowledged(o, structure) and health.ready > 0 and not _used_by_who_leaves(o, structure)
    if (settled and not last.memory.get("settled")) or (last.memory.get("structure") not in (None, structure.version)):
        last = last.model_copy(update={"memory": {"settled": settled, "structure": structure.version}})
    if not last.memory.get("settled"):
        d = replace(d, arms=(*d.arms, *other_arms(o, d)), requeue=soonest(d.requeue, START_SECONDS if o.router_waiting else POLL_SECONDS))
    d = d.set(rollout=last)
    if wanted is None or wanted.name != live or (d.blocked and d.phase != c.NOT_NEEDED):
        return d
    if health.ready == 0:
        text = f"revision {d.status.live_revision}: {health.ready} of {health.wanted} pods are ready"
        text += f"; {health.waiting.message}" if health.waiting else ""
        text += f"; {NO_PODS}" if live in o.arms and health.wanted == 0 else ""
        started = bool(last.memory.get("settled"))
        return d.block(c.DEPLOYING, text, reason=health.waiting.reason if health.waiting else c.NO_READY_PODS if started else "")
    if not last.memory.get("settled") and last.steps == 0:
        waiting = o.router_waiting
        text = waiting.message if waiting else f"revision {d.status.live_revision} is ready; the routers are starting"
        return d.block(c.DEPLOYING, text, reason=waiting.reason if waiting else "")
    waits = f"; {o.router_waiting.message}" if o.router_waiting else ""
    return d if d.blocked else d.block(c.LIVE, f"revision {d.status.live_revision} serves all users at Service {o.name}{waits}")


def _acknowledged(o: Observed, structure: Structure) -> bool:
    """Do all ready routers serve that document? At least one must."""
    ready = [r for r in o.routers if r.ready]
    return bool(ready) and all(r.version == structure.version for r in ready)


def _used_by_who_leaves(o: Observed, structure: Structure) -> bool:
    """Does a router that somebody deletes, and that still has users, send them elsewhere? It may learn no document any more."""
    return any(r.leaving and r.version not in (None, structure.version) for r in o.routers)


def _let_go(o: Observed, d: Draft) -> bool:
    """Does every router serve the live arm alone? Until then arms of the last rollout are in the routers' documents."""
    last = d.status.rollout
    if last is None or d.status.live_arm is None or last.memory.get("settled") or not o.routers:
        return True
    return _acknowledged(o, structure_of(o, d, None))


def _promoted(d: Draft, done: Rollout) -> Draft:
    old = next((r for r in d.status.revisions if r.name == done.revision), None)
    if old is not None:
        d = d.with_revision(old.model_copy(update={"promoted": True, "gate": "Passed", "stopped": None}))
    listed = [a.model_copy(update={"promoted": True, "stopped": None}) if a.name == done.arm else a for a in d.status.arms]
    before = d.status.live_revision
    previous = d.status.previous_revision if before in (None, BASE, done.revision) else before
    return d.set(live_arm=done.arm, live_revision=done.revision, previous_revision=previous, arms=listed).note(
        "Normal", "Promoted", f"revision {done.revision} serves all users"
    )


def _rolled_back(o: Observed, d: Draft, done: Rollout) -> Draft:
    reason = str(done.memory.get("reason", c.GUARD_FAILED))
    done = done.model_copy(update={"memory": {}})
    d = d.set(rollout=done)
    if reason == "Superseded":
        d = _steady(o, d, None)
        return d if d.blocked else d.block(c.DEPLOYING, "the unfinished rollout was taken back", requeue=0.5)
    fix = " Change the spec (serving.replicas alone do not count), or annotate finetune.dev/retry with a new value, to try again."
    text = (done.last_decision or "rolled back")[: 1000 - len(fix)].rstrip(". ") + "." + fix
    stopped = Stopped(reason=reason, message=text, time=stamp(o.now), tried=o.tried)
    listed = [a.model_copy(update={"stopped": stopped}) if a.name == done.arm else a for a in d.status.arms]
    d = _steady(o, d.set(arms=listed), None)
    return d if d.blocked else d.block(c.REJECTED, text, reason=reason)


def _no_serving(d: Draft) -> Draft:
    if d.status.live_arm is not None:
        d = d.set(live_arm=None, live_revision=None, rollout=None)
    if d.blocked or d.revision.artifact is None:
        return d
    return d.block(
        c.TRAINED_ONLY, f"the artifact is at {d.revision.artifact} on the work volume; spec.serving is absent, so nothing serves it"
    )


def _remember(d: Draft, wanted: ArmWanted) -> Draft:
    """An entry for the arm; one that is tried again has its refusal taken back."""
    others: list[Any] = [a for a in d.status.arms if a.name != wanted.name]
    known = arm_of(d.status, wanted.name) or Arm(name=wanted.name, revision=wanted.revision)
    entry = known.model_copy(update={"stopped": None})
    kept = [a for a in others if a.name == d.status.live_arm] + [a for a in others if a.name != d.status.live_arm][-8:]
    return d.set(arms=[*kept, entry])


def _stages(o: Observed, d: Draft, running: Rollout, new: str) -> Draft:
    """Note when deployment, rollout and bake began and ended."""
    order = {
        states.DEPLOYING: "deploy",
        states.CONNECTING: "deploy",
        states.SHIFTING: "rollout",
        states.HOLDING: "rollout",
        states.BAKING: "bake",
    }
    before, after = order.get(running.state), order.get(new)
    if before == after:
        return d
    d = d.end(before, o.now, running.revision) if before else d
    return d.begin(after, o.now, running.revision) if after else d
