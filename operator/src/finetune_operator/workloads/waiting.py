"""What keeps a pod from running?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from finetune_operator import conditions
from finetune_operator.workloads.endings import explain, parse_result
from finetune_operator.workloads.objects import condition, time
from finetune_operator.workloads.pods import containers
from finetune_operator.workloads.run import Waiting

_NOT_WITH_THE_OTHERS: Final = "didn't match pod affinity rules"
_IMAGE_REASONS: Final = (
    "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable",
    "SignatureValidationFailed",
)  # fmt: skip
_STARTS: Final = ("", "ContainerCreating", "PodInitializing")  # nothing is wrong, or not with this container
_BACKS_OFF: Final = "CrashLoopBackOff"
_MISSING: Final = re.compile(r"\b(secret|configmap) \"[^\"]*\" not found|couldn't find key .* in (secret|configmap)\b", re.IGNORECASE)


def waiting(pod: Mapping[str, Any], now: datetime) -> Waiting | None:
    """What keeps a pod from running, or None if nothing does (or it merely starts)."""
    name = pod["metadata"]["name"]
    status = pod.get("status", {})
    for entry in status.get("conditions") or ():
        if entry.get("type") == "PodScheduled" and entry.get("status") == "False":
            return Waiting(conditions.UNSCHEDULABLE, f"pod {name} cannot be scheduled: {entry.get('message', '')}")
    for container in containers(status):
        state = container.get("state", {}).get("waiting")
        if state and (found := _container_waits(name, container, state)):
            return found
    return None


def stuck_since(pod: Mapping[str, Any], now: datetime) -> float:
    """Seconds that a scheduled pod has been without any running container, and says nothing of why; 0 if it has one."""
    return 0.0 if waiting(pod, now) else idle(pod, now)


def idle(pod: Mapping[str, Any], now: datetime) -> float:
    """Seconds that a pod that has a machine has been without any running container: since it came there, or since the last of its
    containers that ran (a probe, a server that crashes) ended; 0 if one runs, but for a server beside which another one cannot begin: as
    long as that runs."""
    status = pod.get("status", {})
    states = containers(status)
    if status.get("phase") != "Pending" or (any("running" in c.get("state", {}) for c in states) and not any(map(_cannot_begin, states))):
        return 0.0
    ended = [((c.get(key) or {}).get("terminated") or {}).get("finishedAt") for c in states for key in ("state", "lastState")]
    began = [(c.get("state", {}).get("running") or {}).get("startedAt") for c in states]
    since = max((moment for text in (came(pod), *ended, *began) if (moment := time(text))), default=None)
    return (now - since).total_seconds() if since else 0.0


def _cannot_begin(container: Mapping[str, Any]) -> bool:
    reason = (container.get("state", {}).get("waiting") or {}).get("reason") or ""
    return reason not in (*_STARTS, _BACKS_OFF)


def came(pod: Mapping[str, Any]) -> str | None:
    """When the pod came to its machine: by its kubelet, or by the scheduler where the kubelet has not said so."""
    scheduled = condition(pod, "PodScheduled") or {}
    return pod.get("status", {}).get("startTime") or scheduled.get("lastTransitionTime")


def elsewhere(pod: Mapping[str, Any]) -> bool:
    """Has the scheduler found room for the pod, but only on nodes that it may not have, for others that it must be with are on another one?

    By the scheduler's own words: it asks a node for room before it asks who is there. Where it makes room for it, it has named the node.
    """
    status = pod.get("status", {})
    said = (str(c.get("message") or "") for c in status.get("conditions") or () if (c["type"], c["status"]) == ("PodScheduled", "False"))
    return any(_NOT_WITH_THE_OTHERS in message for message in said) and not status.get("nominatedNodeName")


def _container_waits(pod: str, container: Mapping[str, Any], state: Mapping[str, Any]) -> Waiting | None:
    reason, text = state.get("reason") or "", state.get("message") or ""
    if reason in _STARTS:
        return None
    if reason in _IMAGE_REASONS:
        return Waiting(conditions.IMAGE_UNAVAILABLE, f"pod {pod}: image {container.get('image', '')} cannot be pulled: {text or reason}")
    if reason == "CreateContainerConfigError" and (lacks := _MISSING.search(text)):
        missing = conditions.SECRET_MISSING if "secret" in (lacks[1] or lacks[2]).lower() else conditions.SOURCE_MISSING
        return Waiting(missing, f"pod {pod}: {text}; it starts by itself once that is there")
    return Waiting(reason, f"pod {pod}, container {container.get('name')}: {_last_words(container) or text or reason}")


def _last_words(container: Mapping[str, Any]) -> str:
    """How the container that is now backed off ended: the back-off itself says nothing of the cause."""
    ended = (container.get("lastState") or {}).get("terminated")
    if not ended:
        return ""
    _, text = explain(ended, int(ended.get("exitCode", 1)), parse_result(ended.get("message")), None)
    return f"it ends again and again: {text}"
