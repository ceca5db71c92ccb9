"""What a pod says plainly: its phase, its place in its Job, whether it still can write."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from finetune_operator import names
from finetune_operator.workloads.objects import condition, time

UNREACHABLE_SECONDS: Final = 60.0  # a pod that is still there so long after its grace period is on a node that is lost


def ready(pod: Mapping[str, Any]) -> bool:
    """The pod's Ready condition, and nobody deletes it."""
    return "deletionTimestamp" not in pod["metadata"] and condition(pod, "Ready") is not None


def restarts(pod: Mapping[str, Any]) -> int:
    """Container restarts of the pod."""
    return sum(int(c.get("restartCount", 0)) for c in pod.get("status", {}).get("containerStatuses") or ())


def lives(pod: Mapping[str, Any], now: datetime) -> bool:
    """Can the pod still write? Not once it ended, nor on a node that has been lost for a while."""
    if over(pod):
        return False
    until = time(pod["metadata"].get("deletionTimestamp"))
    return until is None or (now - until).total_seconds() < UNREACHABLE_SECONDS


def containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """States of a pod's containers, those that start first first."""
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def phase(pod: Mapping[str, Any]) -> str:
    """The pod's phase; empty while none is known."""
    return str(pod.get("status", {}).get("phase", ""))


def asks(pod: Mapping[str, Any]) -> bool:
    """Does the pod work before its own container begins: are rows answered, or answers scored by an image of the user's?"""
    return phase(pod) == "Pending" and any("running" in state_of(pod, name) for name in (names.ASK, names.METRIC))


def judged_since(pod: Mapping[str, Any]) -> datetime | None:
    """Since when an image of the user's scores the answers; None: it does not, or its pod is deleted, or its node lost, and nothing more is
    heard of it."""
    if "deletionTimestamp" in pod["metadata"] or condition(pod, "DisruptionTarget"):
        return None
    return time((state_of(pod, names.METRIC).get("running") or {}).get("startedAt"))


def state_of(pod: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    """The state of a container that runs before the pod's own; empty while it has none."""
    states = pod.get("status", {}).get("initContainerStatuses") or ()
    return next((c.get("state") or {} for c in states if c["name"] == container), {})


def over(pod: Mapping[str, Any]) -> bool:
    """Has the pod ended, well or not?"""
    return phase(pod) in ("Succeeded", "Failed")


def rank_of(pod: Mapping[str, Any]) -> int:
    """The pod's rank: its index in its Job."""
    return int(pod["metadata"].get("annotations", {}).get(names.JOB_INDEX, 0))


def belongs(pod: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Is the pod the Job's?"""
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(o.get("uid") == job["metadata"]["uid"] for o in owners)
