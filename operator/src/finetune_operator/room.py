"""Does the status stay small? What is over says less where that is missed least, the oldest first; nothing that is in force is touched.

An API server would take twenty times as much, but each FineTune is read whole by whoever lists or watches them. What routers and servers
had counted when a step of a rollout began is in force: it bounds itself (`decide.rollout.counters`), and words make room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from finetune_operator.api.status import Advice, Arm, Attempt, Revision, Scored, Status, StatusModel

LARGEST: Final = 64 * 1024  # bytes of its JSON
SHORT: Final = 60  # characters that are left of a text
Cut = Callable[[Status], Status]
Told = TypeVar("Told")


def fitted(status: Status) -> Status:
    """The same status if it has room; else with as few of its cuts as that takes (all of them, where even that is too little)."""
    for cut in _cuts(status):
        if has_room(status.to_dict()):
            break
        status = cut(status)
    return status


def has_room(status: Mapping[str, Any]) -> bool:
    """Is a status, as it is written, small enough?"""
    return len(msgspec.json.encode(status)) <= LARGEST


def _cuts(status: Status) -> Iterator[Cut]:
    """What is missed least comes first, and of each list the oldest. What the spec asks for keeps every word, and its last attempt."""
    last = max((n for n, a in enumerate(status.attempts) if a.revision == status.revision), default=None)
    old = (n for n in range(len(status.attempts)) if n != last)
    yield from (partial(_changed, "attempts", n, _brief_attempt) for n in old)
    others = [n for n, r in enumerate(status.revisions) if r.name != status.revision]
    yield from (partial(_changed, "revisions", n, _brief_revision) for n in others)
    yield from (partial(_changed, "arms", n, _brief_arm) for n, arm in enumerate(status.arms) if arm.revision != status.revision)
    yield from (partial(_changed, "advice", n, _brief_advice) for n in range(len(status.advice or ())))
    yield _without_stages
    yield from (partial(_changed, "revisions", n, _without_figures) for n in others if status.revisions[n].name != status.live_revision)
    yield _without_advice


def _changed(name: str, n: int, shorter: Callable[[Any], Any], status: Status) -> Status:
    """The status with an entry of one of its lists made shorter."""
    listed = getattr(status, name)
    return status.model_copy(update={name: [shorter(item) if i == n else item for i, item in enumerate(listed)]})


def _brief_attempt(attempt: Attempt) -> Attempt:
    return attempt.model_copy(update={"message": _short(attempt.message)})


def _brief_revision(revision: Revision) -> Revision:
    """Every text of it in short: what comes of it is a matter of whether it is there. What examples in a prompt did was advice."""
    texts = {name: _short(getattr(revision, name)) for name in ("dropped", "unprobed")}
    told = {name: _brief(getattr(revision, name), "message") for name in ("trouble", "stopped")}
    scored = {name: _brief_scored(getattr(revision, name)) for name in ("baseline", "evaluated")}
    return revision.model_copy(update={**texts, **told, **scored})


def _brief_scored(scored: Scored | None) -> Scored | None:
    if scored is None:
        return None
    probed = {name: _brief(getattr(scored, name), "unmeasured") for name in ("forgetting", "fidelity")}
    return scored.model_copy(update={**probed, "few_shot": None})


def _without_stages(status: Status) -> Status:
    """When stages of other revisions began and ended is told by nobody else, and used by nobody."""
    return status.model_copy(update={"stages": [s for s in status.stages if s.revision == status.revision]})


def _without_advice(status: Status) -> Status:
    """The pages have all of it."""
    return status.model_copy(update={"advice": None})


def _without_figures(revision: Revision) -> Revision:
    """What was estimated of a training that is done, and the scores of one that all users had: neither is asked for again."""
    trained = {"estimate": None, "rows": None, "trouble": None} if revision.artifact else {}
    return revision.model_copy(update={**trained, **({"baseline": None, "evaluated": None} if revision.promoted else {})})


def _brief_arm(arm: Arm) -> Arm:
    return arm.model_copy(update={"stopped": _brief(arm.stopped, "message")})


def _brief_advice(advice: Advice) -> Advice:
    return advice.model_copy(update={"message": _short(advice.message), "fix": _short(advice.fix)})


def _brief(told: Told, field: str) -> Told:
    """The same with that text in short, where there is any."""
    return told.model_copy(update={field: _short(getattr(told, field))}) if isinstance(told, StatusModel) else told


def _short(text: str | None) -> str | None:
    """Its beginning, if it is long."""
    return text if text is None or len(text) <= SHORT else f"{text[: SHORT - 1]}…"
