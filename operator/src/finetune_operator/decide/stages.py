"""Fetch, prepare, score the base, score the tuned model: one Job each, tried again within the budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from finetune_operator import conditions, names
from finetune_operator.api.fields import digest
from finetune_operator.api.status import Answering, Difference, Estimate, FewShot, Fidelity, Forgetting, Rows, Score, Scored, Trouble
from finetune_operator.build import arm
from finetune_operator.decide import advice
from finetune_operator.decide.draft import Draft, finite, soonest
from finetune_operator.decide.patience import judged, late, named, outdated, overdue, paced, until_heard, until_overdue
from finetune_operator.decide.retry import after_failure, again, of_probe, trouble, wait, without_probe
from finetune_operator.observed import Observed
from finetune_operator.workloads.objects import time
from finetune_operator.workloads.run import Failure, Run

Probed = TypeVar("Probed", FewShot, Forgetting, Fidelity)
Finish = Callable[[Mapping[str, Any]], dict[str, Any]]
STAGE_PHASES = {
    "fetch": conditions.FETCHING,
    "prepare": conditions.PREPARING,
    "baseline": conditions.SCORING_BASELINE,
    "evaluate": conditions.EVALUATING,
}
WORDS = {
    "fetch": "fetching the base model",
    "prepare": "preparing the data",
    "baseline": "scoring the reference model on the sealed test split",
    "evaluate": "scoring the tuned model on the sealed test split",
}
POLL_SECONDS = 5.0
UNMEASURED_CHARACTERS = 400
DIVERGENCE_DIGITS = 8  # what rounding to 16 bits does is seen in the seventh
BASE = "base"  # the untouched model, where a revision is named


def fetch(o: Observed, d: Draft) -> Draft:
    """Is the base model on the volume?"""
    return _stage(o, d, "fetch", done=d.revision.model_digest is not None, finish=_fetched)


def prepare(o: Observed, d: Draft) -> Draft:
    """Is the data prepared, and its test split sealed?"""
    return _stage(o, d, "prepare", done=d.revision.data_digest is not None, finish=_prepared)


def baseline(o: Observed, d: Draft) -> Draft:
    """Is what serves now (or the base model) scored on this revision's test split, with today's metrics?

    Not asked again while an attempt trains: it would compete for the machines, and nothing is compared before it has ended.
    """
    if d.revision.promoted or any(a.outcome == "Running" and a.revision == d.revision.name for a in d.status.attempts):
        return d
    scored = d.revision.baseline
    if _unasked(d, "baseline", scored):
        return d
    wanted = evaluation_key(o, d)
    if scored is not None and scored.key != wanted:
        d = again(d, "baseline", baseline=None, evaluated=None, gate=None)
    d = _asked_otherwise(o, d, "baseline", wanted)
    return _stage(o, d, "baseline", done=d.revision.baseline is not None, finish=lambda x: {"baseline": _scored(wanted, x)})


def not_needed(o: Observed, d: Draft) -> Draft:
    """Is the reference good enough already, so that training is not worth its money?"""
    limit = o.spec.evaluation.skip_training_if_baseline_at_least if o.spec.evaluation else None
    scored = d.revision.baseline
    if d.blocked or d.revision.attempts or scored is None:
        return d
    if limit is None or float(scored.score.score) < float(limit):
        return d.update(gate=None) if d.revision.gate == "NotNeeded" else d
    who = "the base model" if reference(d) == BASE else f"live revision {reference(d)}"
    message = (
        f"{who} already scores {scored.score.score} on {scored.score.n} test rows, at least "
        f"evaluation.skipTrainingIfBaselineAtLeast {limit}: training is not needed"
    )
    return d.update(gate="NotNeeded").block(conditions.NOT_NEEDED, message, reason=conditions.BASELINE_GOOD_ENOUGH)


def evaluate(o: Observed, d: Draft) -> Draft:
    """Is the tuned model scored on the same rows?"""
    if d.revision.promoted:
        return d
    scored = d.revision.evaluated
    if _unasked(d, "evaluate", scored):
        return d
    wanted = evaluation_key(o, d)
    if scored is not None and (scored.key != wanted or _served_otherwise(o, scored)):
        d = again(d, "evaluate", evaluated=None, gate=None)
    d = _asked_otherwise(o, d, "evaluate", wanted)
    return _stage(o, d, "evaluate", done=d.revision.evaluated is not None, finish=lambda x: {"evaluated": _scored(wanted, x)})


def reference(d: Draft) -> str:
    """What the newest revision is compared with: the revision that is live, else `base`."""
    return d.status.live_revision or BASE


def _unasked(d: Draft, stage: str, scored: Scored | None) -> bool:
    """Has nothing been scored yet, nor asked for, and is it not the time to?"""
    return d.blocked and scored is None and stage not in d.revision.tries


def evaluation_key(o: Observed, d: Draft) -> str:
    """Names an evaluation by what is asked and against what; another key means that it must be run again."""
    return digest({"evaluation": o.reevaluate.get("evaluation", {}), "reference": reference(d)})


def _served_otherwise(o: Observed, scored: Scored) -> bool:
    """Is its divergence that of another server than the spec asks for by now? Rows that were scored stay: the Job measures that alone."""
    found = scored.fidelity
    if o.spec.serving is None or found is None or found.merged is None:
        return False
    return found.merged == arm.uses_vllm(o.spec)


def _asked_otherwise(o: Observed, d: Draft, stage: str, wanted: str) -> Draft:
    """An evaluation that is asked otherwise than is wanted by now counts for nothing, however it goes or went: another one is made."""
    number = d.revision.tries.get(stage, 0)
    run = o.run(names.stage_job(o.name, d.revision.name, stage, number)) if number else o.run("")
    told = str(run.result.get("path", "")) if run.state == "Succeeded" else ""
    key = run.key or names.evaluation_key(told)
    open_ = (d.revision.baseline if stage == "baseline" else d.revision.evaluated) is None
    return again(d, stage) if open_ and not d.blocked and key and key != wanted else d


def _stage(o: Observed, d: Draft, stage: str, *, done: bool, finish: Finish) -> Draft:
    if d.blocked or done:
        return d
    if seconds := wait(o, d):
        return _pausing(d, stage, seconds)
    d = d.update(retry_at=None).begin(stage, o.now)
    number = d.revision.tries.get(stage, 0)
    run = o.run(names.stage_job(o.name, d.revision.name, stage, number)) if number else o.run("")
    if run.state == "Absent" and (missing := o.missing.get(stage)):
        return d.block(conditions.PENDING, missing.message, reason=missing.reason, requeue=_until_asked_again(o, missing.reason))
    if run.state == "Absent" and _still_ends(o, d, stage, number):
        return d.block(STAGE_PHASES[stage], f"{WORDS[stage]}: the pod of the last try is ending", requeue=POLL_SECONDS)
    if number == 0 or run.state == "Absent":
        number = number or 1
        d = d.update(tries={**d.revision.tries, stage: number}).want(stage, number)
        return d.block(STAGE_PHASES[stage], WORDS[stage])
    if run.state == "Succeeded":
        found = _outcome(finish, run)
        if isinstance(found, Failure):
            return _failed(o, d, stage, number, found)
        return advice.heard(d.update(**found, trouble=None).end(stage, o.now), stage, run.result.get("advice"))
    if run.state == "Failed":
        return _failed(o, d, stage, number, named(run.failure, stage) if run.failure else Failure("error", "Failed", "its Job failed"))
    if outdated(o, run, stage):
        text = f"{WORDS[stage]}: its pod had not begun when the spec came to ask for something else, and is made anew"
        return again(d, stage).block(STAGE_PHASES[stage], text, requeue=POLL_SECONDS)
    if run.state != "Ending" and (given_up := overdue(o, run) or late(o, run, stage) or judged(o, run)):
        return _failed(o, d, stage, number, given_up)
    return _in_progress(o, d, stage, run)


def _until_asked_again(o: Observed, reason: str) -> float:
    """Seconds until it is looked whether what lacks is there by now. It is waited for for ever: no pod holds a machine (ADR 25)."""
    since = time(o.status.phase_since) if o.status.reason == reason else None
    return paced((o.now - since).total_seconds() if since else 0.0, POLL_SECONDS)


def _still_ends(o: Observed, d: Draft, stage: str, number: int) -> bool:
    """Does the pod of the try before this one still end? One that was given up may write yet."""
    before = names.stage_job(o.name, d.revision.name, stage, number - 1) if number > 1 else ""
    return o.run(before).state in ("Waiting", "Running", "Ending")


def _outcome(finish: Finish, run: Run) -> dict[str, Any] | Failure:
    """What a stage that succeeded found out; a Failure when it did not say so, or not in the form that was agreed."""
    if not run.result:
        return Failure("infrastructure", "NoResult", "its pod ended well but its result message is gone; was the pod deleted?")
    try:
        return finish(run.result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Failure("error", "BadResult", f"its result message is not as agreed: {type(error).__name__}: {error}"[:400])


def _failed(o: Observed, d: Draft, stage: str, number: int, failure: Failure) -> Draft:
    d = without_probe(o, d, failure) if of_probe(failure) else after_failure(o, d, stage, failure)
    d = d.update(tries={**d.revision.tries, stage: number + 1})
    if d.revision.stopped:
        return d.end(stage, o.now)
    d = d.update(trouble=Trouble(reason=trouble(failure), message=failure.message[:1024]))
    if trouble(failure):
        d = d.note("Warning", failure.reason, f"{WORDS[stage]}, try {number}: {failure.message}")
    return _pausing(d, stage, wait(o, d))


def _pausing(d: Draft, stage: str, seconds: float) -> Draft:
    """Until the next try: why it failed goes on being said."""
    failed = d.revision.trouble
    said = f" failed: {failed.message.rstrip('. ')};" if failed else ":"
    text = f"{WORDS[stage]}{said} tried again at {d.revision.retry_at}"
    return d.block(STAGE_PHASES[stage], text, reason=failed.reason if failed else "", requeue=seconds)


def _in_progress(o: Observed, d: Draft, stage: str, run: Run) -> Draft:
    if run.suspended:  # by a queue of the namespace's own: the spec's is for training
        return d.block(conditions.QUEUED, f"{WORDS[stage]}: its Job waits for admission to its queue", requeue=until_overdue(o, run))
    if run.state == "Waiting":
        poll = soonest(until_overdue(o, run), until_heard(run, POLL_SECONDS))
        message, reason = (run.waiting.message, run.waiting.reason) if run.waiting else (WORDS[stage], "")
        return d.block(STAGE_PHASES[stage], message, reason=reason, requeue=poll)
    if run.state == "Ending":
        cause = f": {run.failure.message}" if run.failure else ""
        return d.block(STAGE_PHASES[stage], f"{WORDS[stage]}: its pod is ending{cause}", requeue=POLL_SECONDS)
    if run.judged_since and o.spec.own_metric:
        judges = f"{WORDS[stage]}: image {o.spec.own_metric.image} scores the answers"
        return d.block(STAGE_PHASES[stage], judges, requeue=POLL_SECONDS)
    percent = finite((o.progress.get(run.name) or {}).get("percent"))
    rounded = "" if percent is None else f" ({int(percent) // 10 * 10} %)"
    return d.block(STAGE_PHASES[stage], f"{WORDS[stage]}{rounded}", requeue=POLL_SECONDS)


def _fetched(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_digest": str(result["digest"])[:128]}


def _prepared(result: Mapping[str, Any]) -> dict[str, Any]:
    complaints = [f"{row.get('source')} row {row.get('row')}: {row.get('reason')}" for row in result.get("invalid") or ()]
    return {
        "data_digest": str(result["digest"])[:128],
        "rows": Rows.model_validate(result["rows"]),
        "estimate": _estimate(result.get("estimate") or {}),
        "dropped": "; ".join([*map(str, result.get("warnings") or ()), *complaints])[:900] or None,
    }


def _estimate(told: Mapping[str, Any]) -> Estimate | None:
    """What a training on accelerators takes; on CPUs memory is the pod's matter, and other images may not say."""
    return Estimate.model_validate(told) if told.get("accelerated") else None


