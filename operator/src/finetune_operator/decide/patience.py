"""How long is waited for a Job? One whose pods do not start, that makes no progress or does not end, and a gang of which only a part has
its machines, are ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator import conditions
from finetune_operator.api.blocks.deadlines import WAITS, of_stage
from finetune_operator.api.quantities import seconds
from finetune_operator.build.jobs import asked
from finetune_operator.build.pods import ANY_GPU
from finetune_operator.decide.attempts import crowded
from finetune_operator.decide.draft import finite, soonest, stamp
from finetune_operator.decide.layout import ANOTHER_VOLUME
from finetune_operator.names import JOB_NAME, METRIC, PROBE
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import CROWDED_SECONDS, GANG_SECONDS, Failure, FailureClass, Run, Waiting

# The ranks' own watchdog (runconfig.STALL_SECONDS) comes first; this is for the case that it hangs as well.
QUIET_SECONDS: Final = 900.0  # between two steps
QUIET_STEPS: Final = 20  # or so many of the measured steps, if that is longer
QUIET_ELSE_SECONDS: Final = 7200.0  # while it loads, scores the validation rows or exports
OFTEN_SECONDS: Final = 600.0  # so long what no watch tells of is asked for every few seconds; from then on
RARE_POLL_SECONDS: Final = 60.0
OF_THE_USER: Final = (conditions.SECRET_MISSING, conditions.SOURCE_MISSING)  # what is waited for until the user makes it
NO_SUCH_IMAGE: Final = ("not found", "manifest unknown", "name unknown", "denied", "unauthorized", "invalid")
NO_COMMAND: Final = "no command specified"  # what a runtime says of an image without an entrypoint
FIXES: Final[Mapping[str, str]] = {
    conditions.UNSCHEDULABLE: "Ask for less, free or add a machine, or raise deadlines.schedule.",
    conditions.REFUSED: "Make room for it, ask for less, or raise deadlines.schedule.",
    conditions.IMAGE_UNAVAILABLE: "Correct the image's name or pods.imagePullSecrets, or raise deadlines.start.",
    conditions.MOUNT_FAILED: "Mend the volume, or raise deadlines.start.",
    conditions.SECRET_MISSING: "Make it.",
    conditions.SOURCE_MISSING: "Make it.",
}


def stalled(progress: Mapping[str, Any], now: datetime) -> Failure | None:
    """Does a poll that was answered show that nothing has moved for too long? By the pod's own clock; no answer says nothing."""
    quiet, step_seconds = (_number(progress.get(key)) for key in ("quietSeconds", "secondsPerStep"))
    state = str(progress.get("state", ""))
    limit = max(QUIET_SECONDS if state == "training" else QUIET_ELSE_SECONDS, QUIET_STEPS * step_seconds)
    if quiet <= limit:
        return None
    where = f"step {int(_number(progress.get('step')))}, {state}"[:80]
    text = f"no progress since {stamp(now - timedelta(seconds=min(quiet, 1e8)))} ({where}); {limit:.0f} s are borne"
    return Failure("stalled", "Stalled", text)


def held(o: Observed, run: Run) -> Failure | None:
    """Do some pods of the gang hold machines while others have waited too long for theirs? A queue sees to that itself."""
    if run.waiting is None or o.spec.compute.queue_name:
        return None
    if run.held > CROWDED_SECONDS and _kept_together(o, run) and run.crowded not in crowded(o.status.attempts):
        text = f"node {run.crowded} has no room for all {o.spec.compute.nodes} pods, and the next attempt avoids it: {run.waiting.message}"
        return Failure("disruption", run.waiting.reason, text, node=run.crowded, waited=True)
    if run.held <= GANG_SECONDS:
        return None
    text = f"its other pods held their machines for {GANG_SECONDS / 60:.0f} minutes in vain: {waits_for(o, run, run.waiting)}"
    return Failure("disruption", run.waiting.reason, text, waited=True)


def waits_for(o: Observed, run: Run, waiting: Waiting) -> str:
    """What its pods wait for, in words: with what else would do, where a node is met again that had no room for all of them."""
    tried = crowded(o.status.attempts)
    if not _kept_together(o, run) or run.crowded not in tried:
        return waiting.message
    text = f"{waiting.message.rstrip('. ')}. No node that was tried ({', '.join(tried)}) had room for all {o.spec.compute.nodes} pods"
    return f"{text}. {ANOTHER_VOLUME}, or ask for fewer compute.nodes"


def _kept_together(o: Observed, run: Run) -> bool:
    """Is it the volume that keeps its other pods from the nodes that have room?"""
    return bool(run.crowded) and o.spec.storage.access_mode == "ReadWriteOnce"


def outdated(o: Observed, run: Run, stage: str) -> bool:
    """Does the spec, or its accelerator's profile, ask for other machines by now than a Job does whose pods have none yet, hold theirs in
    vain, or cannot have their image?"""
    profile = o.profile if o.spec.compute.accelerator else ANY_GPU
    lacks_image = run.waiting is not None and run.waiting.reason == conditions.IMAGE_UNAVAILABLE
    idle = run.state == "Waiting" and (run.since is None or run.held > 0 or lacks_image) and run.asked != ""
    return idle and profile is not None and run.asked != asked(o.spec, stage, profile)


