"""What keeps a pod from running?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_operator import conditions
from finetune_operator.workloads.endings import explain, parse_result
from finetune_operator.workloads.objects import time
from finetune_operator.workloads.pods import containers
from finetune_operator.workloads.run import Waiting

_IMAGE_REASONS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")


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
    """Seconds that a scheduled pod has been without any running container; 0 if it has one."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending" or waiting(pod, now) or any("running" in c.get("state", {}) for c in containers(status)):
        return 0.0
    started = time(status.get("startTime"))
    return (now - started).total_seconds() if started else 0.0


def _container_waits(pod: str, container: Mapping[str, Any], state: Mapping[str, Any]) -> Waiting | None:
    reason, text = state.get("reason", ""), state.get("message", "")
    image = container.get("image", "")
    if reason in _IMAGE_REASONS:
        return Waiting(conditions.IMAGE_UNAVAILABLE, f"pod {pod}: image {image} cannot be pulled: {text or reason}")
    if reason == "CreateContainerConfigError":
        missing = conditions.SECRET_MISSING if "secret" in text.lower() else conditions.SOURCE_MISSING
        return Waiting(missing, f"pod {pod}: {text}; it starts by itself once that is there")
    if reason in ("CrashLoopBackOff", "CreateContainerError", "RunContainerError"):
        return Waiting(reason, f"pod {pod}, container {container.get('name')}: {_last_words(container) or text or reason}")
    return None


def _last_words(container: Mapping[str, Any]) -> str:
    """How the container that is now backed off ended: the back-off itself says nothing of the cause."""
    ended = (container.get("lastState") or {}).get("terminated")
    if not ended:
        return ""
    _, text = explain(ended, int(ended.get("exitCode", 1)), parse_result(ended.get("message")), None)
    return f"it ends again and again: {text}"
