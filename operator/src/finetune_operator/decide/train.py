"""Training attempts: a Job each; the next begins from the newest valid checkpoint, only once the last one has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune_operator import conditions, names
from finetune_operator.api.status import Attempt, Checkpoint, Training
from finetune_operator.decide.draft import Draft, seconds_until, stamp
from finetune_operator.decide.retry import BUDGETS, after_failure, place, trouble
from finetune_operator.observed import Observed
from finetune_operator.workloads import Failure, Run

POLL_SECONDS = 3.0
MAX_ATTEMPTS = 20
PROGRESS_MARK = 5  # percent: status is written at these marks and at checkpoints


def train(o: Observed, d: Draft) -> Draft:
    """Is there an artifact? If not: which attempt runs, and how far is it?"""
    if d.blocked or d.revision.artifact:
        return d
    attempt = running(d)
    if attempt is None:
        return _next_attempt(o, d)
    run = o.run(names.attempt_job(o.name, attempt.revision, attempt.number))
    d, attempt = _learn_folder(d, attempt, run)
    match run.state:
        case "Absent":
            return _absent(o, d, attempt)
        case "Succeeded" if run.result.get("artifact"):
            return _succeeded(o, d, attempt, run.result)
        case "Succeeded":
            said = "all ranks ended well but rank 0's result message is gone; was its pod deleted?"
            return _ended(o, d, attempt, Failure("infrastructure", "NoResult", said))
        case "Failed":
            return _ended(o, d, attempt, run.failure or Failure("error", "Failed", "its Job failed"))
        case "Ending":
            cause = f": {place(run.failure)}{run.failure.message}" if run.failure else ""
            return d.block(conditions.TRAINING, f"the pods of attempt {attempt.number} are ending{cause}", requeue=POLL_SECONDS)
        case "Waiting":
            return _waiting(d, attempt, run)
        case _:
            return _running(o, d, attempt)


def running(d: Draft) -> Attempt | None:
    """The attempt in force of the current revision."""
    return next((a for a in d.status.attempts if a.outcome == "Running" and a.revision == d.revision.name), None)


def folders(attempts: list[Attempt], revision: str, before: int) -> list[str]:
    """Folders of earlier attempts, newest first: what an attempt may resume from, fixed when it starts."""
    mine = [a for a in attempts if a.revision == revision and a.number < before and a.folder]
    return [a.folder for a in sorted(mine, key=lambda a: -a.number) if a.folder]


def bounded(attempts: list[Attempt]) -> list[Attempt]:
    """The last ones; those without a checkpoint are forgotten first, for what follows resumes from the others' folders."""
    while len(attempts) > MAX_ATTEMPTS:
        gone = next((a for a in attempts if a.checkpoint is None), attempts[0])
        attempts = [a for a in attempts if a is not gone]
    return attempts


def counted(d: Draft, how: str, number: int = 1) -> Draft:
    """The totals with so many more attempts that ended like this."""
    totals = d.status.totals
    return d.set(totals=totals.model_copy(update={how: getattr(totals, how) + number}))


def attempt_folder(revision: str, number: int, rank0_uid: str) -> str:
    """Where an attempt writes: named by its number and the uid of its rank 0 pod, so that a zombie has its own."""
    return f"{names.WORK}/revisions/{revision}/a{number}-{rank0_uid[:8]}"


def _next_attempt(o: Observed, d: Draft) -> Draft:
    if wait := seconds_until(d.revision.retry_at, o.now):
        last = next((a for a in reversed(d.status.attempts) if a.revision == d.revision.name), None)
        cause = f"{_end(last)}; " if last and last.message else ""
        return d.block(conditions.TRAINING, f"{cause}the next starts at {d.revision.retry_at}", requeue=wait)
    if alive := _still_there(o, d):
        text = f"the next attempt starts once the pods of {alive} have ended: they save a checkpoint"
        return d.block(conditions.TRAINING, text, requeue=POLL_SECONDS)
    number = d.revision.attempts + 1
    attempt = Attempt(revision=d.revision.name, number=number, started=stamp(o.now))
    d = d.begin("train", o.now).update(attempts=number, retry_at=None)
    d = d.set(attempts=bounded([*d.status.attempts, attempt]))
    return d.want("train", number).block(conditions.TRAINING, f"attempt {number} is starting")


def _still_there(o: Observed, d: Draft) -> str | None:
    """The Job of an earlier attempt, of any revision, whose pods have not ended: two gangs at once would share the machines."""
    jobs = (names.attempt_job(o.name, a.revision, a.number) for a in d.status.attempts)
    return next((j for j in jobs if o.run(j).state in ("Waiting", "Running", "Ending")), None)


def _learn_folder(d: Draft, attempt: Attempt, run: Run) -> tuple[Draft, Attempt]:
    """The folder of the rank 0 that is there now: a Job that its queue suspends and resumes gets another one."""
    if not run.leader_uid:
        return d, attempt
    folder = attempt_folder(attempt.revision, attempt.number, run.leader_uid)
    return (d, attempt) if folder == attempt.folder else _change(d, attempt, folder=folder)


def _absent(o: Observed, d: Draft, attempt: Attempt) -> Draft:
    if attempt.folder is None:
        return d.want("train", attempt.number).block(conditions.TRAINING, f"attempt {attempt.number} is starting")
    gone = Failure("disruption", "JobDeleted", f"Job {names.attempt_job(o.name, attempt.revision, attempt.number)} was deleted")
    return _ended(o, d, attempt, gone)


