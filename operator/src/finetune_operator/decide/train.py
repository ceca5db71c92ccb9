"""Training attempts: a Job each; the next begins from the newest valid checkpoint, only once the last one has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune_operator import conditions, names
from finetune_operator.api.status import Attempt, Checkpoint, Training
from finetune_operator.decide.attempts import (
    bounded,
    change,
    counted,
    folder,
    fruitless,
    gpus,
    halted,
    job,
    last,
    next_divisor,
    price,
    running,
    settled,
)
from finetune_operator.decide.draft import Draft, finite, soonest, stamp
from finetune_operator.decide.layout import next_choice
from finetune_operator.decide.patience import held, outdated, overdue, stalled, until_heard, until_overdue, waits_for
from finetune_operator.decide.retry import BUDGETS, after_failure, place, trouble, wait
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure, Run

POLL_SECONDS = 3.0
GIVES_UP = ("PeerLost", "MasterUnknown")  # what a rank says that has waited for the others for an hour
PROGRESS_MARK = 5  # percent: status is written at these marks and at checkpoints


def train(o: Observed, d: Draft) -> Draft:
    """Is there an artifact? If not: which attempt runs, and how far is it?"""
    if d.blocked or d.revision.artifact:
        return d
    attempt = running(d)
    if attempt is None:
        return _next_attempt(o, d)
    run = job(o, attempt)
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
            return _ended(o, d, attempt, _in_vain(attempt, run.failure or Failure("error", "Failed", "its Job failed")))
        case "Ending" if run.stopped and run.failure:  # the Job would go on with another gang: one attempt, one gang
            return _ended(o, d, attempt, run.failure)
        case "Ending":
            cause = f": {place(run.failure)}{run.failure.message}" if run.failure else ""
            return d.block(conditions.TRAINING, f"the pods of attempt {attempt.number} are ending{cause}", requeue=POLL_SECONDS)
        case "Waiting":
            return _waiting(o, d, attempt, run)
        case _:
            return _running(o, d, attempt)


def _next_attempt(o: Observed, d: Draft) -> Draft:
    if seconds := wait(o, d):
        before = last(d)
        cause = f"{_end(before)}; " if before and before.message else ""
        return d.block(conditions.TRAINING, f"{cause}the next starts at {d.revision.retry_at}", requeue=seconds)
    if alive := _still_there(o, d):
        text = f"the next attempt starts once the pods of {alive} have ended: they save a checkpoint"
        return d.block(conditions.TRAINING, text, requeue=POLL_SECONDS)
    number = d.revision.attempts + 1
    divisor = next_divisor(last(d))
    choice = next_choice(o, d)
    layout = choice.layout.title if choice else None
    attempt = Attempt(
        revision=d.revision.name, number=number, started=stamp(o.now), micro_batch_divisor=divisor, layout=layout
    )  # fmt: skip
    d = d.begin("train", o.now).update(attempts=number, retry_at=None)
    d = d.set(attempts=bounded([*d.status.attempts, attempt]))
    smaller = f" with a micro-batch {divisor} times smaller, and as many tokens a step" if divisor else ""
    return d.want("train", number).block(conditions.TRAINING, f"attempt {number} is starting{smaller}")


def _still_there(o: Observed, d: Draft) -> str | None:
    """The Job of an earlier attempt, of any revision, whose pods have not ended: two gangs at once would share the machines."""
    jobs = (names.attempt_job(o.name, a.revision, a.number) for a in d.status.attempts)
    return next((j for j in jobs if o.run(j).state in ("Waiting", "Running", "Ending")), None)


def _learn_folder(d: Draft, attempt: Attempt, run: Run) -> tuple[Draft, Attempt]:
    """The folder of the rank 0 that is there now: a Job that its queue suspends and resumes gets another one."""
    if not run.leader_uid:
        return d, attempt
    found = folder(attempt.revision, attempt.number, run.leader_uid)
    return (d, attempt) if found == attempt.folder else change(d, attempt, folder=found)


def _absent(o: Observed, d: Draft, attempt: Attempt) -> Draft:
    if attempt.folder is None:
        return d.want("train", attempt.number).block(conditions.TRAINING, f"attempt {attempt.number} is starting")
    gone = Failure("disruption", "JobDeleted", f"Job {names.attempt_job(o.name, attempt.revision, attempt.number)} was deleted")
    return _ended(o, d, attempt, gone)


def _succeeded(o: Observed, d: Draft, attempt: Attempt, result: Mapping[str, Any]) -> Draft:
    d, attempt = settled(o, d, attempt)
    d, attempt = change(
        d, attempt, outcome="Succeeded", finished=stamp(o.now), step=_count(result.get("step")),
        resumed_from_step=_count(result.get("resumedFromStep")),
    )  # fmt: skip
    d = counted(d, "succeeded")
    total = _count(result.get("totalSteps")) or _count(result.get("step")) or 0
    final = _training(o, attempt, {**result, "totalSteps": total, "etaSeconds": 0}, d.status.training)
    d = d.set(training=final.model_copy(update={"percent": 100}))
    return d.update(artifact=str(result["artifact"])[:253], artifact_digest=str(result.get("digest", ""))[:128], retry_at=None).end(
        "train", o.now
    )


def _ended(o: Observed, d: Draft, attempt: Attempt, failure: Failure) -> Draft:
    disrupted = failure.failure_class == "disruption"
    d, attempt = settled(o, d, attempt)
    d, attempt = change(
        d, attempt, outcome="Disrupted" if disrupted else "Failed", finished=stamp(o.now), pod=failure.pod or None,
        rank=failure.rank, node=failure.node or None, failure_class=failure.failure_class, message=failure.message[:1024],
        step=_count(failure.result.get("step", attempt.step)),
    )  # fmt: skip
    d = counted(d, BUDGETS.get(failure.failure_class, "error"))
    d = d.note("Normal" if disrupted else "Warning", "AttemptEnded", _end(attempt))
    d = after_failure(o, d, f"attempt {attempt.number}", failure, fruitless(d.status.attempts, attempt.revision))
    if d.revision.stopped:
        return d.end("train", o.now)
    smaller = ", with half the micro-batch" if failure.failure_class == "outOfMemory" else ""
    text = f"{_end(attempt)}; the next starts at {d.revision.retry_at}{smaller}"
    return d.block(conditions.TRAINING, text, reason=trouble(failure), requeue=wait(o, d))


def _in_vain(attempt: Attempt, failure: Failure) -> Failure:
    """The same failure; ranks that gave up waiting for others that never had a machine are nobody's fault, and nothing is charged."""
    if attempt.began is not None or failure.reason not in GIVES_UP or failure.result.get("step") is not None:
        return failure
    text = f"its gang never came to be whole, and those of its pods that had machines let go of them: {failure.message}"
    return replace(failure, failure_class="disruption", message=text, waited=True)


