"""What Jobs and Pods say: outcome, root cause, and what a pod waits for. Pure functions of their manifests.

The exit codes are the trainer's (docs/contracts.md). A container that is killed ends with 137 or 143: a disruption where somebody
deleted or evicted its pod, else a fault of the node, which is charged (what nobody asked for must not be tried for ever).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from finetune_operator import conditions, names

FailureClass = Literal["error", "user", "outOfMemory", "stalled", "nonFinite", "infrastructure", "disruption"]

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
# When ranks of one gang fail with different classes, the lowest is the cause and the others its echo. A rank that dies takes its
# peers down: they hang (stalled), crash (error), are ended by the Job controller (disruption), or lose a peer; among the first
# three what came first is the cause, and a lost peer never is while anything else is known.
PRECEDENCE: Final[Mapping[FailureClass, int]] = {
    "user": 0, "nonFinite": 1, "outOfMemory": 2, "stalled": 3, "error": 3, "disruption": 3, "infrastructure": 3,
}  # fmt: skip
ECHO: Final = 4
ECHOES: Final = ("PeerLost", "Error")  # reasons of an infrastructure failure that only says that another rank is gone, or nothing
KILLED: Final = (137, 143)
OOM_KILLED: Final = "OOMKilled"  # the kubelet's reason, and ours
TOLD_SECONDS: Final = 600.0  # so long after a Job's end its pods are asked for, if the watch has not told theirs
UNREACHABLE_SECONDS: Final = 60.0  # a pod that is still there so long after its grace period is on a node that is lost
STOPPED_SECONDS: Final = 5.0  # so long after a rank has stopped it is clear that no suspension is behind it
GANG_SECONDS: Final = 600.0  # so long may a part of a gang hold machines while the others wait
_JOB_MESSAGE = re.compile(r"Container (?P<container>\S+) for pod \S+/(?P<pod>\S+) failed with exit code (?P<code>\d+)")


@dataclass(frozen=True)
class Waiting:
    """Why a pod does not run: a reason of `conditions`, and words a user can act on."""

    reason: str
    message: str


@dataclass(frozen=True)
class Failure:
    """The root cause of a failed Job."""

    failure_class: FailureClass
    reason: str
    message: str
    pod: str = ""
    node: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    waited: bool = False  # it never ran: a part of its pods waited too long
    container: str = ""  # whose end it was, where one is known


@dataclass(frozen=True)
class Run:
    """A Job and its pods, read."""

    name: str
    state: Literal["Absent", "Waiting", "Running", "Ending", "Succeeded", "Failed"]  # Ending: failed or deleted, pods not yet gone
    result: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    waiting: Waiting | None = None
    leader_ip: str | None = None  # pod that answers /progress
    leader_uid: str | None = None
    suspended: bool = False
    stopped: bool = False  # ranks stopped on request, and neither a queue nor anybody else has said why
    unheard: bool = False  # what it waits for may be told by Events alone, which nobody watches
    held: float = 0.0  # seconds that some pods of the gang have held machines while others wait for theirs


ABSENT: Final = Run(name="", state="Absent")


def time(value: str | None) -> datetime | None:
    """An RFC 3339 timestamp of the API server."""
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if value else None


def condition(obj: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    """The object's condition of that type when it is True."""
    for entry in obj.get("status", {}).get("conditions") or ():
        if entry.get("type") == type_ and entry.get("status") == "True":
            return dict(entry)
    return None


def read_run(job: Mapping[str, Any] | None, pods: Iterable[Mapping[str, Any]], now: datetime) -> Run:
    """The state of a Job, with the root cause if it failed and the reason if it waits."""
    if job is None:
        return ABSENT
    name = job["metadata"]["name"]
    mine = sorted((p for p in pods if _belongs(p, job)), key=_rank)
    leader = next((p for p in mine if _rank(p) == 0), None)
    uid = leader["metadata"]["uid"] if leader else None
    if condition(job, "Complete"):
        return Run(name, "Succeeded", result=_leader_result(mine), leader_uid=uid)
    if failed := condition(job, "Failed"):
        return Run(name, "Failed", failure=root_cause(mine, failed), leader_uid=uid)
    failing = condition(job, "FailureTarget")
    if failing and not any(_lives(p, now) for p in mine):
        return Run(name, "Failed", failure=root_cause(mine, failing), leader_uid=uid)
    suspended = bool(job.get("spec", {}).get("suspend"))
    if "deletionTimestamp" in job["metadata"] or failing or (not suspended and any(_phase(p) == "Failed" for p in mine)):
        known = any(_pod_ending(p) for p in mine) or failing
        stopped = not failing and "deletionTimestamp" not in job["metadata"] and any(_stopped(p, now) for p in mine)
        return Run(name, "Ending", failure=root_cause(mine, failing or {}) if known else None, leader_uid=uid, stopped=stopped)
    waits = next((w for w in (waiting(p, now) for p in mine) if w), None)
    if mine and waits is None and all(_phase(p) in ("Running", "Succeeded") for p in mine):
        ip = leader.get("status", {}).get("podIP") if leader and _phase(leader) == "Running" else None
        return Run(name, "Running", leader_ip=ip, leader_uid=uid)
    unheard = not (mine or suspended) or any(_phase(p) == "Pending" and p.get("spec", {}).get("nodeName") for p in mine)
    return Run(name, "Waiting", waiting=waits, leader_uid=uid, suspended=suspended, unheard=unheard, held=_held(mine, now))


