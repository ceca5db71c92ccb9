"""What do the guards say of the step so far, and when is it written to the status?"""

from __future__ import annotations

import math
from typing import Final

from finetune_operator.api.status import Rollout
from finetune_operator.decide import queries
from finetune_operator.decide.guards import Finding, judge, overall
from finetune_operator.decide.rollout.counters import counted
from finetune_operator.decide.rollout.experiment import endless
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.plan import Plan
from finetune_operator.decide.rollout.scene import Scene
from finetune_operator.workloads.objects import time

LATE_LOOK_SECONDS: Final = 60.0
LOOKS: Final = 10  # times that the evidence of a step is written to the status, at most, while it runs in time


def findings(plan: Plan, scene: Scene, r: Rollout) -> list[Finding]:
    """What all guards say of the step so far."""
    canary, stable = counted(scene, r)
    return [*judge(plan.guards, canary, stable), *queries.judge(plan.guards, canary.requests, r, scene.answers)]


def looked(scene: Scene, r: Rollout, findings: list[Finding], over: bool) -> Rollout:
    """Write the evidence at planned looks, and over time when the verdict changes: status grows with transitions, not with time.
    (For as long as nobody wants it to go on there is no other look.)"""
    began, seconds = time(r.memory.get("began")), float(r.memory.get("seconds") or 0)
    elapsed = (scene.now - began).total_seconds() if began else 0.0
    look = min(LOOKS, int(LOOKS * elapsed / seconds)) if seconds else LOOKS
    if endless(r):
        look = int(math.log2(1 + max(0.0, elapsed) / LATE_LOOK_SECONDS))  # each after about twice the time of the one before
    if over:
        look = LOOKS if scene.held else LOOKS + int((elapsed - seconds) / max(LATE_LOOK_SECONDS, seconds))
    seen = [look, overall(findings)] if over else [look]
    if seen == r.memory.get("look") and r.evidence:
        return r
    return changed(r, evidence=lines(findings), memory={**r.memory, "look": seen})


def lines(findings: list[Finding]) -> list[str]:
    """The findings as the status has them."""
    return [f"{f.verdict}: {f.evidence}"[:1024] for f in findings]


def first(r: Rollout, verdict: str) -> str:
    """The evidence as last written: a message that followed every request would write the status all the time."""
    return next((e.removeprefix(f"{verdict}: ") for e in r.evidence if e.startswith(verdict)), "")
