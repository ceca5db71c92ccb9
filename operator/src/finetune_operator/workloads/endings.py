"""How did a pod fail?

The exit codes are the trainer's (docs/contracts.md). A container that is killed ends with 137 or 143: a disruption where somebody
deleted or evicted its pod, else a fault of the node, which is charged (what nobody asked for must not be tried for ever). A pod that its
kubelet evicted for a limit of its own has failed by itself, whatever its containers made of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from finetune_operator import conditions, names
from finetune_operator.workloads.objects import condition, time
from finetune_operator.workloads.pods import containers, rank_of
from finetune_operator.workloads.run import Failure, FailureClass

EXIT_CLASSES: Final[Mapping[int, FailureClass]] = {
    20: "user",
    21: "outOfMemory",
    22: "stalled",
    23: "nonFinite",
    24: "infrastructure",
    names.STOPPED: "disruption",
    137: "infrastructure",
    143: "infrastructure",
}
KILLED: Final = (137, 143)
OOM_KILLED: Final = "OOMKilled"  # the kubelet's reason, and ours
EVICTED: Final = "Evicted"  # the kubelet's; ours where it was for a limit of the pod's own
# Its words then (pkg/kubelet/eviction/helpers.go). Of a node that is low on something it says otherwise, and sets DisruptionTarget.
_OWN_LIMIT: Final = re.compile(
    r"Container (?P<container>\S+) exceeded its local ephemeral storage limit"
    r"|Pod ephemeral local storage usage exceeds the total limit of containers"
    r"|Usage of EmptyDir volume \S+ exceeds the limit"
)
_GIVES_STORAGE: Final[Mapping[str, str]] = {names.METRIC: "evaluation.metrics[].custom.resources", names.SERVER: "serving.resources"}


@dataclass(frozen=True)
class Ending:
    """A pod that ended badly. `since`: when that began; `deleted`: because somebody, or the Job controller, deleted it; `rejected`: by
    its node's kubelet, before any container of it ran."""

    since: str
    failure: Failure
    deleted: bool = False
    rejected: bool = False


@dataclass(frozen=True)
class Fall:
    """When a container of a pod that goes on ended badly, and its words."""

    at: datetime
    message: str


def fall(pod: Mapping[str, Any]) -> Fall | None:
    """The last one of a pod that serves: it was started anew since, or will be."""
    found = [fell for c in containers(pod.get("status", {})) for key in ("state", "lastState") if (fell := _fell(pod, c, key))]
    return max(found, key=lambda fell: fell.at, default=None)


def _fell(pod: Mapping[str, Any], container: Mapping[str, Any], key: str) -> Fall | None:
    ended = (container.get(key) or {}).get("terminated") or {}
    code, at = int(ended.get("exitCode") or 0), time(ended.get("finishedAt"))
    if code == 0 or at is None:
        return None
    _, words = explain(ended, code, parse_result(ended.get("message")), None)
    words = _outgrown(pod.get("status", {}), str(container.get("name")))[1] or words
    return Fall(at, f"pod {pod['metadata']['name']}, container {container.get('name')}: {words}")


def pod_ending(pod: Mapping[str, Any]) -> Ending | None:
    """How a pod's container failed; a disrupted pod, or one that ended because it was deleted, counts as such whatever its code. One that
    its kubelet evicted for a limit of its own was not: what its containers were ended with, on request or killed, says nothing then.

    Sidecars are asked last: they are ended when the container that they serve has ended, or one that had to end well before it.
    """
    meta, status = pod["metadata"], pod.get("status", {})
    name, node, rank = str(meta["name"]), str(pod.get("spec", {}).get("nodeName", "")), rank_of(pod)
    disrupted = condition(pod, "DisruptionTarget")
    since = str(disrupted.get("lastTransitionTime", "")) if disrupted else ""
    asked = _deleted_at(pod)
    first = sorted(status.get("initContainerStatuses") or (), key=lambda c: c.get("name") not in names.BEFORE)
    for container in [*(status.get("containerStatuses") or ()), *first]:
        ended = container.get("state", {}).get("terminated")
        if not ended or ended.get("exitCode") == 0:
            continue
        code, at = int(ended.get("exitCode", 1)), str(ended.get("finishedAt", ""))
        result = parse_result(ended.get("message"))
        kind: FailureClass = EXIT_CLASSES.get(code, "error")
        deleted = not disrupted and bool(asked) and (not at or asked <= at)
        if kind not in ("user", "nonFinite") and not deleted and (outgrown := _own_limit(status, str(container.get("name")))):
            return Ending(at, replace(outgrown, pod=name, node=node, rank=rank))
        if not (disrupted or deleted) and (judge := of_the_users(container, ended)):
            return Ending(at, replace(judge, pod=name, node=node))
        if ended.get("reason") == OOM_KILLED:
            kind = "outOfMemory"
        elif (disrupted or deleted) and kind not in ("user", "nonFinite", "outOfMemory"):
            kind = "disruption"
        if kind in ("error", "infrastructure") and (killed := next(iter(_ended_by_memory(status)), None)):
            text = f"sidecar {killed['name']} used more memory than its limit; raise serving.resources"
            return Ending(at, Failure("outOfMemory", OOM_KILLED, text, name, node, result, rank, container=str(killed["name"])))
        reason, text = explain(ended, code, result, disrupted, deleted=deleted)
        failure = Failure(kind, reason, text, name, node, result, rank, container=str(container.get("name", "")))
        return Ending(since or (asked if deleted else at), failure, deleted)
    if disrupted:
        words = str(disrupted.get("message", ""))
        return Ending(since, Failure("disruption", str(disrupted.get("reason")), words, name, node, rank=rank))
    return None if asked else _rejection(status, Failure("infrastructure", str(status.get("reason", "")), "", name, node, rank=rank))


