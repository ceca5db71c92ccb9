"""One rollout, one cycle further: from a canary that nobody has to the arm that everybody has, or back.

    Deploying → Connecting → Shifting ⇄ Holding → Baking → Promoted
                     any of them → RollingBack → RolledBack

A weight is committed in `status.rollout` before it is pushed, and a step begins only when every ready router says that it is
in force. Weights grow only on evidence; a rollback needs none from the routers to begin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from finetune_operator import conditions
from finetune_operator.api.spec import Guards
from finetune_operator.api.status import Experiment, Rollout
from finetune_operator.decide import queries
from finetune_operator.decide.draft import later, seconds_until, stamp
from finetune_operator.decide.guards import Finding, add, judge, overall, subtract
from finetune_operator.observed import Answer, ArmHealth
from finetune_operator.traffic import ArmTotals, Buckets, RouterState, ServerState, Structure
from finetune_operator.workloads import Waiting, time

DEPLOYING: Final = "Deploying"
CONNECTING: Final = "Connecting"
SHIFTING: Final = "Shifting"
HOLDING: Final = "Holding"
BAKING: Final = "Baking"
ROLLING_BACK: Final = "RollingBack"
PROMOTED: Final = "Promoted"
ROLLED_BACK: Final = "RolledBack"
ACTIVE: Final = frozenset({DEPLOYING, CONNECTING, SHIFTING, HOLDING, BAKING, ROLLING_BACK})
UNMOVED: Final = frozenset({DEPLOYING, CONNECTING})  # the present arm has all users, and had them before
GUARDED: Final = ACTIVE - {ROLLING_BACK}  # the user's own queries are asked
# What the user may ask of a rollout.
PAUSE: Final = "pause"
RESUME: Final = "resume"
PROMOTE: Final = "promote"
ABORT: Final = "abort"
POLL_SECONDS: Final = 2.0
OUTAGE_SECONDS: Final = 60.0  # an arm without a ready pod for so long is down, not restarting
LATE_LOOK_SECONDS: Final = 60.0
LOOKS: Final = 10  # times that the evidence of a step is written to the status, at most, while it runs in time
ENDLESS: Final = math.inf  # how long a step is held that only the user ends
Counted = tuple[str, str, Mapping[str, ArmTotals]]  # a router or server: name, start, counters by arm


@dataclass(frozen=True)
class Plan:
    """What the user asks of the rollout: growing steps as (percent, seconds) up to 100 %, and what guards it. `experiment` is the step
    of an A/B test, which is one of them: its time may be ENDLESS."""

    steps: tuple[tuple[int, float], ...]
    bake: float
    deadline: float
    guards: Guards
    extension: float = 0.0  # seconds that a step which cannot be judged is extended before `guards.on_insufficient` is asked
    experiment: tuple[int, float] | None = None


@dataclass(frozen=True)
class Scene:
    """What is seen of both arms, of the routers, of the arms' servers and of Prometheus where a guard asks them. `abort` says why the
    canary is wanted no longer; `stable_patience` is how many seconds the present arm may be without a ready pod before the new one
    takes all its users; `wish` is what the user asks of this rollout; `capacity` is how many pods the load needs, where an autoscaler
    sets them."""

    now: datetime
    stable: ArmHealth
    canary: ArmHealth
    routers: tuple[RouterState, ...]
    routers_wanted: int
    structure: Structure
    servers: tuple[ServerState, ...] = ()
    answers: tuple[Answer, ...] = ()
    router_waiting: Waiting | None = None
    stable_patience: float = OUTAGE_SECONDS
    hold: bool = False
    capacity: int = 0
    abort: str = ""
    wish: str = ""

    @property
    def held(self) -> str:
        """Why it goes no further, as a reason; empty when it may."""
        if self.wish in (PAUSE, ABORT):
            return conditions.PAUSED_BY_USER
        return conditions.PAUSED if self.hold else ""


@dataclass(frozen=True)
class Step:
    """The rollout as it will be in the status, and the routers that must hear the weight now."""

    rollout: Rollout
    pushes: Mapping[str, int]
    message: str
    reason: str = ""


def advance(plan: Plan, scene: Scene, rollout: Rollout) -> Step:
    """One cycle further."""
    step = _moved(plan, scene, rollout)
    return replace(step, rollout=_recorded(plan, scene.now, step.rollout))


def experimenting(rollout: Rollout) -> bool:
    """Is the split fixed for an A/B test?"""
    return rollout.experiment is not None and rollout.experiment.until is None


def _moved(plan: Plan, scene: Scene, rollout: Rollout) -> Step:
    if rollout.state != ROLLING_BACK and _can_go_back(scene, rollout):
        if scene.abort:
            return roll_back(scene, rollout, "Superseded", scene.abort)
        if scene.wish == ABORT:
            return roll_back(scene, rollout, conditions.ABORTED, "aborted by the user")
    moves = {
        DEPLOYING: _deploying, CONNECTING: _connecting, SHIFTING: _shifting, HOLDING: _holding, BAKING: _baking,
        ROLLING_BACK: _rolling_back,
    }  # fmt: skip
    return moves[rollout.state](plan, scene, rollout)


def roll_back(scene: Scene, rollout: Rollout, reason: str, message: str) -> Step:
    """Everybody back to stable, now: committed, then pushed to every router that can be reached."""
    memory = {**rollout.memory, "reason": reason, "cause": message[:900]}
    back = _with(
        rollout,
        state=ROLLING_BACK,
        weight=0,
        next_step_at=None,
        last_decision=f"{stamp(scene.now)}: rolling back: {message}"[:1024],
        memory=memory,
    )
    return Step(back, _unheard(scene, 0), f"rolling back: {message}", reason)


def in_force(scene: Scene, weight: int) -> bool:
    """Does every ready router serve this structure with this weight? At least one must."""
    ready = [r for r in scene.routers if r.ready]
    return bool(ready) and all((r.version, r.weight) == (scene.structure.version, weight) for r in ready)


def _deploying(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Both arms get ready. What the present one takes is not the new one's fault: its time begins once that one serves."""
    serving, ready = scene.stable.ready > 0, _serves(scene.canary)
    r = _marked(r, "dark", None if serving else scene.now)
    dark = _elapsed(r, "dark", scene.now) > scene.stable_patience
    if ready and (serving or dark):
        memory = {**{k: v for k, v in r.memory.items() if k != "dark"}, "since": stamp(scene.now), **({"outage": True} if dark else {})}
        return _connecting(plan, scene, _with(r, state=CONNECTING, memory=memory))
    arm, health = ("the new arm", scene.canary) if serving or dark else ("the present arm", scene.stable)
    message = f"{arm}: {health.ready} of {health.wanted or '?'} pods are ready"
    if health.waiting:
        message += f"; {health.waiting.message}"
    elif health.restarts:
        message += f"; its containers were restarted {health.restarts} times"
    r = _marked(r, "since", scene.now if serving else None)
    if serving and _late(plan, scene, r):
        fix = "Look at its pods' logs, or raise rollout.progressDeadline if they only need longer."
        return roll_back(scene, r, conditions.NEVER_READY, f"{message}, not ready within rollout.progressDeadline. {fix}")
    return Step(r, {}, message, health.waiting.reason if health.waiting else "")


