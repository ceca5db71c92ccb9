"""What the user's own PromQL shows: how it is asked, and what its answers mean.

A query that names an arm is asked of each: what is as bad on stable is not the canary's fault. What is put into it are names that
the operator made, none of which needs a quote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from finetune_operator import names
from finetune_operator.api.blocks.guards import Guards, Query
from finetune_operator.api.status import Rollout, Status
from finetune_operator.decide.guards import Finding
from finetune_operator.observed import Answer, Question
from finetune_operator.workloads.objects import time

OF_AN_ARM: Final = ("${arm}", "${revision}", "${pods}")
Answers = Mapping[tuple[str, str], Answer]  # by guard and arm


def questions(guards: Guards, status: Status, namespace: str, finetune: str, now: datetime) -> Iterator[Question]:
    """What is to be asked of the rollout in the status, of the step that it is in."""
    r = status.rollout
    if r is None:
        return
    since = str(r.memory.get("began", ""))
    began = time(since)
    window = max(1, int((now - began).total_seconds())) if began else 1
    revisions = {r.arm: r.revision, r.stable: status.live_revision or ""}
    for query in guards.queries or ():
        for arm in _arms(query, r):
            known = {
                "${namespace}": namespace, "${finetune}": finetune, "${canary}": r.arm, "${stable}": r.stable,
                "${arm}": arm, "${revision}": revisions.get(arm, ""), "${pods}": f"{names.arm(finetune, arm)}-.*",
            }  # fmt: skip
            yield Question(query.name, arm, _put_in(query.query, known), since, window)


def judge(guards: Guards, requests: int, rollout: Rollout, answers: tuple[Answer, ...]) -> list[Finding]:
    """All that are asked for; `requests` is how many of the canary there were since the step began."""
    known = {(answer.guard, answer.arm): answer for answer in answers}
    return [_judged(query, requests, guards.min_requests, _of(query, rollout, known)) for query in guards.queries or ()]


def unasked(answers: tuple[Answer, ...]) -> str:
    """Why one of them cannot be asked; empty when all can."""
    return next((f"query {answer.guard}: {answer.error}" for answer in answers if answer.error), "")


def _judged(query: Query, requests: int, wanted: int, answers: list[Answer | None]) -> Finding:
    guard, canary, stable = f"query {query.name}", answers[0], answers[1] if len(answers) > 1 else None
    if any(answer is None for answer in answers) or canary is None:
        return Finding(guard, "Insufficient", f"{guard}: not asked yet")
    text = f"{guard}: {_told(canary, stable)}, {_limits(query)}"
    error = canary.error or (stable.error if stable else "")
    if error:
        return Finding(guard, "Error", f"{guard}: {error}")
    if canary.value is None:
        return Finding(guard, "Insufficient", f"{text}: Prometheus has no such series")
    if math.isnan(canary.value):
        return Finding(guard, "Insufficient", f"{text}: nothing was counted yet")
    if math.isinf(canary.value):
        return Finding(guard, "Error", f"{text}: it divides by zero")
    if requests < wanted:
        return Finding(guard, "Insufficient", f"{text}: {requests} of {wanted} canary requests seen")
    if _within(query, canary.value):
        return Finding(guard, "Pass", text)
    if stable and stable.value is not None and not math.isnan(stable.value) and not _within(query, stable.value):
        return Finding(guard, "Error", f"{text}: both arms are beyond it")
    return Finding(guard, "Fail", text)


def _arms(query: Query, rollout: Rollout) -> tuple[str, ...]:
    """The arms that it is asked of, the canary first; of none in particular once."""
    return (rollout.arm, rollout.stable) if any(place in query.query for place in OF_AN_ARM) else ("",)


def _of(query: Query, rollout: Rollout, known: Answers) -> list[Answer | None]:
    return [known.get((query.name, arm)) for arm in _arms(query, rollout)]


def _put_in(text: str, known: Mapping[str, str]) -> str:
    for place, name in known.items():
        text = text.replace(place, name)
    return text


def _within(query: Query, value: float) -> bool:
    above = query.max is not None and value > float(query.max)
    below = query.min is not None and value < float(query.min)
    return not (above or below)


def _told(canary: Answer, stable: Answer | None) -> str:
    return f"canary {_number(canary)}, stable {_number(stable)}" if stable else _number(canary)


def _number(answer: Answer) -> str:
    return "nothing" if answer.value is None else f"{answer.value:.6g}"


def _limits(query: Query) -> str:
    limits = {"min": query.min, "max": query.max}
    return ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
