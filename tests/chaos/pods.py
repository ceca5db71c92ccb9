"""Pods of the real node that are deleted under a FineTune, and what was seen of them."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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


def crash(kubectl: Kubectl, namespace: str, pod: str, kind: str) -> Kill:
    """Delete a pod of the built-in node and end its processes by SIGKILL, frozen before so that no handler of theirs runs: a forced
    deletion alone still has the kubelet send SIGTERM and wait two seconds, in which a trainer saves."""
    begun = time.monotonic()
    found = kubectl.get("-n", namespace, "pod", pod)
    processes = _processes(found["metadata"]["uid"]) if found else []
    _signal(processes, signal.SIGSTOP)
    delete(kubectl, namespace, pod, kind, at_once=True)
    _signal(processes, signal.SIGKILL)
    return Kill(kind, pod, True, begun, time.monotonic())


def kill(kubectl: Kubectl, namespace: str, pod: str) -> int:
    """End the processes of a pod of the built-in node by SIGKILL, how many; its kubelet starts its containers again."""
    found = kubectl.get("-n", namespace, "pod", pod)
    processes = _processes(found["metadata"]["uid"]) if found else []
    _signal(processes, signal.SIGKILL)
    return len(processes)


def _processes(uid: str) -> list[int]:
    """Processes of a pod's containers, its sandbox's left out, on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if uid in (folder / "cgroup").read_text() and b"pause" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