def _succeeded(o: Observed, d: Draft, attempt: Attempt, result: Mapping[str, Any]) -> Draft:
    d, attempt = _change(
        d, attempt, outcome="Succeeded", finished=stamp(o.now), step=_count(result.get("step")),
        resumed_from_step=_count(result.get("resumedFromStep")),
    )  # fmt: skip
    d = counted(d, "succeeded")
    total = _count(result.get("totalSteps")) or _count(result.get("step")) or 0
    last = _training(o, attempt, {**result, "totalSteps": total, "etaSeconds": 0}, d.status.training)
    d = d.set(training=last.model_copy(update={"percent": 100}))
    return d.update(artifact=str(result["artifact"])[:253], artifact_digest=str(result.get("digest", ""))[:128], retry_at=None).end(
        "train", o.now
    )


def _ended(o: Observed, d: Draft, attempt: Attempt, failure: Failure) -> Draft:
    disrupted = failure.failure_class == "disruption"
    d, attempt = _change(
        d, attempt, outcome="Disrupted" if disrupted else "Failed", finished=stamp(o.now), pod=failure.pod or None,
        rank=failure.rank, node=failure.node or None, failure_class=failure.failure_class, message=failure.message[:1024],
        step=_count(failure.result.get("step", attempt.step)),
    )  # fmt: skip
    d = counted(d, BUDGETS.get(failure.failure_class, "error"))
    d = d.note("Normal" if disrupted else "Warning", "AttemptEnded", _end(attempt))
    d = after_failure(o, d, f"attempt {attempt.number}", failure)
    if d.revision.stopped:
        return d.end("train", o.now)
    wait = seconds_until(d.revision.retry_at, o.now)
    text = f"{_end(attempt)}; the next starts at {d.revision.retry_at}"
    return d.block(conditions.TRAINING, text, reason=trouble(failure), requeue=wait)


def _end(a: Attempt) -> str:
    where = place(Failure("error", "", "", a.pod or "", a.node or "", rank=a.rank))
    return f"attempt {a.number} ended ({a.failure_class}: {where}{a.message})"


def _waiting(d: Draft, attempt: Attempt, run: Run) -> Draft:
    if run.suspended:
        return d.block(conditions.QUEUED, f"attempt {attempt.number} waits in its queue for admission", requeue=30.0)
    if run.waiting:
        return d.block(conditions.TRAINING, run.waiting.message, reason=run.waiting.reason, requeue=POLL_SECONDS)
    return d.block(conditions.TRAINING, f"the pods of attempt {attempt.number} are starting", requeue=POLL_SECONDS)


def _running(o: Observed, d: Draft, attempt: Attempt) -> Draft:
    progress = o.progress.get(names.attempt_job(o.name, attempt.revision, attempt.number)) or {}
    last = d.status.training
    if not _count(progress.get("totalSteps")):
        if last and (last.revision, last.attempt) == (attempt.revision, attempt.number):  # it was asked in vain this once
            return d.block(conditions.TRAINING, _sentence(last), requeue=POLL_SECONDS)
        return d.block(conditions.TRAINING, f"attempt {attempt.number} is loading the model and the data", requeue=POLL_SECONDS)
    resumed = _count(progress.get("resumedFromStep"))
    if attempt.resumed_from_step is None and resumed is not None:
        d, attempt = _change(d, attempt, resumed_from_step=resumed)
    latest = _training(o, attempt, progress, last)
    if last is None or _differs(last, latest):
        d, attempt = _change(d, attempt, step=latest.step, checkpoint=latest.checkpoint.step if latest.checkpoint else None)
        d = d.set(training=latest)
    shown = d.status.training or latest
    return d.block(conditions.TRAINING, _sentence(shown), requeue=POLL_SECONDS)


def _differs(old: Training, new: Training) -> bool:
    if (old.revision, old.attempt) != (new.revision, new.attempt) or old.checkpoint != new.checkpoint:
        return True
    return old.percent // PROGRESS_MARK != new.percent // PROGRESS_MARK


def _training(o: Observed, attempt: Attempt, progress: Mapping[str, Any], last: Training | None) -> Training:
    step, total = _count(progress.get("step")) or 0, _count(progress.get("totalSteps")) or 0
    saved = progress.get("checkpoint") or {}
    same = last is not None and (last.revision, last.attempt) == (attempt.revision, attempt.number)
    checkpoint = Checkpoint(step=saved["step"], time=saved["time"]) if saved.get("time") else (last.checkpoint if same and last else None)
    return Training(
        revision=attempt.revision,
        attempt=attempt.number,
        step=step,
        total_steps=total,
        percent=min(100, 100 * step // total) if total else 0,
        loss=_number(progress.get("loss"), 4),
        validation_loss=_number(progress.get("validationLoss"), 4),
        tokens_per_second=_number(progress.get("tokensPerSecond"), 1),
        eta_seconds=_count(progress.get("etaSeconds")),
        checkpoint=checkpoint,
        updated=stamp(o.now),
    )


def _sentence(t: Training) -> str:
    loss = f", loss {t.loss}" if t.loss else ""
    eta = f", about {t.eta_seconds} s left" if t.eta_seconds else ""
    saved = f"; checkpoint at step {t.checkpoint.step}, {t.checkpoint.time}" if t.checkpoint else "; no checkpoint yet"
    return f"attempt {t.attempt}: step {t.step} of {t.total_steps}{loss}{eta}{saved} (as of {t.updated})"


def _change(d: Draft, attempt: Attempt, **changes: Any) -> tuple[Draft, Attempt]:
    new = attempt.model_copy(update=changes)
    return d.set(attempts=[new if a is attempt else a for a in d.status.attempts]), new


def _number(value: Any, digits: int) -> str | None:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else None


def _count(value: Any) -> int | None:
    """A number that a pod tells, if it is one: never is the status made unwritable by what a pod says."""
    return max(0, int(value)) if isinstance(value, int | float) and math.isfinite(value) else None
