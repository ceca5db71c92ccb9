"""What the status says: phase, conditions, columns. A pure function of the object, the snapshot and the decision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from finetune_operator import conditions as c
from finetune_operator import names
from finetune_operator.api.status import Condition, Revision, Rows, Scored, Status
from finetune_operator.build import exposure
from finetune_operator.decide import costs, economics
from finetune_operator.decide.draft import Draft, stamp
from finetune_operator.decide.exposure import asked
from finetune_operator.decide.served import health_of, used_arms
from finetune_operator.observed import Exposure, Observed
from finetune_operator.workloads.run import Waiting

_REASON = re.compile(r"^[A-Za-z]([A-Za-z0-9_,:]{0,251}[A-Za-z0-9_])?$")  # what the API server takes; an image may say anything
PROGRESSING = frozenset(c.PHASES) - c.READY_PHASES - c.STALLED_PHASES - {c.SUSPENDED}


def compute(o: Observed, d: Draft, problem: Waiting | None = None, refused: Waiting | None = None) -> Status:
    """The status to write; `problem` is what kept the last cycle from making a child, `refused` from leading users outside to it."""
    phase, reason, message = d.phase, d.reason or d.phase, d.message
    d = replace(d, unexposed=d.unexposed or refused)
    problem = problem or (d.unexposed if phase in c.READY_PHASES else None)  # what is the matter elsewhere comes first
    if problem is not None:
        reason, message = problem.reason, problem.message
    since = _since(o.status, phase, reason, o.now)
    if phase not in c.READY_PHASES or problem is not None:
        message = f"{message[:980]} (since {since})"
    summed = {"economics": economics.summary(o, d), "cost": costs.summary(o, d)}
    columns = {"phase_since": since, **summed, **_columns(o, d, reason), **_scale(o, d)}
    facts = {
        c.READY: _ready(phase, problem, reason, message),
        c.RECONCILING: _reconciling(phase, problem, message),
        c.STALLED: _stalled(phase, reason, message),
        **_stages(o, d),
        c.EXPOSED: _exposed(o, d),
    }
    wanted = {type_: fact for type_, fact in facts.items() if fact is not None}
    merged = merge(o.status.conditions, wanted, o.generation, o.now)
    return d.status.model_copy(update={"observed_generation": o.generation, "phase": phase, **columns, "conditions": merged})


def _since(before: Status, phase: str, reason: str, now: datetime) -> str:
    """When this phase began for this reason."""
    same = (before.phase, before.reason) == (phase, reason)
    return before.phase_since if same and before.phase_since else stamp(now)


def invalid(previous: Status, generation: int, message: str, now: datetime) -> Status:
    """The status of an object whose spec cannot be read: says which field, and leaves everything else as it is."""
    return _instead(previous, c.FAILED, c.INVALID_SPEC, generation, now, {c.STALLED: ("True", c.INVALID_SPEC, message)}, message)


def leaving(previous: Status, generation: int, finalizers: Iterable[str], now: datetime) -> Status:
    """The status of an object that is deleted and that a finalizer still keeps: nothing of it is made or changed any more."""
    message = f"it is being deleted, and is gone once its finalizers are taken away: {', '.join(finalizers)}"
    return _instead(previous, c.TERMINATING, c.TERMINATING, generation, now, {c.RECONCILING: ("True", c.TERMINATING, message)}, message)


def _instead(previous: Status, phase: str, reason: str, generation: int, now: datetime, summary: dict[str, Fact], message: str) -> Status:
    """The same status but for its phase and what sums it up."""
    kept = {x.type: (x.status, x.reason, x.message) for x in previous.conditions if x.type not in (c.READY, c.RECONCILING, c.STALLED)}
    merged = merge(previous.conditions, {**kept, c.READY: ("False", reason, message), **summary}, generation, now)
    return previous.model_copy(
        update={
            "observed_generation": generation, "phase": phase, "reason": reason, "conditions": merged,
            "phase_since": _since(previous, phase, reason, now),
        }
    )  # fmt: skip


Fact = tuple[str, str, str]


def merge(old: list[Condition], facts: dict[str, Fact], generation: int, now: datetime) -> list[Condition]:
    """Conditions with those facts; the time of the last transition is kept while the status stays the same."""
    before = {x.type: x for x in old}
    return [_condition(before.get(type_), type_, fact, generation, now) for type_, fact in facts.items()]


def _condition(before: Condition | None, type_: str, fact: Fact, generation: int, now: datetime) -> Condition:
    status, reason, message = fact
    since = before.last_transition_time if before and before.status == status else stamp(now)
    said = {
        "type": type_, "status": status, "reason": reason if _REASON.match(reason) else "Unknown", "message": message[:1024],
        "last_transition_time": since, "observed_generation": generation,
    }  # fmt: skip
    return before if before and said == vars(before) else Condition.model_validate(said)


def _ready(phase: str, problem: Waiting | None, reason: str, message: str) -> Fact:
    if problem is not None:
        return ("False", reason, message)
    if phase in c.READY_PHASES:
        return ("True", reason, message)
    if phase in c.STALLED_PHASES or phase == c.SUSPENDED or reason != phase:
        return ("False", reason, message)
    return ("Unknown", reason, message)


def _reconciling(phase: str, problem: Waiting | None, message: str) -> Fact | None:
    """Work goes on, or is tried again by itself."""
    going = phase in PROGRESSING or (problem is not None and phase not in c.STALLED_PHASES)
    return ("True", phase, message) if going else None


def _stalled(phase: str, reason: str, message: str) -> Fact | None:
    return ("True", reason, message) if phase in c.STALLED_PHASES else None


def _stages(o: Observed, d: Draft) -> dict[str, Fact | None]:
    revision = d.revision
    scored, tuned = revision.baseline, revision.evaluated
    return {
        c.DATA_PREPARED: _stage(revision.data_digest is not None, "Prepared", _rows(revision)),
        c.BASELINE_SCORED: _stage(scored is not None, "Scored", _numbers(scored) if scored else ""),
        c.TRAINED: _stage(revision.artifact is not None, "ArtifactKept", revision.artifact or ""),
        c.EVALUATED: _stage(tuned is not None, "Scored", _numbers(tuned) if tuned else ""),
        c.AVAILABLE: _available(d),
        c.ROLLED_OUT: _with_queries(o, _with_control(d, _rolled_out(d))),
    }


def _rows(revision: Revision) -> str:
    rows = revision.rows
    if rows is None:
        return ""
    counted = f"{rows.train} training, {rows.validation} validation, {rows.test} test rows; {_dropped(rows)}"
    return f"{counted}: {revision.dropped}" if revision.dropped else counted


def _numbers(scored: Scored) -> str:
    score, difference = scored.score, scored.difference
    text = f"{scored.metric} {score.score} [{score.low}, {score.high}], n={score.n}"
    if difference:
        text += f"; difference to the reference {difference.difference} [{difference.low}, {difference.high}], n={difference.n}"
    if (few := scored.few_shot) and few.score:
        text += f"; with {few.examples} examples in the prompt {few.score.score} [{few.score.low}, {few.score.high}], n={few.score.n}"
    return f"{text}; {scored.excluded} rows left out, for the live revision was trained on them" if scored.excluded else text


def _rolled_out(d: Draft) -> Fact:
    """Has the newest revision all users? An arm of it that still rolls out says not yet."""
    revision, rollout = d.revision, d.status.rollout
    mine = rollout if rollout and rollout.revision == revision.name else None
    if mine and mine.state not in ("Promoted", "RolledBack"):
        return ("False", mine.state, mine.last_decision or "")
    if revision.promoted and d.status.live_revision == revision.name:
        return ("True", "Promoted", f"revision {revision.name} serves all users")
    return ("False", mine.state, mine.last_decision or "") if mine else ("False", "NotStarted", "")


def _with_control(d: Draft, fact: Fact) -> Fact:
    """The same, with why what the user asked of a rollout is without effect."""
    control, (status, reason, message) = d.status.control, fact
    if control is None or control.outcome == "Accepted":
        return fact
    return (status, reason, f"{message}; {control.message}" if message else control.message)


def _with_queries(o: Observed, fact: Fact) -> Fact:
    """The same, with what its rollout will lack, said before there is one."""
    status, reason, message = fact
    if o.prometheus or not o.spec.rollout.guards.queries or o.spec.serving is None:
        return fact
    return (status, reason, f"{message}; {c.PROMETHEUS_UNKNOWN}" if message else c.PROMETHEUS_UNKNOWN)


def _stage(done: bool, reason: str, message: str) -> Fact:
    return ("True", reason, message) if done else ("False", "NotYet", "")


def _available(d: Draft) -> Fact:
    serving = d.serving
    if serving is None:
        return ("False", "NotServing", "no arm serves users")
    pods = f"arm {serving.arm}: {serving.ready} of {serving.wanted} pods are ready"
    return ("True", "Serving", pods) if serving.ready else ("False", "NoReadyPods", pods)


def _exposed(o: Observed, d: Draft) -> Fact | None:
    """Can users outside the cluster call? Nothing is said where nobody asked for it."""
    kind = asked(o.spec)
    if kind is None:
        return None
    if d.unexposed:
        return ("False", d.unexposed.reason, d.unexposed.message)
    seen = o.exposures.get(kind.kind, Exposure())
    if d.exposed and seen.reason:
        return (seen.status, seen.reason, seen.message)
    return ("False", "NotYet", f"{kind.kind} {o.name} is being made" if d.exposed else "no arm serves users yet")


def _scale(o: Observed, d: Draft) -> dict[str, int | str | None]:
    """What an autoscaler that names the FineTune goes by. Without a rollout they change with the condition Available alone: no write more.
    One that sets nothing, for the replicas are in other hands, is told by itself: without a selector it does not scale."""
    arms, serving = used_arms(d.status), o.spec.serving
    counts = bool(arms) and serving is not None and serving.autoscaling is None
    return {
        "replicas": sum(health_of(o, arm).ready for arm in arms) if arms else None,
        "selector": f"{names.NAME}={o.name},{names.ARM} in ({','.join(arms)})" if counts else None,
    }


def _dropped(rows: Rows) -> str:
    long = f", {rows.too_long} too long" if rows.too_long else ""
    alike = f", {rows.near_duplicate} near-duplicates" if rows.near_duplicate else ""
    return f"{rows.invalid} invalid and {rows.duplicate} duplicate rows dropped{alike}{long}"


def _columns(o: Observed, d: Draft, reason: str) -> dict[str, str | None]:
    status, training = d.status, d.status.training
    attempt = next((a for a in reversed(status.attempts) if a.revision == status.revision), None)
    live = training if training and training.revision == status.revision else None
    scored, tuned = d.revision.baseline, d.revision.evaluated
    score = f"{scored.score.score} → {tuned.score.score if tuned else '?'}" if scored else None
    rolling = status.rollout
    kind = asked(o.spec)
    exposed = d.exposed and kind is not None and o.exposures.get(kind.kind, Exposure()).there
    exposing = o.spec.serving.expose if o.spec.serving and exposed else None
    scheme = "https" if o.spec.serving and o.spec.serving.tls else "http"
    return {
        "progress": f"{live.percent}%" if live and not d.revision.artifact else None,
        "eta": duration(live.eta_seconds) if live and live.eta_seconds and d.phase == c.TRAINING else None,
        "score": score,
        "weight": f"{rolling.weight}%" if rolling else None,
        "attempt": str(attempt.number) if attempt else None,
        "reason": reason,
        "url": exposure.url(exposing) if exposing else None,
        "endpoint": f"{scheme}://{names.users_service(o.name)}.{o.namespace}.svc/v1" if status.live_arm else None,
    }


def duration(seconds: int) -> str:
    """Seconds in two units at most: `45s`, `12m`, `3h20m`."""
    if seconds < 60:
        return f"{seconds}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
