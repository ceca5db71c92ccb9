"""A Job and its pods, read: how it goes, why it failed, what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

FailureClass = Literal["error", "user", "outOfMemory", "stalled", "nonFinite", "infrastructure", "disruption"]
GANG_SECONDS: Final = 600.0  # so long may a part of a gang hold machines while the others wait
CROWDED_SECONDS: Final = 30.0  # or one that others had better be tried in place of: a scheduler looks again within 10


@dataclass(frozen=True)
class Waiting:
    """Why a pod does not run: a reason of `conditions`, and words a user can act on."""

    reason: str
    message: str


@dataclass(frozen=True)
class Failure:
    """The root cause of a failed Job."""

    failure_class: FailureClass
    reason: str
    message: str
    pod: str = ""
    node: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    waited: bool = False  # it never ran: a part of its pods waited too long
    container: str = ""  # whose end it was, where one is known


@dataclass(frozen=True)
class Waited:
    """Seconds that a Job's pods have been waited for: for a queue to admit it, for the last of them to have a machine (or to be let be
    made), and for one that has a machine to begin; None: not at all. The names are those of `spec.deadlines`."""

    admission: float | None = None
    schedule: float | None = None
    start: float | None = None


@dataclass(frozen=True)
class Run:
    """A Job and its pods, read."""

    name: str
    state: Literal["Absent", "Waiting", "Running", "Ending", "Succeeded", "Failed"]  # Ending: failed or deleted, pods not yet gone
    result: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    waiting: Waiting | None = None
    leader_ip: str | None = None  # pod that answers /progress
    leader_uid: str | None = None
    suspended: bool = False
    ended: datetime | None = None  # when it was told to have succeeded or failed
    stopped: bool = False  # ranks stopped on request, and neither a queue nor anybody else has said why
    unheard: bool = False  # what it waits for may be told by Events alone, which nobody watches
    held: float = 0.0  # seconds that some pods of the gang have held machines while others wait for theirs
    crowded: str = ""  # the one node that has pods of the gang, where it has no room for the others and some node elsewhere has
    waited: Waited = Waited()
    since: datetime | None = None  # when the first of its pods came to its machine
    asked: str = ""  # digest of what decides where its pods may go
    judged_since: datetime | None = None  # since when an image of the user's scores the answers
    key: str = ""  # of a scoring stage: the evaluation's; empty of a Job of an older version
    probing: bool = False  # its probe has begun, and has not ended well


ABSENT: Final = Run(name="", state="Absent")