def overdue(o: Observed, run: Run) -> Failure | None:
    """Have its pods been waited for longer than `spec.deadlines` bears?"""
    for wait, left in _left(o, run).items():
        if left <= 0:
            return _given_up(o, run, wait)
    return None


def until_overdue(o: Observed, run: Run) -> float | None:
    """Seconds until they will have been, while nothing else happens."""
    return soonest(*_left(o, run).values())


def until_heard(run: Run, poll: float) -> float | None:
    """Seconds until it is asked again what no watch tells of a Job that waits; rarely, where nothing is held and it has been refused for a
    while: a quota keeps many waiting at once, for days."""
    if not (run.unheard or run.held):
        return None
    refused = run.waiting is not None and run.waiting.reason == conditions.REFUSED and not run.held
    return paced(run.waited.schedule or 0.0, poll) if refused else poll


def paced(waited: float, poll: float) -> float:
    """Seconds until it is asked again what no watch tells of, after so many seconds of waiting: often at first, then rarely."""
    return poll if waited <= OFTEN_SECONDS else RARE_POLL_SECONDS


def late(o: Observed, run: Run, stage: str) -> Failure | None:
    """Has a stage taken longer than it may, since its pod came to its machine?"""
    borne: str = getattr(o.spec.deadlines, of_stage(stage))
    if run.since is None or (o.now - run.since).total_seconds() <= seconds(borne):
        return None
    percent = finite((o.progress.get(run.name) or {}).get("percent"))
    far = "" if percent is None else f", and was at {percent:.0f} %"
    why = f": {run.waiting.message}" if run.waiting else ""
    text = f"Job {run.name} has not ended within {borne}{far}{why}"
    return named(Failure("stalled", conditions.DEADLINE_EXCEEDED, text, container=PROBE if run.probing else ""), stage)


def judged(o: Observed, run: Run) -> Failure | None:
    """Does an image of the user's score the answers for longer than its timeout bears? It may hang for ever."""
    judge = o.spec.own_metric
    if judge is None or run.judged_since is None or (o.now - run.judged_since).total_seconds() <= seconds(judge.timeout):
        return None
    text = f"image {judge.image} of metric Custom has not scored the answers within {judge.timeout}"
    return Failure("user", conditions.METRIC_TOO_SLOW, f"{text}. Mend it, or raise evaluation.metrics[].custom.timeout.", container=METRIC)


def named(failure: Failure, stage: str) -> Failure:
    """The same failure of a stage; one that came too late says which field bounds it."""
    if failure.reason != conditions.DEADLINE_EXCEEDED:
        return failure
    return replace(failure, message=f"{failure.message.rstrip('. ')}. Raise deadlines.{of_stage(stage)} if it only needs longer.")


def _left(o: Observed, run: Run) -> dict[str, float]:
    """Seconds that are left of each wait that there is and that is bounded."""
    waits = {wait: (getattr(o.spec.deadlines, wait), getattr(run.waited, wait)) for wait in WAITS}
    return {wait: seconds(bound) - waited for wait, (bound, waited) in waits.items() if bound is not None and waited is not None}


def _given_up(o: Observed, run: Run, wait: str) -> Failure:
    bound = getattr(o.spec.deadlines, wait)
    if wait == "admission":
        text = f"its queue has not admitted Job {run.name} within {bound}. Ask for less, or raise deadlines.admission."
        return Failure("user", conditions.NOT_ADMITTED, text)
    reason = run.waiting.reason if run.waiting else conditions.NOT_STARTED
    said = run.waiting.message if run.waiting else f"nothing says why (`kubectl describe pods -l {JOB_NAME}={run.name}`)"
    fix = FIXES.get(reason, f"Mend that, or raise deadlines.{wait}.")
    what = "have no machine" if wait == "schedule" else "do not start on their machines"
    text = f"pods of Job {run.name} {what} after {bound}: {said.rstrip('. ')}. {fix}"
    return Failure(_whose(o, reason, said) if wait == "start" else "infrastructure", reason, text)


def _whose(o: Observed, reason: str, said: str) -> FailureClass:
    """No retry mends what the spec names and nobody has: a Secret, a ConfigMap, the server's image, a metric's or its command."""
    judge = o.spec.own_metric
    images = (o.spec.serving.image if o.spec.serving else "", judge.image if judge else "")
    words = [said.partition(f"image {image} ")[2].replace(image, "").lower() for image in images if image]  # its name says nothing of it
    wrong = reason == conditions.IMAGE_UNAVAILABLE and any(word in text for word in NO_SUCH_IMAGE for text in words)
    mute = judge is not None and f"container {METRIC}: " in said and NO_COMMAND in said.lower()
    return "user" if reason in OF_THE_USER or wrong or mute else "infrastructure"


def _number(value: Any) -> float:
    return finite(value) or 0.0