def _end(a: Attempt) -> str:
    where = place(Failure("error", "", "", a.pod or "", a.node or "", rank=a.rank))
    return f"attempt {a.number} ended ({a.failure_class}: {where}{a.message})"


def _waiting(o: Observed, d: Draft, attempt: Attempt, run: Run) -> Draft:
    d, attempt = settled(o, d, attempt)
    if outdated(o, run, "train"):
        text = f"attempt {attempt.number} was not whole when the spec came to ask for something else: the next attempt does"
        return halted(o, d, attempt, "Superseded").block(conditions.TRAINING, text, requeue=POLL_SECONDS)
    if failure := held(o, run) or overdue(o, run):
        return _ended(o, d, attempt, failure)
    bound = until_overdue(o, run)
    if run.suspended:
        queue = f"queue {o.spec.compute.queue_name}" if o.spec.compute.queue_name else "its queue"
        begun = ", which stopped it: it goes on from its last checkpoint" if attempt.folder else ""
        return d.block(conditions.QUEUED, f"attempt {attempt.number} waits for admission to {queue}{begun}", requeue=bound)
    poll = soonest(bound, until_heard(run, POLL_SECONDS))
    if run.waiting:
        return d.block(conditions.TRAINING, waits_for(o, run, run.waiting), reason=run.waiting.reason, requeue=poll)
    return d.block(conditions.TRAINING, f"the pods of attempt {attempt.number} are starting", requeue=poll)