def _scored(key: str, result: Mapping[str, Any]) -> Scored:
    metric, numbers = next(iter(result["metrics"].items()), ("none", None))
    if numbers is None:
        raise ValueError("it holds no metric")
    paired = result.get("paired")
    return Scored(
        key=key,
        path=str(result.get("path", "")),
        metric=metric,
        score=_score(numbers),
        difference=_difference(paired) if paired else None,
        few_shot=_probed(result.get("fewShot"), FewShot, _few_shot),
        forgetting=_probed(result.get("forgetting"), Forgetting, _forgetting),
        fidelity=_probed(result.get("fidelity"), Fidelity, _fidelity),
        answering=_answering(result.get("answering")),
        excluded=result.get("excluded") or None,
    )


def _score(told: Mapping[str, Any]) -> Score:
    return Score(score=_text(told["score"]), low=_text(told["low"]), high=_text(told["high"]), n=told["n"])


def _difference(told: Mapping[str, Any]) -> Difference:
    return Difference(difference=_text(told["difference"]), low=_text(told["low"]), high=_text(told["high"]), n=told["n"])


def _probed(told: Mapping[str, Any] | None, kind: type[Probed], read: Callable[[Mapping[str, Any]], Probed]) -> Probed | None:
    """What was found, or why it could not be measured; None of an image that does not look, or where nobody asks."""
    if not told:
        return None
    return kind(unmeasured=str(told["unmeasured"])[:UNMEASURED_CHARACTERS]) if "unmeasured" in told else read(told)