def _stopped(pod: Mapping[str, Any], now: datetime) -> bool:
    """Has a rank stopped on request, so long ago that the watch would have told by now if the Job were suspended?"""
    ends = [c.get("state", {}).get("terminated") or {} for c in pod.get("status", {}).get("containerStatuses") or ()]
    since = next((time(e.get("finishedAt")) for e in ends if e.get("exitCode") == names.STOPPED), None)
    return since is not None and (now - since).total_seconds() > STOPPED_SECONDS


def _held(pods: list[Mapping[str, Any]], now: datetime) -> float:
    late = [time(p["metadata"].get("creationTimestamp")) for p in pods if waiting(p, now)]
    if len(late) == len(pods):
        return 0.0
    return max(((now - since).total_seconds() for since in late if since), default=0.0)


def untold(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: datetime) -> bool:
    """Has the Job ended, and by what is known of its pods not they? Each kind has a watch of its own, and none waits for another.

    A Job that only is to fail (FailureTarget) waits for its pods: these are behind if rank 0 was never told of.
    """
    ended = condition(job, "Complete") or condition(job, "Failed")
    said = ended or condition(job, "FailureTarget")
    since = time(said.get("lastTransitionTime")) if said else None
    if said is None or (since and (now - since).total_seconds() > TOLD_SECONDS):
        return False
    mine = [p for p in pods if _belongs(p, job)]
    return all(_rank(p) for p in mine) or bool(ended and not all(_over(p) for p in mine))


def leftovers(jobs: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: datetime) -> dict[str, Run]:
    """Runs whose Job is gone while pods of it still end, by the Job's name."""
    named = (str((p["metadata"].get("labels") or {}).get(names.JOB_NAME, "")) for p in pods if _lives(p, now))
    return {name: Run(name, "Ending") for name in named if name and name not in jobs}


def root_cause(pods: Iterable[Mapping[str, Any]], failed: Mapping[str, Any]) -> Failure:
    """The failure that brought the Job down: by class precedence, then by the time it began."""
    message = str(failed.get("message", ""))
    if failed.get("reason") == "DeadlineExceeded":
        began = names.PROBE if any(_probes(p) for p in pods) else ""
        return Failure("stalled", "DeadlineExceeded", f"it did not end within its deadline: {message}", container=began)
    ended = [e for e in (_pod_ending(p) for p in pods) if e]
    if vanished := _vanished(failed, {e.failure.pod for e in ended}):
        ended.append(vanished)
    if not ended:
        return Failure("disruption", str(failed.get("reason", "")), message or "its pods were deleted")
    first = min((e.since for e in ended if not e.deleted), default="")
    return min(ended, key=lambda e: (_precedence(e, first), e.since, e.failure.failure_class in ("disruption", "infrastructure"))).failure


@dataclass(frozen=True)
class _Ending:
    """A pod that ended badly. `since`: when that began; `deleted`: because somebody, or the Job controller, deleted it."""

    since: str
    failure: Failure
    deleted: bool = False


def _precedence(ending: _Ending, first: str) -> int:
    """`first`: when the first pod failed that nobody deleted; the Job controller deletes the others after that."""
    failure = ending.failure
    if failure.failure_class == "infrastructure" and failure.reason in ECHOES:
        return ECHO
    return ECHO + 1 if ending.deleted and first and ending.since > first else PRECEDENCE[failure.failure_class]


def _probes(pod: Mapping[str, Any]) -> bool:
    """Has the pod's probe begun, and not ended well?"""
    states = (c.get("state", {}) for c in pod.get("status", {}).get("initContainerStatuses") or () if c["name"] == names.PROBE)
    return any("running" in state or state.get("terminated", {}).get("exitCode", 0) != 0 for state in states)


def _vanished(failed: Mapping[str, Any], known: set[str]) -> _Ending | None:
    """A pod that is gone, and so was deleted, although the Job failed of it.

    Every exit code but 0 matches a rule of the failure policy: where the back-off limit is named instead, a pod went without one.
    """
    if (found := _JOB_MESSAGE.search(str(failed.get("message", "")))) and found["pod"] not in known:
        code = int(found["code"])
        kind: FailureClass = "disruption" if code in KILLED else EXIT_CLASSES.get(code, "error")
        return _Ending("", Failure(kind, "ExitCode", f"exit code {code}", pod=found["pod"], container=found["container"]))
    if failed.get("reason") == "BackoffLimitExceeded" and known:
        return _Ending("", Failure("disruption", "PodDeleted", "the pod of a rank was deleted"))
    return None


