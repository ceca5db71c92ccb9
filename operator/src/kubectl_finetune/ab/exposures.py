"""What the routers logged, read line by line into sums for each user. Never a line is kept.

Lines that are none of the log (Envoy says other things, too) are passed over; a line of it that cannot be read is an error that names
it. What a collector writes before the JSON is cut off.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from finetune_operator.build.exposure_log import LOG

from kubectl_finetune.ab.statistics import LARGEST
from kubectl_finetune.kubectl import PluginError

ABANDONED: Final = "DC"  # Envoy's flag for a client that went away: nobody's fault
WRAPPERS: Final = ("log", "message")  # fields in which a container runtime, or a collector, has the line
BUCKETS: Final = 50  # of a quantile's histogram, for each factor of e: 2 % apart
Pair = tuple[float, float]


@dataclass(frozen=True)
class Exposure:
    """One request, as it was logged. Times are milliseconds."""

    time: datetime
    user: str
    key: str
    rollout: str
    arm: str
    canary: str
    revision: str
    split: float
    status: int
    flags: str
    duration: float
    first: float | None
    tokens: float | None
    response: str | None

    @property
    def abandoned(self) -> bool:
        """Did the client go away?"""
        return self.flags == ABANDONED

    @property
    def failed(self) -> bool:
        """Is it an error of the arm: of class 5, cut off, or never answered? What the client gave up is none."""
        return self.status >= 500 or (self.flags not in ("-", "") and not self.abandoned)


class Quantiles:
    """Times as a histogram, so that any number of them takes the same memory."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count one."""
        self._counts[round(BUCKETS * math.log(max(value, 0.5)))] += 1

    def at(self, q: float) -> float | None:
        """The q-quantile, within a per cent; None of nothing."""
        left = q * sum(self._counts.values())
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return math.exp(bucket / BUCKETS)
        return None


@dataclass(slots=True)
class Tally:
    """One user on one arm: sums over the requests, and over those that tell of it."""

    requests: int = 0
    errors: int = 0
    duration: float = 0.0
    answered: int = 0  # requests whose duration is an answer's: neither failed nor given up
    first: float = 0.0
    firsts: int = 0
    tokens: float = 0.0
    counted: int = 0  # answers that told their tokens
    outcome: float = 0.0
    outcomes: int = 0

    def add(self, e: Exposure) -> None:
        """Count a request."""
        self.requests += 1
        self.errors += e.failed
        if not (e.failed or e.abandoned):
            self.duration, self.answered = self.duration + e.duration, self.answered + 1
            if e.first is not None:
                self.first, self.firsts = self.first + e.first, self.firsts + 1
        if e.tokens is not None:
            self.tokens, self.counted = self.tokens + e.tokens, self.counted + 1


@dataclass
class ArmSeen:
    """What was logged of an arm, over all its requests."""

    revision: str
    users: dict[str, Tally] = field(default_factory=dict)
    abandoned: int = 0
    duration: Quantiles = field(default_factory=Quantiles)
    first: Quantiles = field(default_factory=Quantiles)


@dataclass
class Seen:
    """A rollout's log. `skipped` counts lines of other rollouts, and of other times."""

    rollout: str = ""
    canary: str = ""
    split: float = 0.0
    key: str = ""
    arms: dict[str, ArmSeen] = field(default_factory=dict)
    began: datetime | None = None
    ended: datetime | None = None
    skipped: int = 0
    responses: dict[str, tuple[str, str]] = field(default_factory=dict)  # of `wanted`: answer → (arm, user)

    def both(self) -> list[str]:
        """Users who were seen on both arms: they are of neither."""
        first, *others = (arm.users.keys() for arm in self.arms.values())
        return sorted(first & others[0]) if others else []

    @property
    def stable(self) -> str:
        """The arm that is not the canary."""
        return next((name for name in self.arms if name != self.canary), "")


@dataclass(frozen=True)
class Asked:
    """What of a log counts. Without a rollout it is the only one that is there."""

    rollout: str = ""
    since: datetime | None = None
    until: datetime | None = None
    responses: frozenset[str] = frozenset()  # answers whose users are asked for


def read(lines: Iterable[str], source: str, asked: Asked) -> Seen:
    """The sums of a log. PluginError names the line that cannot be read, or says that the log has nothing, or two things, to compare."""
    seen = Seen(rollout=asked.rollout)
    for number, line in enumerate(lines, 1):
        if LOG not in line:
            continue
        e = parsed(line, f"{source}, line {number}")
        if (asked.rollout and e.rollout != asked.rollout) or not _between(e.time, asked):
            seen.skipped += 1
            continue
        _count(seen, e, f"{source}, line {number}", asked.responses)
    _require_arms(seen, source)
    return seen


