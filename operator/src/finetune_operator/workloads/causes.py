"""Which of its pods' failures brought a Job down?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from finetune_operator import conditions, names
from finetune_operator.workloads.endings import EXIT_CLASSES, KILLED, Ending, of_the_users, pod_ending
from finetune_operator.workloads.pods import state_of
from finetune_operator.workloads.run import Failure, FailureClass

# When ranks of one gang fail with different classes, the lowest is the cause and the others its echo. A rank that dies takes its
# peers down: they hang (stalled), crash (error), are ended by the Job controller (disruption), or lose a peer; among the first
# three what came first is the cause, and a lost peer never is while anything else is known.
PRECEDENCE: Final[Mapping[FailureClass, int]] = {
    "user": 0, "nonFinite": 1, "outOfMemory": 2, "stalled": 3, "error": 3, "disruption": 3, "infrastructure": 3,
}  # fmt: skip
ECHO: Final = 4
ECHOES: Final = ("PeerLost", "Error")  # reasons of an infrastructure failure that only says that another rank is gone, or nothing
_JOB_MESSAGE = re.compile(r"Container (?P<container>\S+) for pod \S+/(?P<pod>\S+) failed with exit code (?P<code>\d+)")


def root_cause(pods: Iterable[Mapping[str, Any]], failed: Mapping[str, Any]) -> Failure:
    """The failure that brought the Job down: by class precedence, then by the time it began."""
    message = str(failed.get("message", ""))
    if failed.get("reason") == conditions.DEADLINE_EXCEEDED:
        began = names.PROBE if any(probes(p) for p in pods) else ""
        return Failure("stalled", conditions.DEADLINE_EXCEEDED, f"it did not end within its deadline: {message}", container=began)
    ended = [e for e in (pod_ending(p) for p in pods) if e]
    if vanished := _vanished(failed, ended):
        ended.append(vanished)
    if not ended:
        return Failure("disruption", str(failed.get("reason", "")), message or "its pods were deleted")
    first = min((e.since for e in ended if not e.deleted), default="")
    return min(ended, key=lambda e: (_precedence(e, first), e.since, e.failure.failure_class in ("disruption", "infrastructure"))).failure


def _precedence(ending: Ending, first: str) -> int:
    """`first`: when the first pod failed that nobody deleted; the Job controller deletes the others after that."""
    failure = ending.failure
    if failure.failure_class == "infrastructure" and failure.reason in ECHOES:
        return ECHO
    return ECHO + 1 if ending.deleted and first and ending.since > first else PRECEDENCE[failure.failure_class]


def probes(pod: Mapping[str, Any]) -> bool:
    """Has the pod's probe begun, and not ended well?"""
    state = state_of(pod, names.PROBE)
    return "running" in state or (state.get("terminated") or {}).get("exitCode", 0) != 0


def _vanished(failed: Mapping[str, Any], ended: Sequence[Ending]) -> Ending | None:
    """A pod that is gone, and so was deleted, although the Job failed of it.

    Every exit code but 0 matches a rule of the failure policy: where the back-off limit is named instead, a pod went without one, or was
    rejected by its node.
    """
    known = {e.failure.pod for e in ended}
    if (found := _JOB_MESSAGE.search(str(failed.get("message", "")))) and found["pod"] not in known:
        code = int(found["code"])
        if judge := of_the_users({"name": found["container"]}, {"exitCode": code}):
            return Ending("", replace(judge, pod=found["pod"]))
        kind: FailureClass = "disruption" if code in KILLED else EXIT_CLASSES.get(code, "error")
        return Ending("", Failure(kind, "ExitCode", f"exit code {code}", pod=found["pod"], container=found["container"]))
    if failed.get("reason") == "BackoffLimitExceeded" and known and not any(e.rejected for e in ended):
        return Ending("", Failure("disruption", "PodDeleted", "the pod of a rank was deleted"))
    return None
