"""What the rules pass on: the status as it will be, and what the newest revision waits for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from finetune_operator import conditions
from finetune_operator.api.status import Cleaning, Revision, Stage, Status
from finetune_operator.observed import Observed
from finetune_operator.traffic import Structure
from finetune_operator.workloads.objects import time
from finetune_operator.workloads.run import Waiting

MAX_STAGES = 20
MAX_REVISIONS = 10
MAX_REMOVED = 32
LARGEST = 2**53  # what JSON's numbers hold exactly


@dataclass(frozen=True)
class JobWanted:
    """A Job that must exist: `number` is the try of a stage, or the attempt of a training."""

    stage: str
    revision: str
    number: int


@dataclass(frozen=True)
class ArmWanted:
    """An arm that must serve: what it is called and which revision it serves (`base`: the untouched model)."""

    name: str
    revision: str


@dataclass(frozen=True)
class Routing:
    """What the routers must serve: the document they boot from, and the weights to push to which pods now."""

    structure: Structure
    weight: int
    pushes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Serving:
    """The arm that the users have, with its pods."""

    arm: str
    ready: int
    wanted: int


@dataclass(frozen=True)
class Note:
    """A Kubernetes Event to emit once the status is written."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Draft:
    """A decision in the making. `blocked`: the newest revision has said what it waits for; later stage rules pass."""

    status: Status
    phase: str = conditions.PENDING
    reason: str = ""
    message: str = ""
    blocked: bool = False
    jobs: tuple[JobWanted, ...] = ()
    clean: bool = False  # the Job that removes what the status lists
    obsolete: tuple[str, ...] = ()
    arms: tuple[ArmWanted, ...] = ()
    routing: Routing | None = None
    serving: Serving | None = None
    exposed: bool = False  # the object that lets users outside the cluster call must exist
    unexposed: Waiting | None = None  # why there can be none, though the spec asks for it
    notes: tuple[Note, ...] = ()
    requeue: float | None = None

    @cached_property
    def revision(self) -> Revision:
        """The revision that the spec asks for."""
        return next(r for r in self.status.revisions if r.name == self.status.revision)

    def set(self, **changes: Any) -> Draft:
        """The same draft with fields of its status changed."""
        return replace(self, status=self.status.model_copy(update=changes))

    def with_revision(self, revision: Revision) -> Draft:
        """The same draft with that revision's entry replaced, or added (the oldest idle one makes room)."""
        if any(r.name == revision.name for r in self.status.revisions):
            return self.set(revisions=[revision if r.name == revision.name else r for r in self.status.revisions])
        draft = self
        while len(draft.status.revisions) >= MAX_REVISIONS:
            draft = draft._forget_one()
        return draft.set(revisions=[*draft.status.revisions, revision])

    def _forget_one(self) -> Draft:
        """The same draft without the oldest idle revision; what lies of it on the volume is to be removed."""
        status = self.status
        kept = {status.live_revision, status.previous_revision, status.rollout.revision if status.rollout else None}
        idle = [r for r in status.revisions if r.name not in kept]
        oldest = next((r for r in idle if r.artifact is None), idle[0])
        cleaning = status.cleaning or Cleaning()
        forgotten = [*(n for n in cleaning.forgotten if n != oldest.name), oldest.name][-MAX_REMOVED:]
        return self.set(
            revisions=[r for r in status.revisions if r is not oldest], cleaning=cleaning.model_copy(update={"forgotten": forgotten})
        )

    def update(self, **changes: Any) -> Draft:
        """The same draft with fields of the current revision changed."""
        news = {name: value for name, value in changes.items() if getattr(self.revision, name) != value}
        return self.with_revision(self.revision.model_copy(update=news)) if news else self

    def block(self, phase: str, message: str, *, reason: str = "", requeue: float | None = None) -> Draft:
        """The newest revision waits: why, in words a user can act on, and when to look again (seconds)."""
        return replace(
            self, blocked=True, phase=phase, reason=reason or phase, message=message[:1024], requeue=soonest(self.requeue, requeue)
        )

    def want(self, stage: str, number: int) -> Draft:
        """The same draft with one more Job that must exist."""
        return replace(self, jobs=(*self.jobs, JobWanted(stage, self.revision.name, number)))

    def note(self, type_: str, reason: str, message: str) -> Draft:
        """The same draft with one more Event."""
        return replace(self, notes=(*self.notes, Note(type_, reason, message[:1024])))

    def begin(self, stage: str, now: datetime, revision: str | None = None) -> Draft:
        """Note when a stage began, once; of the newest revision if none is named."""
        name = revision or self.revision.name
        if any(s.name == stage and s.revision == name and s.finished is None for s in self.status.stages):
            return self
        entry = Stage(name=stage, revision=name, started=stamp(now))
        return self.set(stages=[*self.status.stages, entry][-MAX_STAGES:])

    def end(self, stage: str, now: datetime, revision: str | None = None) -> Draft:
        """Note when a stage ended."""
        name = revision or self.revision.name
        return self.set(
            stages=[
                s.model_copy(update={"finished": stamp(now)}) if (s.name, s.revision, s.finished) == (stage, name, None) else s
                for s in self.status.stages
            ]
        )


Rule = Callable[[Observed, Draft], Draft]


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def later(moment: datetime, seconds: float) -> str:
    """The timestamp that many seconds after."""
    return stamp(moment + timedelta(seconds=seconds))


def seconds_until(timestamp: str | None, now: datetime, longest: float = math.inf) -> float:
    """Seconds from now to the timestamp; 0 when it is past or absent, or further off than anything is put: the clock was ahead then."""
    moment = time(timestamp)
    seconds = max(0.0, (moment - now).total_seconds()) if moment else 0.0
    return seconds if seconds <= longest else 0.0


def finite(value: Any) -> float | None:
    """A number that a pod tells, if it is one that the status can hold: nothing that a pod says ends a cycle."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else None


def soonest(*delays: float | None) -> float | None:
    """The shortest of the delays that are there."""
    known = [d for d in delays if d is not None]
    return min(known) if known else None
