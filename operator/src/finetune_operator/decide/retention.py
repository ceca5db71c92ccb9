"""What on the work volume is no longer kept? It is named in the status, and then removed by a Job, once all else has come to rest.

Never: what serves, what served before it, what the spec asks for, and what has no artifact yet while the status knows it. A revision
that was removed is known as such, so that a revert trains it again; one that comes while the Job runs calls the Job off first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from finetune_operator import conditions, names
from finetune_operator.api.status import Charges, Cleaning, Revision
from finetune_operator.decide.arms import router_moves
from finetune_operator.decide.draft import MAX_REMOVED, Draft, finite, later, seconds_until, soonest, stamp
from finetune_operator.decide.gate import diverged
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Run

DELAYS: Final = (60.0, 240.0, 960.0, 3840.0, 15360.0, 61440.0, 86400.0)  # seconds until the next try, by how often it failed
POLL_SECONDS: Final = 5.0
ALIVE: Final = ("Waiting", "Running", "Ending")
AT_REST: Final = conditions.READY_PHASES | conditions.STALLED_PHASES


def recalled(o: Observed, d: Draft) -> Draft:
    """Is the revision that the spec asks for removed, or about to be? Then no more of it is, and it begins anew with what is left."""
    cleaning, name = d.status.cleaning or Cleaning(), d.revision.name
    if name in cleaning.forgotten:
        d = _set(d, forgotten=_without(cleaning.forgotten, name))
    if name in cleaning.revisions:
        d = _set(d, number=cleaning.number + 1, revisions=_without(cleaning.revisions, name))
    if d.revision.removed:
        others = [r for r in d.status.revisions if r.name != name]  # it is the newest again
        d = d.set(revisions=[*others, d.revision.model_copy(update={"removed": None, "created": stamp(o.now)})])
        d = d.note("Normal", "TrainedAgain", f"revision {name} was not kept (retention.revisions): it is trained again")
    if d.revision.data_digest is None and any(_called_off(o, d, ALIVE)):
        text = f"what was left of revision {name} was being removed: it begins anew once the pod that did so has ended"
        return d.block(conditions.PENDING, text, requeue=POLL_SECONDS)
    return d


def clean(o: Observed, d: Draft) -> Draft:
    """What may go? It is in the status before its Job is made; how the Job ends changes nothing for the FineTune."""
    d = _followed(o, d)
    if called_off := tuple(_called_off(o, d, ("Waiting", "Running"))):
        d = replace(d, obsolete=(*d.obsolete, *called_off))
    if d.phase not in AT_REST or router_moves(d.status) or any(_alive(o, ALIVE)):
        return d
    d = _chosen(o, d)
    cleaning = _pending(d)
    if cleaning is None:
        return d
    if wait := seconds_until(cleaning.retry_at, o.now, DELAYS[-1]):
        return replace(d, requeue=soonest(d.requeue, wait))
    return replace(d, clean=True)


def _followed(o: Observed, d: Draft) -> Draft:
    """How did the Job in force end? One that failed is tried again under another number, later each time."""
    cleaning = _pending(d)
    if cleaning is None:
        return d
    run = o.run(names.clean_job(o.name, cleaning.number))
    if run.state == "Succeeded":
        d = d.note("Normal", "Cleaned", f"removed from the work volume: {_words(cleaning)}{_freed(run)}")
        return d.set(cleaning=Cleaning(number=cleaning.number, forgotten=cleaning.forgotten))
    if run.state != "Failed":
        return d
    failures = cleaning.failures + 1
    retry_at = later(o.now, DELAYS[min(failures, len(DELAYS)) - 1])
    why = run.failure.message if run.failure else "its Job failed"
    text = f"{_words(cleaning)} could not be removed from the work volume: {why}; tried again at {retry_at}"
    d = d.note("Warning", conditions.CLEANING_FAILED, text)
    return _set(d, number=cleaning.number + 1, failures=failures, retry_at=retry_at)


def _chosen(o: Observed, d: Draft) -> Draft:
    """Add to what is to be removed what may go by now: another list is another Job."""
    policy, cleaning = o.spec.retention, d.status.cleaning or Cleaning()
    needed = {d.status.revision, d.status.live_revision, d.status.previous_revision, *(a.revision for a in d.arms)}
    artifacts = [r for r in d.status.revisions if r.artifact]
    old = [r for r in artifacts[: -policy.revisions] if r.name not in needed and not _busy(o, r.name)]
    spent = [r for r in artifacts if r not in old and _has_more(r, policy.checkpoints) and not _to_be_measured(o, d, r)]
    forgotten = [name for name in cleaning.forgotten if not _busy(o, name)]
    if not (old or spent or forgotten):
        return d
    for revision in old:
        d = d.with_revision(_bare(revision, stamp(o.now)))
    for revision in spent:
        d = d.with_revision(revision.model_copy(update={"checkpoints_kept": policy.checkpoints}))
    revisions = _union(cleaning.revisions, [*forgotten, *(r.name for r in old)])
    kept = {r.name for r in artifacts} - {*revisions}
    checkpoints = [name for name in _union(cleaning.checkpoints, [r.name for r in spent]) if name in kept]
    return _set(
        d, number=cleaning.number + 1, revisions=revisions[-MAX_REMOVED:], checkpoints=checkpoints, keep=policy.checkpoints,
        failures=0, retry_at=None, forgotten=[name for name in cleaning.forgotten if name not in forgotten],
    )  # fmt: skip


def _has_more(revision: Revision, keep: int) -> bool:
    """Are there checkpoints of more attempts than are to be kept?"""
    kept = revision.checkpoints_kept
    return min(revision.attempts, revision.attempts if kept is None else kept) > keep


def _to_be_measured(o: Observed, d: Draft, revision: Revision) -> bool:
    """Does the gate miss how far all weights are as served from what was trained? It may be measured again, for which what rounding took
    of them is needed: it lies beside the checkpoints."""
    if revision.name != d.status.revision or revision.promoted or revision.evaluated is None or o.spec.method.type != "Full":
        return False
    return bool(diverged(o.spec.evaluation.gate if o.spec.evaluation else None, revision.evaluated.fidelity))


def _bare(revision: Revision, now: str) -> Revision:
    """The entry of a revision of which nothing is on the volume any more. Its Jobs, which may still be there, count for nothing."""
    tries = {stage: number + 1 for stage, number in revision.tries.items() if stage != "fetch"}
    kept = {"tries": {**revision.tries, **tries}, "model_digest": revision.model_digest, "attempts": revision.attempts}
    return Revision(name=revision.name, created=revision.created, removed=now, charges=Charges()).model_copy(update=kept)


def _busy(o: Observed, revision: str) -> bool:
    """Do pods of its Jobs still run?"""
    return any(name.startswith(f"{o.name}-{revision}-") and run.state in ALIVE for name, run in o.runs.items())


def _alive(o: Observed, states: Iterable[str]) -> Iterator[str]:
    return (name for name, run in o.runs.items() if names.cleans(o.name, name) and run.state in states)


def _called_off(o: Observed, d: Draft, states: Iterable[str]) -> Iterator[str]:
    """Jobs that remove what is not to be removed any more, in those states."""
    cleaning = _pending(d)
    in_force = names.clean_job(o.name, cleaning.number) if cleaning else ""
    return (name for name in _alive(o, states) if name != in_force)


def _pending(d: Draft) -> Cleaning | None:
    """What is to be removed, if anything is."""
    cleaning = d.status.cleaning
    return cleaning if cleaning and (cleaning.revisions or cleaning.checkpoints) else None


def _words(cleaning: Cleaning) -> str:
    whole, parts = ", ".join(cleaning.revisions), ", ".join(cleaning.checkpoints)
    said = [f"all of revision {whole}" if whole else "", f"checkpoints of revision {parts}" if parts else ""]
    return " and ".join(part for part in said if part)


def _freed(run: Run) -> str:
    freed = finite(run.result.get("bytes"))
    return "" if freed is None else f"; {freed / 2**20:,.1f} MiB are free again"


def _set(d: Draft, **changes: Any) -> Draft:
    return d.set(cleaning=(d.status.cleaning or Cleaning()).model_copy(update=changes))


def _without(listed: list[str], name: str) -> list[str]:
    return [other for other in listed if other != name]


def _union(listed: list[str], more: list[str]) -> list[str]:
    return [*(name for name in listed if name not in more), *more]