def of_the_users(container: Mapping[str, Any], ended: Mapping[str, Any]) -> Failure | None:
    """The failure of the user's own image, whose exit codes are its own: no retry mends what it says, or its limit. None: the container is
    another one, or somebody killed it."""
    starved = ended.get("reason") == OOM_KILLED
    if container.get("name") != names.METRIC or (ended.get("exitCode") in KILLED and not starved):
        return None
    image = f"image {container['image']} of metric Custom" if container.get("image") else "the image of metric Custom"
    tail = str(ended.get("message") or "").strip()[-400:]
    words = f"ended with exit code {ended.get('exitCode')}{f', and said: {tail}' if tail else ''}"
    if starved:
        words = "used more memory than its limit, or without one than its node had; raise evaluation.metrics[].custom.resources"
    return Failure("user", conditions.METRIC_FAILED, f"{image} {words}", container=names.METRIC)


def _rejection(status: Mapping[str, Any], failure: Failure) -> Ending | None:
    """Of a pod that its node's kubelet would not run: devices that are gone, room that another pod has. No container says anything then."""
    if status.get("phase") != "Failed" or not failure.reason:
        return None
    since, words = str(status.get("startTime", "")), str(status.get("message") or "the node's kubelet would not run it")
    if outgrown := _own_limit(status, ""):
        return Ending(since, replace(failure, failure_class=outgrown.failure_class, message=outgrown.message), rejected=True)
    return Ending(since, replace(failure, message=words), rejected=True)


def _own_limit(status: Mapping[str, Any], container: str) -> Failure | None:
    """The failure of a pod that wrote more than it may, by the container that was at work (empty: none is known); None: it did not."""
    who, said = _outgrown(status, container)
    if not said:
        return None
    words = f"container {who}: {said}" if who and not said.startswith("Container") else said
    if who == names.METRIC:  # as its limit of memory is
        return Failure("user", conditions.METRIC_FAILED, words, container=who)
    return Failure("error", EVICTED, words, container=who)


def _outgrown(status: Mapping[str, Any], container: str) -> tuple[str, str]:
    """(whose limit, the kubelet's words with the fix) of a pod that it evicted for its containers' limit of ephemeral storage or the size
    of a volume; no words where that is not so. Where it names none it was the container that was at work."""
    said = str(status.get("message") or "").strip()
    found = _OWN_LIMIT.match(said) if status.get("reason") == EVICTED else None
    if found is None:
        return container, ""
    who = found["container"] or container
    given = _GIVES_STORAGE.get(who, "serving.resources, evaluation.metrics[].custom.resources, the accelerator's profile")
    return who, f"{said.rstrip('. ')}. Raise that limit ({given} or a LimitRange of the namespace sets it), or write less"


def _deleted_at(pod: Mapping[str, Any]) -> str:
    """When the pod's deletion was asked for (its timestamp is the end of the grace); empty if it was not."""
    until, grace = time(pod["metadata"].get("deletionTimestamp")), pod["metadata"].get("deletionGracePeriodSeconds", 0)
    return (until - timedelta(seconds=int(grace or 0))).strftime("%Y-%m-%dT%H:%M:%SZ") if until else ""


def _ended_by_memory(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Sidecars that were killed for their memory, now or in an earlier life."""
    return [
        c
        for c in status.get("initContainerStatuses") or ()
        if any(((c.get(state) or {}).get("terminated") or {}).get("reason") == OOM_KILLED for state in ("state", "lastState"))
    ]


def explain(
    ended: Mapping[str, Any], code: int, result: Mapping[str, Any], disrupted: Mapping[str, Any] | None, *, deleted: bool = False
) -> tuple[str, str]:
    """(reason, words) of a container that ended badly: its own, or what its exit says."""
    error = result.get("error")
    if isinstance(error, Mapping):
        return str(error.get("reason", "Error")), _told(str(error.get("message") or ""), str(error.get("fix") or ""))
    if disrupted:
        return str(disrupted.get("reason", "Disrupted")), str(disrupted.get("message", "the pod was disrupted"))
    if ended.get("reason") == OOM_KILLED:
        return OOM_KILLED, "the container used more memory than its limit; raise compute.memory, or serving.resources if it is a server"
    if deleted:
        return "PodDeleted", "the pod was deleted"
    tail = str(ended.get("message") or "").strip()[-400:]
    if code in KILLED:
        words = "killed (exit code {}) although nobody deleted its pod: the node may have run out of memory; its log says"
        return "Killed", words.format(code)
    return str(ended.get("reason") or "Error"), f"exit code {code}{': ' + tail if tail else ''}"


def _told(message: str, fix: str) -> str:
    """What is wrong and how to mend it, as sentences."""
    message = message.rstrip()
    stop = "." if message and not message.endswith((".", "!", "?")) else ""
    return f"{message}{stop} {fix}".lstrip() if fix else message


def parse_result(message: str | None) -> dict[str, Any]:
    """The trainer's termination message; empty if it is none (an image that is not ours, or killed before it spoke)."""
    try:
        parsed = json.loads(message or "")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
