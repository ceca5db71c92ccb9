"""How long is waited for an attempt? One that makes no progress, and a gang of which only a part has its machines, are ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator.decide.draft import finite, stamp
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import GANG_SECONDS, Failure, Run

# The ranks' own watchdog (runconfig.STALL_SECONDS) comes first; this is for the case that it hangs as well.
QUIET_SECONDS: Final = 900.0  # between two steps
QUIET_STEPS: Final = 20  # or so many of the measured steps, if that is longer
QUIET_ELSE_SECONDS: Final = 7200.0  # while it loads, scores the validation rows or exports


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
    if run.waiting is None or run.held <= GANG_SECONDS or o.spec.compute.queue_name:
        return None
    text = f"its other pods held their machines for {GANG_SECONDS / 60:.0f} minutes in vain: {run.waiting.message}"
    return Failure("disruption", run.waiting.reason, text, waited=True)


def _number(value: Any) -> float:
    return finite(value) or 0.0
