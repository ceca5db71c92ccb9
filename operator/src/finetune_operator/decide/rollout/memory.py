"""What a rollout remembers from cycle to cycle, in `status.rollout.memory`: since when something is so."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.api.status import Rollout
from finetune_operator.decide.draft import stamp
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.scene import Scene
from finetune_operator.workloads.objects import time


def marked(r: Rollout, key: str, moment: datetime | None) -> Rollout:
    """The rollout that remembers since when something is so (the first moment stays), or with that forgotten."""
    if moment is None:
        return changed(r, memory={k: v for k, v in r.memory.items() if k != key}) if key in r.memory else r
    return r if key in r.memory else changed(r, memory={**r.memory, key: stamp(moment)})


def elapsed(r: Rollout, key: str, now: datetime) -> float:
    """Seconds since what is remembered; 0 if nothing is."""
    since = time(r.memory.get(key))
    return (now - since).total_seconds() if since else 0.0


def overdue(plan: Plan, scene: Scene, r: Rollout, key: str = "since") -> bool:
    """Has it been so for longer than rollout.progressDeadline?"""
    return elapsed(r, key, scene.now) > plan.deadline


def freed(r: Rollout, now: datetime, *, held: bool) -> Rollout:
    """The rollout that remembers that it is held, and once it is not, since when: what it lacked meanwhile is not held against it."""
    was_held, r = "held" in r.memory, marked(r, "held", now if held else None)
    return changed(r, memory={**r.memory, "freed": stamp(now)}) if was_held and not held else r


def darkened(scene: Scene, r: Rollout) -> tuple[Rollout, bool]:
    """The rollout that remembers since when no pod of the present arm serves; has that been so for so long that the new one takes over?"""
    serves = scene.stable.ready > 0 or scene.barred(scene.stable.wanted)
    r = marked(r, "dark", None if serves else scene.now)
    return r, elapsed(r, "dark", scene.now) > scene.stable_patience


def taking_over(r: Rollout) -> Rollout:
    """The rollout whose new arm gets all users at once, for the present one serves nobody."""
    return changed(r, memory={**{k: v for k, v in r.memory.items() if k != "dark"}, "outage": True})


def changed(rollout: Rollout, **changes: Any) -> Rollout:
    """The rollout with these fields changed."""
    return rollout.model_copy(update=changes)
