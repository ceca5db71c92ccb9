"""Is a failed stage tried again, and when? Budgets by failure class; disruptions are counted, never charged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from finetune_operator import conditions, names
from finetune_operator.api.status import Charges, Stopped
from finetune_operator.decide.draft import Draft, later, seconds_until, stamp
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Failure

# Which budget a failure is charged to; classes that no retry mends have none.
BUDGETS: Final[Mapping[str, str]] = {
    "error": "error",
    "stalled": "error",
    "outOfMemory": "out_of_memory",
    "infrastructure": "infrastructure",
    "disruption": "disruption",
}
FINAL_REASONS: Final[Mapping[str, str]] = {"user": conditions.DATA_INVALID, "nonFinite": conditions.NON_FINITE}
FIRST_DELAY: Final = 5.0
LONGEST_DELAY: Final = 300.0
DOUBLINGS: Final = 6  # of the first delay, which is longer than the longest then
JITTER: Final = 0.2  # of a delay, either way
AT_ONCE: Final = 1.0
UNPROBED_CHARACTERS: Final = 400
FREE_DISRUPTIONS: Final = 5  # so many in vain are tried again at once; what goes on being disrupted waits longer each time


def after_failure(o: Observed, d: Draft, stage: str, failure: Failure, fruitless: int | None = None) -> Draft:
    """Charge the failure; then either allow another try at a later time, or stop the revision with its cause (and block).

    `fruitless` is after how many tries without any gain a disruption comes; where that is not known, all of them count.
    """
    where = f"{stage}: {place(failure)}{failure.message}"
    if failure.failure_class in FINAL_REASONS:
        reason = FINAL_REASONS[failure.failure_class] if not failure.reason else failure.reason
        return stop(o, d, reason, where)
    budget = BUDGETS[failure.failure_class]
    charges = _charged(d.revision.charges, budget)
    used, limit = getattr(charges, budget), _limit(o, budget)
    d = d.update(charges=charges)
    if limit is not None and used > limit:
        text = f"{where} ({used} failures of class {failure.failure_class}, retries.{_camel(budget)} allows {limit} retries)"
        return stop(o, d, conditions.RETRIES_EXHAUSTED, text)
    disrupted = budget == "disruption"
    tries = fruitless if disrupted and fruitless is not None else used
    patience = FREE_DISRUPTIONS if disrupted and not failure.waited else 0
    delay = backoff(f"{o.uid}/{d.revision.name}/{stage}", tries - patience) if tries > patience else AT_ONCE
    return d.update(retry_at=later(o.now, delay))


def of_probe(failure: Failure) -> bool:
    """Was it the probe that failed, and nobody's doing? Whatever keeps it from measuring is its result, and no failure of the stage."""
    return failure.container == names.PROBE and failure.failure_class != "disruption"


def without_probe(o: Observed, d: Draft, failure: Failure) -> Draft:
    """Go on without the probe, uncharged, and remember why: in the revision, for other failures come between."""
    return d.update(unprobed=f"the probe failed: {failure.message}"[:UNPROBED_CHARACTERS], retry_at=later(o.now, AT_ONCE))


def trouble(failure: Failure) -> str:
    """The reason to show while a failure waits for its next try: none for a disruption, which is nobody's fault."""
    return "" if failure.failure_class == "disruption" and not failure.waited else failure.reason


def stop(o: Observed, d: Draft, reason: str, message: str) -> Draft:
    """No further try, until the spec or the retry annotation changes."""
    fix = " Change the spec, or annotate finetune.dev/retry with a new value, to try again."
    text = message[: 1023 - len(fix)].rstrip(". ") + "." + fix
    stopped = Stopped(reason=reason, message=text, time=stamp(o.now), tried=o.tried)
    return d.update(stopped=stopped, retry_at=None).note("Warning", reason, text).block(conditions.FAILED, text, reason=reason)


def reopen(o: Observed, d: Draft) -> Draft:
    """A stopped revision gets a fresh budget when the spec or the retry annotation says something new, and is evaluated again where the
    gate asks for figures that could not be had."""
    stopped = d.revision.stopped
    if stopped is None or stopped.tried == o.tried:
        return d
    gate = None if d.revision.gate == "Failed" else d.revision.gate
    d = d.update(stopped=None, charges=Charges(), retry_at=None, gate=gate, unprobed=None)
    return again(d, "evaluate", evaluated=None) if _lacks_figures(o, d) else d


def again(d: Draft, stage: str, **reset: Any) -> Draft:
    """The same draft with another Job wanted of a stage, whatever became of the last one."""
    return d.update(tries={**d.revision.tries, stage: d.revision.tries.get(stage, 0) + 1}, **reset)


def _lacks_figures(o: Observed, d: Draft) -> bool:
    """Does the gate limit what the evaluation did not measure?"""
    gate, scored = o.spec.evaluation.gate if o.spec.evaluation else None, d.revision.evaluated
    if gate is None or scored is None:
        return False
    forgot = scored.forgetting is not None and scored.forgetting.low is not None
    diverged = scored.fidelity is not None and scored.fidelity.kl is not None
    return (gate.max_forgetting_percent is not None and not forgot) or (gate.max_serving_divergence is not None and not diverged)


def backoff(key: str, failures: int) -> float:
    """Seconds before the next try: doubling from 5 s to 5 min, with a jitter of ±20 % that is fixed by the key."""
    delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(DOUBLINGS, max(0, failures - 1)))
    share = int.from_bytes(hashlib.sha256(f"{key}/{failures}".encode()).digest()[:4], "big") / 2**32
    return delay * (1 - JITTER + 2 * JITTER * share)


def wait(o: Observed, d: Draft) -> float:
    """Seconds until the next try may start."""
    return seconds_until(d.revision.retry_at, o.now, LONGEST_DELAY * (1 + JITTER) + 1)  # a second, for times are told in whole ones


def _charged(charges: Charges, budget: str) -> Charges:
    return charges.model_copy(update={budget: getattr(charges, budget) + 1})


def _limit(o: Observed, budget: str) -> int | None:
    retries = o.spec.retries
    limits = {"error": retries.error, "out_of_memory": retries.out_of_memory, "infrastructure": retries.infrastructure}
    return limits.get(budget)


def place(failure: Failure) -> str:
    """Which pod, rank and node, before the words; empty where no pod is known."""
    rank = f" (rank {failure.rank})" if failure.rank is not None else ""
    node = f" on node {failure.node}" if failure.node else ""
    return f"pod {failure.pod}{rank}{node}: " if failure.pod else ""


def _camel(budget: str) -> str:
    return {"out_of_memory": "outOfMemory"}.get(budget, budget)