def _connecting(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """The structure first, at canary 0, until every router serves it and its clusters are warm."""
    unasked = _unasked(plan, scene, r)
    r = _freed(r, scene.now, held=bool(scene.held or unasked))
    needed = _needed(scene.structure, outage=bool(r.memory.get("outage")))
    if in_force(scene, 0) and all(_warm(state, needed) for state in scene.routers if state.ready):
        if unasked:
            return Step(r, _unheard(scene, 0), f"nobody is moved before all guards can be asked; {unasked}", conditions.PAUSED)
        return _shift(plan, scene, r)
    waiting = [s for s in scene.routers if s.version != scene.structure.version or not _warm(s, needed)]
    message = f"{len(scene.routers) - len(waiting)} of {scene.routers_wanted or '?'} routers serve both arms, the new one to nobody yet"
    held_up = scene.router_waiting
    message += f"; {held_up.message}" if held_up else _first_error(waiting)
    if "held" not in r.memory and _late(plan, scene, r) and ("freed" not in r.memory or _late(plan, scene, r, "freed")):
        fix = "Look at the routers' pods; the operator's setting images.router names their image."
        return roll_back(scene, r, conditions.NEVER_READY, f"{message}, not ready within rollout.progressDeadline. {fix}")
    return Step(r, _unheard(scene, 0), message, held_up.reason if held_up else "")


def _shift(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """The next step of today's plan: the first that is above the weight in force, whatever was edited meanwhile."""
    r = _marked(r, "short", scene.now if _too_few(scene, r) else None)
    if scene.held:
        return _held(scene, r, f"held at {r.weight} %")
    if "short" in r.memory:
        return _awaits_pods(plan, scene, r)
    last, at_once = (len(plan.steps), 100), bool(r.memory.get("outage")) or scene.wish == PROMOTE
    step, weight = next(((n, w) for n, (w, _) in enumerate(plan.steps, 1) if w > r.weight and not at_once), last)
    asked = ", promoted by the user" if scene.wish == PROMOTE else ""
    decision = f"{stamp(scene.now)}: step {step} of {len(plan.steps)}: {weight} %{asked}"
    memory = {k: v for k, v in r.memory.items() if k in ("since", "created")}
    memory |= {"began": stamp(scene.now), "counted": _counters(_sources(scene))}
    shifted = _with(
        r, state=SHIFTING, step=step, steps=len(plan.steps), weight=weight, next_step_at=None, last_decision=decision, memory=memory
    )
    return Step(shifted, _unheard(scene, weight), f"step {step} of {len(plan.steps)}: moving {weight} % of the users")


def _too_few(scene: Scene, r: Rollout) -> bool:
    """Capacity before traffic: has the load grown, and not all of the pods that it needs are ready on the new arm?"""
    return scene.canary.ready < scene.capacity and not r.memory.get("outage")


def _awaits_pods(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """It goes on by itself once they are there; what lasts too long is said as a pause is."""
    waits, late = scene.canary.waiting, _late(plan, scene, r, "short")
    message = f"held at {r.weight} %: {scene.canary.ready} of the {scene.capacity} pods that the load needs are ready on the new arm"
    message += f"; {waits.message}" if waits else ""
    if late:
        message += ". rollout.progressDeadline is over: make room, lower serving.autoscaling.maxReplicas, or abort the rollout"
    reason = conditions.TOO_FEW_PODS if late else waits.reason if waits else ""
    return Step(r, _unheard(scene, r.weight), message, reason)


def _shifting(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Some users are on the new arm already while a router is told: the guards watch, and it is not tried for ever."""
    if not in_force(scene, r.weight):
        findings = _findings(plan, scene, r)
        if overall(findings) == "Fail":
            return _failed(scene, r, findings)
        agreed = sum(1 for s in scene.routers if (s.version, s.weight) == (scene.structure.version, r.weight))
        message = f"step {r.step} of {r.steps}: {agreed} of {len(scene.routers)} routers serve {r.weight} %"
        message += _first_error(scene.routers)
        if _late(plan, scene, r, "began") and _can_go_back(scene, r):
            return roll_back(scene, r, conditions.NEVER_READY, f"{message}, not all within rollout.progressDeadline")
        return Step(r, _unheard(scene, r.weight), message)
    last = r.weight >= 100
    memory = {**r.memory, "began": stamp(scene.now), "counted": _counters(_sources(scene))}
    held = _with(r, state=BAKING if last else HOLDING, memory=memory, evidence=[])
    held = _until(held, scene.now, plan.bake if last else _hold(plan, r))
    return Step(held, {}, _waiting_message(held))


def _holding(plan: Plan, scene: Scene, r: Rollout) -> Step:
    early, r, findings = _guarded(plan, scene, r, hurried=scene.wish == PROMOTE)
    if early is not None:
        return early
    if scene.wish == PROMOTE:
        return _shift(plan, scene, r)
    where = f"step {r.step} of {r.steps}, {r.weight} %"
    match overall(findings):
        case "Pass":
            stays = scene.held or _too_few(scene, r)
            return _shift(plan, scene, r if stays else _with(r, evidence=_evidence(findings)))
        case "Insufficient":
            return _unjudged(plan, scene, r, where)
        case _:
            return Step(r, _unheard(scene, r.weight), f"{where}: held, {_first(r, 'Error')}", conditions.PAUSED)


def _unjudged(plan: Plan, scene: Scene, r: Rollout, where: str) -> Step:
    """A step whose time is over and which the guards cannot judge: it is extended, and then what the user asked for is done."""
    over = max((t for t in (time(r.next_step_at), time(r.memory.get("freed"))) if t), default=None)
    extended = scene.held or (over is not None and (scene.now - over).total_seconds() <= plan.extension)
    lacking = _first(r, "Insufficient")
    wait = Step(r, _unheard(scene, r.weight), f"{where}: goes on once there is enough traffic to judge ({lacking})")
    match "Extend" if extended else plan.guards.on_insufficient:
        case "Promote":
            return _shift(plan, scene, r)
        case "Rollback" if _can_go_back(scene, r):
            return roll_back(scene, r, conditions.GUARD_FAILED, f"{where}: not enough to judge within guards.maxExtension ({lacking})")
        case "Hold":
            return replace(wait, reason=conditions.PAUSED)
        case _:
            return wait


def _baking(plan: Plan, scene: Scene, r: Rollout) -> Step:
    """Everybody is on the new arm; the old one is kept warm for this time. A quiet service is promoted all the same."""
    early, r, findings = _guarded(plan, scene, r)
    if early is not None:
        return early
    if scene.held:
        return _held(scene, r, "all users are on the new arm; the old one is kept warm")
    if overall(findings) == "Error":
        message = f"all users are on the new arm; the old one is kept warm: {_first(r, 'Error')}"
        return Step(r, _unheard(scene, r.weight), message, conditions.PAUSED)
    decision = f"{stamp(scene.now)}: promoted"
    return Step(_with(r, state=PROMOTED, next_step_at=None, last_decision=decision, memory={}), {}, "promoted")


def _guarded(plan: Plan, scene: Scene, r: Rollout, *, hurried: bool = False) -> tuple[Step | None, Rollout, list[Finding]]:
    """What holding and baking share: (the step where it is neither time to go on nor well, the rollout with its evidence, findings).
    `hurried`: it is time to go on."""
    r = _marked(r, "down", None if scene.canary.ready else scene.now)
    if not scene.canary.ready:
        return _down(scene, r), r, []
    r = _based(scene, r)
    findings = _findings(plan, scene, r)
    if overall(findings) == "Fail":
        return _failed(scene, r, findings), r, findings
    r = _rewound(_timed(plan, r), scene.now)
    over = not _endless(r) and seconds_until(r.next_step_at, scene.now) <= 0
    r = _freed(_look(scene, r, findings, over), scene.now, held=bool(scene.held))
    if scene.held == conditions.PAUSED_BY_USER:
        return _held(scene, r), r, findings
    if over or (hurried and not scene.held):
        return None, r, findings
    return Step(r, _unheard(scene, r.weight), _waiting_message(r)), r, findings


def _findings(plan: Plan, scene: Scene, r: Rollout) -> list[Finding]:
    """What all guards say of the step so far."""
    canary, stable = _counted(scene, r)
    return [*judge(plan.guards, canary, stable), *queries.judge(plan.guards, canary.requests, r, scene.answers)]


def _held(scene: Scene, r: Rollout, message: str = "") -> Step:
    """It stays at its weight: as the user asked, or as `message` says."""
    if scene.wish == PAUSE:
        message = f"paused by the user at {r.weight} %: no further step is taken; the guards watch on, and take everybody back if they fail"
    if scene.wish == ABORT:
        message = f"to be aborted at {r.weight} %, once there is where to go back to: no pod of the present arm is ready"
    return Step(r, _unheard(scene, r.weight), message, scene.held)


def _endless(r: Rollout) -> bool:
    """Does only the user end its hold?"""
    return r.state == HOLDING and r.next_step_at is None and experimenting(r)


def _hold(plan: Plan, r: Rollout) -> float:
    """How many seconds the weight in force is held. A split that is fixed stays so, whatever weight the spec names meanwhile."""
    if plan.experiment and (experimenting(r) or (r.experiment is None and r.weight == plan.experiment[0])):
        return plan.experiment[1]
    return next((hold for weight, hold in plan.steps if weight >= r.weight and hold != ENDLESS), 0.0)


def _until(r: Rollout, began: datetime, seconds: float) -> Rollout:
    """The rollout whose weight is held for so long."""
    memory = {k: v for k, v in r.memory.items() if k != "seconds"}
    if seconds == ENDLESS:
        return _with(r, next_step_at=None, memory=memory)
    return _with(r, next_step_at=later(began, seconds), memory={**memory, "seconds": seconds})


def _timed(plan: Plan, r: Rollout) -> Rollout:
    """The rollout with the end that its experiment has today; with any, where one without end is asked for no longer."""
    began = time(r.memory.get("began"))
    if r.state != HOLDING or began is None or not experimenting(r) or (r.next_step_at and plan.experiment is None):
        return r
    return _until(r, began, _hold(plan, r))


def _recorded(plan: Plan, now: datetime, r: Rollout) -> Rollout:
    """The rollout that says since when, and until when, its split was fixed."""
    if experimenting(r) and r.state != HOLDING:
        return _with(r, experiment=r.experiment and r.experiment.model_copy(update={"until": stamp(now)}))
    if r.experiment is None and r.state == HOLDING and plan.experiment and plan.experiment[0] == r.weight:
        return _with(r, experiment=Experiment(weight=r.weight, since=stamp(now)))
    return r


def _rewound(r: Rollout, now: datetime) -> Rollout:
    """With more left than the whole time, the clock was ahead when it began: it begins again."""
    left = seconds_until(r.next_step_at, now)
    whole = float(r.memory.get("seconds", left))
    if left <= whole + 1:  # a second, for times are told in whole ones
        return r
    return _with(r, next_step_at=later(now, whole), memory={**r.memory, "began": stamp(now)})


def _down(scene: Scene, r: Rollout) -> Step:
    """No pod of the new arm is ready: nobody else is moved to it, and soon everybody is taken back, if there is where to."""
    waiting = f"; {scene.canary.waiting.message}" if scene.canary.waiting else ""
    message = f"no pod of the new arm is ready, {r.weight} % of the users are on it{waiting}"
    if _elapsed(r, "down", scene.now) > OUTAGE_SECONDS and _can_go_back(scene, r):
        return roll_back(scene, r, conditions.NO_READY_PODS, message)
    return Step(r, _unheard(scene, r.weight), message, conditions.PAUSED)


def _rolling_back(plan: Plan, scene: Scene, r: Rollout) -> Step:
    cause = str(r.memory.get("cause", ""))
    unknown = all(s.version not in (None, scene.structure.version) for s in scene.routers)  # then nobody can have the new arm
    if in_force(scene, 0) or unknown:
        decision = f"{stamp(scene.now)}: rolled back: {cause}"[:1024]
        return Step(_with(r, state=ROLLED_BACK, last_decision=decision), {}, f"rolled back: {cause}")
    return Step(r, _unheard(scene, 0), f"rolling back: {cause}")


def _failed(scene: Scene, r: Rollout, findings: list[Finding]) -> Step:
    first = next(f for f in findings if f.verdict == "Fail")
    text = f"guard {first.guard} failed at {r.weight} %: {first.evidence}"
    if not _can_go_back(scene, r):
        text = f"{text}; nobody is taken back, for no pod of the present arm is ready"
        return Step(r, _unheard(scene, r.weight), text, conditions.PAUSED)
    return roll_back(scene, _with(r, evidence=_evidence(findings)), conditions.GUARD_FAILED, text)


def _look(scene: Scene, r: Rollout, findings: list[Finding], over: bool) -> Rollout:
    """Write the evidence at planned looks, and over time when the verdict changes: status grows with transitions, not with time.
    (For as long as nobody wants it to go on there is no other look.)"""
    began, seconds = time(r.memory.get("began")), float(r.memory.get("seconds") or 0)
    elapsed = (scene.now - began).total_seconds() if began else 0.0
    look = min(LOOKS, int(LOOKS * elapsed / seconds)) if seconds else LOOKS
    if _endless(r):
        look = int(math.log2(1 + max(0.0, elapsed) / LATE_LOOK_SECONDS))  # each after about twice the time of the one before
    if over:
        look = LOOKS if scene.held else LOOKS + int((elapsed - seconds) / max(LATE_LOOK_SECONDS, seconds))
    seen = [look, overall(findings)] if over else [look]
    if seen == r.memory.get("look") and r.evidence:
        return r
    return _with(r, evidence=_evidence(findings), memory={**r.memory, "look": seen})


def _unheard(scene: Scene, weight: int) -> dict[str, int]:
    """Routers that serve this structure with another weight."""
    return {s.pod: weight for s in scene.routers if s.version == scene.structure.version and s.weight != weight}


def _serves(health: ArmHealth) -> bool:
    return health.wanted > 0 and health.ready >= health.wanted


def _late(plan: Plan, scene: Scene, r: Rollout, key: str = "since") -> bool:
    return _elapsed(r, key, scene.now) > plan.deadline


def _needed(structure: Structure, *, outage: bool) -> list[str]:
    """Arms of which a router must know a healthy pod: both, or the new one alone when the present one serves nobody."""
    canary = [structure.canary.arm] if structure.canary else []
    return canary if outage else [structure.stable.arm, *canary]


def _warm(state: RouterState, arms: list[str]) -> bool:
    return all(state.totals.get(arm, ArmTotals()).healthy > 0 for arm in arms)


def _can_go_back(scene: Scene, r: Rollout) -> bool:
    """Users are never taken back to an arm without a pod that serves."""
    return r.weight == 0 or scene.stable.ready > 0


def _unasked(plan: Plan, scene: Scene, r: Rollout) -> str:
    """Why a query that is to guard the first step cannot be asked; empty too where users are moved all at once."""
    at_once = bool(r.memory.get("outage")) or scene.wish == PROMOTE or plan.steps[0][0] >= 100
    return "" if at_once else queries.unasked(scene.answers)


def _freed(r: Rollout, now: datetime, *, held: bool) -> Rollout:
    """The rollout that remembers that it is held, and once it is not, since when: what it lacked meanwhile is not held against it."""
    was_held, r = "held" in r.memory, _marked(r, "held", now if held else None)
    return _with(r, memory={**r.memory, "freed": stamp(now)}) if was_held and not held else r


def _marked(r: Rollout, key: str, moment: datetime | None) -> Rollout:
    """The rollout that remembers since when something is so (the first moment stays), or with that forgotten."""
    if moment is None:
        return _with(r, memory={k: v for k, v in r.memory.items() if k != key}) if key in r.memory else r
    return r if key in r.memory else _with(r, memory={**r.memory, key: stamp(moment)})


def _elapsed(r: Rollout, key: str, now: datetime) -> float:
    since = time(r.memory.get(key))
    return (now - since).total_seconds() if since else 0.0


def _waiting_message(r: Rollout) -> str:
    if r.state == BAKING:
        return f"all users are on the new arm; the old one is kept warm until {r.next_step_at}"
    until = f"until {r.next_step_at}" if r.next_step_at else f"until {PROMOTE} or {ABORT} is asked for"
    return f"step {r.step} of {r.steps}: {r.weight} % of the users {until}"


def _evidence(findings: list[Finding]) -> list[str]:
    return [f"{f.verdict}: {f.evidence}"[:1024] for f in findings]


def _first(r: Rollout, verdict: str) -> str:
    """The evidence as last written: a message that followed every request would write the status all the time."""
    return next((e.removeprefix(f"{verdict}: ") for e in r.evidence if e.startswith(verdict)), "")


def _first_error(routers: Iterable[RouterState]) -> str:
    return next((f"; router {s.pod} cannot be asked: {s.error}" for s in routers if s.error), "")


def _sources(scene: Scene) -> Iterator[Counted]:
    """(name, start, counters by arm) of every router and server that could be asked."""
    for router in scene.routers:
        if not router.error:
            yield router.pod, router.started, router.totals
    for server in scene.servers:
        if server.totals is not None:
            yield server.pod, server.started, {server.arm: server.totals}


def _counters(sources: Iterable[Counted]) -> dict[str, Any]:
    """Counters now, per router or server and its start, in a form that the status can hold."""
    return {f"{pod}@{started}": {arm: _wire(counted) for arm, counted in totals.items()} for pod, started, totals in sources}


def _based(scene: Scene, r: Rollout) -> Rollout:
    """With today's counters of what is older than the step and could not be asked when it began: it counts from now on."""
    before, began = r.memory.get("counted") or {}, time(r.memory.get("began"))

    def late(pod: str, since: str) -> bool:
        started = time(since)
        return f"{pod}@{since}" not in before and bool(began and started and started <= began)

    found = _counters(source for source in _sources(scene) if late(*source[:2]))
    return _with(r, memory={**r.memory, "counted": {**before, **found}}) if found else r


def _counted(scene: Scene, r: Rollout) -> tuple[ArmTotals, ArmTotals]:
    """(canary, stable) sums since the step began; a router or server that started since then counts from zero."""
    before, structure = r.memory.get("counted") or {}, scene.structure
    canary, stable = ArmTotals(), ArmTotals()
    for pod, since, counters in _sources(scene):
        old = before.get(f"{pod}@{since}") or {}
        for arm, totals in counters.items():
            part = subtract(totals, _read(old.get(arm)))
            if structure.canary and arm == structure.canary.arm:
                canary = add(canary, part)
            elif arm == structure.stable.arm:
                stable = add(stable, part)
    return canary, stable


def _wire(totals: ArmTotals) -> list[Any]:
    """What `_read` reads: the servers' counters only where there are any, of a histogram only bounds with something below them."""
    routers = [totals.requests, totals.errors, _bounds(totals.latency)]
    if not totals.first_token:
        return routers
    return [*routers, _bounds(totals.first_token), _bounds(totals.output_token), totals.answers, totals.unusable]


def _read(stored: list[Any] | None) -> ArmTotals:
    if not stored:
        return ArmTotals()
    requests, errors, latency, *servers = stored
    first, output, answers, unusable = servers or ([], [], 0, 0)
    return ArmTotals(
        int(requests), int(errors), _buckets(latency),
        first_token=_buckets(first), output_token=_buckets(output), answers=int(answers), unusable=int(unusable),
    )  # fmt: skip


def _bounds(buckets: Buckets) -> list[Any]:
    return [["Inf" if math.isinf(bound) else bound, count] for bound, count in buckets if count]


def _buckets(stored: list[Any]) -> Buckets:
    return tuple((math.inf if bound == "Inf" else float(bound), float(count)) for bound, count in stored)


def _with(rollout: Rollout, **changes: Any) -> Rollout:
    return rollout.model_copy(update=changes)