def _running(o: Observed, d: Draft, attempt: Attempt) -> Draft:
    progress = o.progress.get(names.attempt_job(o.name, attempt.revision, attempt.number)) or {}
    if failure := stalled(progress, o.now):
        return _ended(o, d, attempt, failure)
    d, attempt = _began(o, d, attempt)
    known = d.status.training
    if not _count(progress.get("totalSteps")):
        if known and (known.revision, known.attempt) == (attempt.revision, attempt.number):  # it was asked in vain this once
            return d.block(conditions.TRAINING, _sentence(known), requeue=POLL_SECONDS)
        return d.block(conditions.TRAINING, f"attempt {attempt.number} is loading the model and the data", requeue=POLL_SECONDS)
    resumed = _count(progress.get("resumedFromStep"))
    if attempt.resumed_from_step is None and resumed is not None:
        d, attempt = change(d, attempt, resumed_from_step=resumed)
    latest = _training(o, attempt, progress, known)
    if known is None or _differs(known, latest):
        d, attempt = settled(o, d, attempt, goes_on=True)
        d, attempt = change(d, attempt, step=latest.step, checkpoint=latest.checkpoint.step if latest.checkpoint else None)
        d = d.set(training=latest)
    shown = d.status.training or latest
    return d.block(conditions.TRAINING, _sentence(shown), requeue=POLL_SECONDS)


def _began(o: Observed, d: Draft, attempt: Attempt) -> tuple[Draft, Attempt]:
    """From now on its machines are paid for."""
    if attempt.began is not None:
        return d, attempt
    hourly = price(o)
    return change(d, attempt, began=stamp(o.now), gpus=gpus(o.spec), gpu_hour=None if hourly is None else f"{hourly:.4f}")


def _differs(old: Training, new: Training) -> bool:
    if (old.revision, old.attempt) != (new.revision, new.attempt) or old.checkpoint != new.checkpoint:
        return True
    return old.percent // PROGRESS_MARK != new.percent // PROGRESS_MARK


def _training(o: Observed, attempt: Attempt, progress: Mapping[str, Any], last: Training | None) -> Training:
    step, total = _count(progress.get("step")) or 0, _count(progress.get("totalSteps")) or 0
    same = last is not None and (last.revision, last.attempt) == (attempt.revision, attempt.number)
    checkpoint = _checkpoint(progress.get("checkpoint")) or (last.checkpoint if same and last else None)
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
        best_step=_count(progress.get("bestStep")),
        stopped_early=True if progress.get("stoppedEarly") is True else None,
        updated=stamp(o.now),
    )


def _sentence(t: Training) -> str:
    loss = f", loss {t.loss}" if t.loss else ""
    eta = f", about {t.eta_seconds} s left" if t.eta_seconds else ""
    saved = f"; checkpoint at step {t.checkpoint.step}, {t.checkpoint.time}" if t.checkpoint else "; no checkpoint yet"
    return f"attempt {t.attempt}: step {t.step} of {t.total_steps}{loss}{eta}{saved} (as of {t.updated})"


def _checkpoint(saved: Any) -> Checkpoint | None:
    if not isinstance(saved, Mapping) or not isinstance(saved.get("time"), str):
        return None
    step = _count(saved.get("step"))
    return None if step is None else Checkpoint(step=step, time=saved["time"][:64])


def _number(value: Any, digits: int) -> str | None:
    number = finite(value)
    return None if number is None else f"{number:.{digits}f}"


def _count(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else max(0, int(number))