def parsed(line: str, where: str) -> Exposure:
    """A line of the log. PluginError names it, and the field that is wrong."""
    start = line.find("{")
    try:
        document = json.loads(line[start:])
    except ValueError as error:
        raise PluginError(f"{where}: it is no JSON ({error}): is the line cut off?") from None
    wrapped = (
        next((v for v in (document.get(k) for k in WRAPPERS) if isinstance(v, str) and LOG in v), LOG)
        if isinstance(document, dict)
        else LOG
    )
    if wrapped != LOG:
        return parsed(wrapped, where)
    if not isinstance(document, dict) or document.get("log") != LOG:
        raise PluginError(f"{where}: it has {LOG} in it, and is no line of that log")
    return Exposure(
        time=_time(document, where),
        **{name: _text(document, name, where) for name in ("user", "key", "rollout", "arm", "canary", "revision")},
        split=_number(document, "split", where),
        status=int(_optional(document, "status", where) or 0),
        flags=str(document.get("flags") or "-"),
        duration=_number(document, "duration_ms", where),
        first=_optional(document, "first_ms", where),
        tokens=_optional(document, "completion_tokens", where),
        response=str(document["response"]) if document.get("response") else None,
    )


def _count(seen: Seen, e: Exposure, where: str, responses: frozenset[str]) -> None:
    if not seen.arms:
        seen.rollout, seen.canary, seen.split, seen.key = e.rollout, e.canary, e.split, e.key
    for name, first, this, fix in (
        ("rollout", seen.rollout, e.rollout, "choose one by --rollout"),
        ("split", seen.split, e.split, "it was changed: choose the time of one by --since and --until"),
        ("key", seen.key, e.key, "users are not the same before and after: choose the time of one by --since and --until"),
    ):
        if first != this:
            raise PluginError(f"{where}: the {name} is {this}, and it was {first} before; {fix}")
    seen.began = min(e.time, seen.began or e.time)
    seen.ended = max(e.time, seen.ended or e.time)
    arm = seen.arms.setdefault(e.arm, ArmSeen(e.revision))
    if len(seen.arms) > 2:
        raise PluginError(f"{where}: {e.arm} is a third arm of rollout {e.rollout}, after {' and '.join(list(seen.arms)[:2])}")
    arm.users.setdefault(e.user, Tally()).add(e)
    arm.abandoned += e.abandoned
    if not (e.failed or e.abandoned):
        arm.duration.add(e.duration)
        if e.first is not None:
            arm.first.add(e.first)
    if e.response in responses:
        seen.responses[e.response] = (e.arm, e.user)


def _require_arms(seen: Seen, source: str) -> None:
    if not seen.arms:
        others = f" ({seen.skipped} lines are of another rollout or another time)" if seen.skipped else ""
        raise PluginError(
            f"{source} has no exposure of it{others}. The routers log them while a rollout runs with spec.rollout.experiment.log, whose "
            "Secret has a `key` of at least 16 characters, of users that spec.rollout.identity finds"
        )
    if len(seen.arms) == 1:
        (only,) = seen.arms
        role = "the new one" if only == seen.canary else "the present one"
        raise PluginError(f"{source} has users of one arm alone, {only} ({role}): there is nothing to compare it with")
    if seen.canary not in seen.arms:
        raise PluginError(f"{source}: no line is of the new arm, {seen.canary}")


def _between(moment: datetime, asked: Asked) -> bool:
    return (asked.since is None or moment >= asked.since) and (asked.until is None or moment <= asked.until)


def _time(document: Mapping[str, Any], where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(document, "time", where))
    except ValueError:
        raise PluginError(f"{where}: time is {document['time']!r}, and no time") from None
    if moment.tzinfo is None:
        raise PluginError(f"{where}: time is {document['time']!r}, without a zone")
    return moment


def _text(document: Mapping[str, Any], name: str, where: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise PluginError(f"{where}: {name} is {value!r}, and is to be a text")
    return value


def _number(document: Mapping[str, Any], name: str, where: str) -> float:
    value = _optional(document, name, where)
    if value is None:
        raise PluginError(f"{where}: there is no {name}")
    return value


def _optional(document: Mapping[str, Any], name: str, where: str) -> float | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise PluginError(f"{where}: {name} is {value!r:.60}, and is to be a number")
    return float(value)
