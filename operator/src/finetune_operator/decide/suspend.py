"""Suspension and stopped revisions: is anything to be done at all?"""

from __future__ import annotations

from dataclasses import replace

from finetune_operator import conditions, names
from finetune_operator.decide.attempts import ended, halted, running
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.patience import judged
from finetune_operator.decide.train import train
from finetune_operator.observed import Observed


def suspended(o: Observed, d: Draft) -> Draft:
    """While `suspend` is set nothing new starts; a running attempt saves a checkpoint and ends, uncharged. What has just ended is told:
    its Job may be gone by the time that it goes on."""
    if not o.spec.suspend:
        return d
    attempt = running(d)
    if attempt and ended(o, attempt):
        d = train(o, d)
    elif attempt:
        d = halted(o, d, attempt, "Suspended")
        d = d.note("Normal", conditions.SUSPENDED, f"attempt {attempt.number} is stopped")
    if d.revision.artifact is None:
        return d.block(conditions.SUSPENDED, "suspend is true: set it to false to go on from the last checkpoint")
    served = f"; revision {d.status.live_revision} goes on serving" if d.status.live_revision else ""
    return d.block(conditions.SUSPENDED, f"suspend is true: nothing new starts{served}. Set it to false to go on")


def obsolete(o: Observed, d: Draft) -> Draft:
    """Which Jobs must go? Those of attempts that were ended in the status, tries of stages that were given up, and stages of revisions
    that nobody asks for any more.

    Asked in every cycle, for a kill may come between.
    """
    jobs = [names.attempt_job(o.name, a.revision, a.number) for a in d.status.attempts if a.outcome != "Running"]
    others = [r for r in d.status.revisions if r.name != d.status.revision]
    jobs += [names.stage_job(o.name, r.name, stage, number) for r in others for stage, number in r.tries.items()]
    if o.spec.suspend:  # no stage looks after an image of the user's meanwhile: it is run anew when it goes on
        mine = [names.stage_job(o.name, d.revision.name, stage, number) for stage, number in d.revision.tries.items()]
        jobs += [job for job in mine if judged(o, o.run(job))]
    again = [(r.name, stage, number) for r in d.status.revisions for stage, number in r.tries.items() if number > 1]
    jobs += [names.stage_job(o.name, name, stage, number - 1) for name, stage, number in again]
    found = tuple(j for j in jobs if o.run(j).state in ("Waiting", "Running") or o.run(j).stopped)
    return replace(d, obsolete=found) if found else d


def stopped(o: Observed, d: Draft) -> Draft:
    """A revision that was given up says why, and how to try it again. A failed gate is judged again instead."""
    cause = d.revision.stopped
    if d.blocked or cause is None or d.revision.gate == "Failed":
        return d
    return d.block(conditions.FAILED, cause.message, reason=cause.reason)
