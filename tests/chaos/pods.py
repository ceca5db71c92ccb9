"""Pods of the real node that are deleted under a FineTune, and what was seen of them."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from demo.kube import DemoError, Kubectl


@dataclass(frozen=True)
class Kill:
    """A pod that was deleted, and between which two moments."""

    kind: str
    pod: str
    at_once: bool
    at: float
    done: float


def running(kubectl: Kubectl, namespace: str, selector: str) -> list[str]:
    """Names of the pods that run and that nobody has deleted yet."""
    found = kubectl.get("-n", namespace, "pods", "-l", selector, "--field-selector", "status.phase=Running") or {}
    return [pod["metadata"]["name"] for pod in found.get("items", []) if "deletionTimestamp" not in pod["metadata"]]


def delete(kubectl: Kubectl, namespace: str, pod: str, kind: str, *, at_once: bool) -> Kill:
    """Delete a pod with its grace, or at once (SIGKILL)."""
    hard = ["--grace-period=0", "--force"] if at_once else []
    begun = time.monotonic()
    with suppress(DemoError):  # it may have ended by itself
        kubectl("-n", namespace, "delete", "pod", pod, "--wait=false", *hard)
    return Kill(kind, pod, at_once, begun, time.monotonic())
