"""The history of training attempts: which is in force, what they left, how they ended, and what they have cost."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, TypeVar

from finetune_operator import names
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Attempt, Cost, ScoringCost
from finetune_operator.decide.draft import Draft, stamp
from finetune_operator.observed import Observed
from finetune_operator.workloads.objects import time
from finetune_operator.workloads.run import Run

MAX_ATTEMPTS: Final = 20
SMALLEST_DIVISOR: Final = 64  # a micro-batch is not cut further: by then it is one row
NODE_FAILURES: Final = 2  # so many failed attempts let the next one avoid the node
OF_THE_NODE: Final = ("infrastructure", "stalled", "error")
Spent = TypeVar("Spent", Cost, ScoringCost)


def running(d: Draft) -> Attempt | None:
    """The attempt in force of the current revision."""
    return next((a for a in d.status.attempts if a.outcome == "Running" and a.revision == d.revision.name), None)


def last(d: Draft) -> Attempt | None:
    """The newest attempt of the current revision."""
    return next((a for a in reversed(d.status.attempts) if a.revision == d.revision.name), None)


def job(o: Observed, attempt: Attempt) -> Run:
    """The attempt's Job, as it is seen."""
    return o.run(names.attempt_job(o.name, attempt.revision, attempt.number))


def ended(o: Observed, attempt: Attempt) -> bool:
    """Has its Job come to an end? How is told before anything else is made of the attempt."""
    return job(o, attempt).state in ("Succeeded", "Failed")


def change(d: Draft, attempt: Attempt, **changes: Any) -> tuple[Draft, Attempt]:
    """The draft with fields of that attempt changed, and the attempt as it is then."""
    new = attempt.model_copy(update=changes)
    return d.set(attempts=[new if a is attempt else a for a in d.status.attempts]), new


def folders(attempts: list[Attempt], revision: str, before: int) -> list[str]:
    """Folders of earlier attempts, newest first: what an attempt may resume from, fixed when it starts.

    Of an attempt whose rank 0 was never seen (the operator was away from its start to its end), what its folder begins with.
    """
    mine = [a for a in attempts if a.revision == revision and a.number < before]
    return [a.folder or names.attempt_path(revision, a.number) for a in sorted(mine, key=lambda a: -a.number)]


def folder(revision: str, number: int, rank0_uid: str) -> str:
    """Where an attempt writes: named by its number and the uid of its rank 0 pod, so that a zombie has its own."""
    return f"{names.attempt_path(revision, number)}-{rank0_uid[:8]}"


def bounded(attempts: list[Attempt]) -> list[Attempt]:
    """The last ones; those without a checkpoint are forgotten first, for what follows resumes from the others' folders."""
    while len(attempts) > MAX_ATTEMPTS:
        gone = next((a for a in attempts if a.checkpoint is None), attempts[0])
        attempts = [a for a in attempts if a is not gone]
    return attempts


def counted(d: Draft, how: str) -> Draft:
    """The totals with one more attempt that ended like this."""
    totals = d.status.totals
    return d.set(totals=totals.model_copy(update={how: getattr(totals, how) + 1}))


def halted(o: Observed, d: Draft, attempt: Attempt, outcome: str) -> Draft:
    """The attempt ended because it is no longer wanted: its gang saves a checkpoint, and nothing is charged."""
    d, attempt = settled(o, d, attempt)
    return counted(change(d, attempt, outcome=outcome, finished=stamp(o.now))[0], "stopped")


def fruitless(attempts: list[Attempt], revision: str) -> int:
    """How many of the revision's attempts have come and gone since the last one that is known to have saved something new."""
    saved = [0, *(a.checkpoint or a.resumed_from_step or 0 for a in attempts if a.revision == revision)]
    return len(saved) - 1 - saved.index(max(saved))


def next_divisor(before: Attempt | None) -> int | None:
    """By what the micro-batch of the next attempt is divided: by twice as much once memory ran out. None: by 1."""
    if before is None or before.failure_class != "outOfMemory":
        return before.micro_batch_divisor if before else None
    return min(SMALLEST_DIVISOR, 2 * (before.micro_batch_divisor or 1))


def numbered(attempts: list[Attempt], revision: str, number: int) -> Attempt | None:
    """That attempt."""
    return next((a for a in attempts if (a.revision, a.number) == (revision, number)), None)


def divisor(attempts: list[Attempt], revision: str, number: int) -> int:
    """By what that attempt's micro-batch is divided."""
    attempt = numbered(attempts, revision, number)
    return (attempt.micro_batch_divisor if attempt else None) or 1


def avoided(attempts: list[Attempt]) -> list[str]:
    """Nodes that failed attempts more than once, or had no room for all of a gang: the next one had better not meet them."""
    found = Counter(a.node for a in attempts if a.node and a.outcome == "Failed" and a.failure_class in OF_THE_NODE)
    return sorted({node for node, number in found.items() if number >= NODE_FAILURES} | {*crowded(attempts)})


def crowded(attempts: list[Attempt]) -> list[str]:
    """Nodes that had no room for all pods of an attempt: no pod of it was the cause of its end."""
    return sorted({a.node for a in attempts if a.node and a.pod is None and a.outcome == "Disrupted"})


# ---- cost


def gpus(spec: Spec) -> int:
    """Accelerators of the whole gang."""
    return spec.compute.nodes * spec.compute.gpus_each


def price(o: Observed) -> float | None:
    """What one accelerator of the spec's profile costs an hour, if that is known."""
    return o.profile.hourly_price if o.profile else None


def spent(o: Observed, d: Draft, attempt: Attempt | None) -> Cost:
    """What all training has cost until now, the running attempt included: from when all its pods run until its Job has ended, however
    late that is seen."""
    began = time(attempt.began) if attempt else None
    if attempt is None or began is None:
        return d.status.cost
    until = job(o, attempt).ended or o.now
    hours = max(0, int((until - began).total_seconds())) / 3600
    cost = grown(d.status.cost, hours, attempt.gpus or 0, attempt.gpu_hour)
    return cost.model_copy(update={"currency": (o.spec.budget.currency if o.spec.budget else None) or cost.currency})


def grown(cost: Spent, hours: float, gpus: int, hourly: str | None) -> Spent:
    """The same cost with so many hours more of so many GPUs, at the price of one for an hour (None: it has none)."""
    gpu_hours = hours * gpus
    news = {
        "hours": _added(cost.hours, hours),
        "gpu_hours": _added(cost.gpu_hours, gpu_hours),
        "amount": _added(cost.amount or "0", gpu_hours * float(hourly)) if hourly else cost.amount,
    }
    return cost.model_copy(update=news)


def paid(cost: Cost) -> float | None:
    """What training and scoring have cost; None where neither has a price."""
    known = [float(amount) for amount in (cost.amount, cost.scoring.amount if cost.scoring else None) if amount is not None]
    return sum(known) if known else None


def settled(o: Observed, d: Draft, attempt: Attempt, *, goes_on: bool = False) -> tuple[Draft, Attempt]:
    """The attempt's time until now, added to the cost."""
    if attempt.began is None:
        return d, attempt
    d = d.set(cost=spent(o, d, attempt))
    return change(d, attempt, began=stamp(o.now) if goes_on else None)


def _added(before: str, more: float) -> str:
    """A decimal of the status with so much more."""
    return f"{float(before) + more:.4f}"