def waiting(pod: Mapping[str, Any], now: datetime) -> Waiting | None:
    """What keeps a pod from running, or None if nothing does (or it merely starts)."""
    name = pod["metadata"]["name"]
    status = pod.get("status", {})
    for entry in status.get("conditions") or ():
        if entry.get("type") == "PodScheduled" and entry.get("status") == "False":
            return Waiting(conditions.UNSCHEDULABLE, f"pod {name} cannot be scheduled: {entry.get('message', '')}")
    for container in _containers(status):
        state = container.get("state", {}).get("waiting")
        if state and (found := _container_waits(name, container, state)):
            return found
    return None


def stuck_since(pod: Mapping[str, Any], now: datetime) -> float:
    """Seconds that a scheduled pod has been without any running container; 0 if it has one."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending" or waiting(pod, now) or any("running" in c.get("state", {}) for c in _containers(status)):
        return 0.0
    started = time(status.get("startTime"))
    return (now - started).total_seconds() if started else 0.0


def ready(pod: Mapping[str, Any]) -> bool:
    """The pod's Ready condition, and nobody deletes it."""
    return "deletionTimestamp" not in pod["metadata"] and condition(pod, "Ready") is not None


def restarts(pod: Mapping[str, Any]) -> int:
    """Container restarts of the pod."""
    return sum(int(c.get("restartCount", 0)) for c in pod.get("status", {}).get("containerStatuses") or ())


_IMAGE_REASONS = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull")


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
    _, text = _explain(ended, int(ended.get("exitCode", 1)), parse_result(ended.get("message")), None)
    return f"it ends again and again: {text}"


def _pod_ending(pod: Mapping[str, Any]) -> _Ending | None:
    """How a pod's container failed; a disrupted pod, or one that ended because it was deleted, counts as such whatever its code.

    Sidecars are asked last: they are ended when the container that they serve has ended.
    """
    meta, status = pod["metadata"], pod.get("status", {})
    name, node, rank = str(meta["name"]), str(pod.get("spec", {}).get("nodeName", "")), _rank(pod)
    disrupted = condition(pod, "DisruptionTarget")
    since = str(disrupted.get("lastTransitionTime", "")) if disrupted else ""
    asked = _deleted_at(pod)
    for container in [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]:
        ended = container.get("state", {}).get("terminated")
        if not ended or ended.get("exitCode") == 0:
            continue
        code, at = int(ended.get("exitCode", 1)), str(ended.get("finishedAt", ""))
        result = parse_result(ended.get("message"))
        kind: FailureClass = EXIT_CLASSES.get(code, "error")
        deleted = not disrupted and bool(asked) and (not at or asked <= at)
        if ended.get("reason") == OOM_KILLED:
            kind = "outOfMemory"
        elif (disrupted or deleted) and kind not in ("user", "nonFinite", "outOfMemory"):
            kind = "disruption"
        if kind in ("error", "infrastructure") and (killed := next(iter(_ended_by_memory(status)), None)):
            text = f"sidecar {killed['name']} used more memory than its limit; raise serving.resources"
            return _Ending(at, Failure("outOfMemory", OOM_KILLED, text, name, node, result, rank, container=str(killed["name"])))
        reason, text = _explain(ended, code, result, disrupted, deleted=deleted)
        failure = Failure(kind, reason, text, name, node, result, rank, container=str(container.get("name", "")))
        return _Ending(since or (asked if deleted else at), failure, deleted)
    if disrupted:
        words = str(disrupted.get("message", ""))
        return _Ending(since, Failure("disruption", str(disrupted.get("reason")), words, name, node, rank=rank))
    return None


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


def _lives(pod: Mapping[str, Any], now: datetime) -> bool:
    """Can the pod still write? Not once it ended, nor on a node that has been lost for a while."""
    if _over(pod):
        return False
    until = time(pod["metadata"].get("deletionTimestamp"))
    return until is None or (now - until).total_seconds() < UNREACHABLE_SECONDS


def _explain(
    ended: Mapping[str, Any], code: int, result: Mapping[str, Any], disrupted: Mapping[str, Any] | None, *, deleted: bool = False
) -> tuple[str, str]:
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


def _leader_result(pods: list[Mapping[str, Any]]) -> dict[str, Any]:
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses") or ():
            ended = container.get("state", {}).get("terminated")
            if ended and (result := parse_result(ended.get("message"))):
                return result
    return {}


def _containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _phase(pod: Mapping[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _over(pod: Mapping[str, Any]) -> bool:
    return _phase(pod) in ("Succeeded", "Failed")


def _rank(pod: Mapping[str, Any]) -> int:
    return int(pod["metadata"].get("annotations", {}).get(names.JOB_INDEX, 0))


def _belongs(pod: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(o.get("uid") == job["metadata"]["uid"] for o in owners)