def _few_shot(told: Mapping[str, Any]) -> FewShot:
    """What examples in the prompt did."""
    score, alone, difference = _score(told["score"]), _score(told["alone"]), _difference(told["paired"])
    return FewShot(examples=told["examples"], score=score, alone=alone, difference=difference)


def _forgetting(told: Mapping[str, Any]) -> Forgetting:
    return Forgetting(
        percent=_text(told["percent"]), low=_text(told["low"]), high=_text(told["high"]),
        base=_text(told["base"]["perplexity"]), tuned=_text(told["tuned"]["perplexity"]), kl=_text(told["kl"]), kl_p95=_text(told["klP95"]),
        agreement_percent=_text(100 * told["agreement"]), texts=told["texts"], tokens=told["tokens"],
    )  # fmt: skip


def _fidelity(told: Mapping[str, Any]) -> Fidelity:
    kl, p99, largest = (_text(told[name], DIVERGENCE_DIGITS) for name in ("kl", "klP99", "klMax"))
    return Fidelity(
        kl=kl, kl_p99=p99, kl_max=largest, differs_percent=_text(100 * told["differs"]), tokens=told["tokens"], merged=told.get("merged"),
    )  # fmt: skip


def _answering(told: Mapping[str, Any] | None) -> Answering | None:
    """How fast its server answered; None where none was asked, or where it did not count tokens."""
    if not told:
        return None
    found = Answering.model_validate({**told, "seconds": _text(told["seconds"])})
    return found if float(found.seconds) > 0 else None


def _text(value: Any, digits: int = 4) -> str:
    """A score in the status; one that is no number would pass any gate."""
    number = finite(value)
    if number is None:
        raise ValueError(f"a score is {str(value)[:40]}, no number")
    return f"{number:.{digits}f}".rstrip("0").rstrip(".") or "0"
