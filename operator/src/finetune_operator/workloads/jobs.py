"""How goes a Job, by what is known of it and of its pods?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from finetune_operator import names
from finetune_operator.workloads.causes import probes, root_cause
from finetune_operator.workloads.endings import parse_result, pod_ending
from finetune_operator.workloads.objects import condition, time
from finetune_operator.workloads.pods import asks, belongs, judged_since, lives, over, phase, rank_of
from finetune_operator.workloads.run import ABSENT, Run, Waited
from finetune_operator.workloads.waiting import came, elsewhere, idle, waiting

TOLD_SECONDS: Final = 600.0  # so long after a Job's end its pods are asked for, if the watch has not told theirs
STOPPED_SECONDS: Final = 5.0  # so long after a rank has stopped it is clear that no suspension is behind it


def read_run(job: Mapping[str, Any] | None, pods: Iterable[Mapping[str, Any]], now: datetime) -> Run:
    """The state of a Job, with the root cause if it failed and the reason if it waits."""
    if job is None:
        return ABSENT
    labels = job["metadata"].get("labels") or {}
    return replace(_read(job, pods, now), asked=labels.get(names.ASKED, ""), key=labels.get(names.KEY, ""))


def _read(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: datetime) -> Run:
    name = job["metadata"]["name"]
    mine = sorted((p for p in pods if belongs(p, job)), key=rank_of)
    leader = next((p for p in mine if rank_of(p) == 0), None)
    uid = leader["metadata"]["uid"] if leader else None
    since = min((at for p in mine if (at := time(p.get("status", {}).get("startTime")))), default=None)
    if complete := condition(job, "Complete"):
        end = time(complete.get("lastTransitionTime"))
        return Run(name, "Succeeded", result=_leader_result(mine), leader_uid=uid, ended=end, since=since)
    if failed := condition(job, "Failed"):
        end = time(failed.get("lastTransitionTime"))
        return Run(name, "Failed", failure=root_cause(mine, failed), leader_uid=uid, ended=end, since=since)
    failing = condition(job, "FailureTarget")
    if failing and not any(lives(p, now) for p in mine):
        return Run(name, "Failed", failure=root_cause(mine, failing), leader_uid=uid, since=since)
    suspended = bool(job.get("spec", {}).get("suspend"))
    if "deletionTimestamp" in job["metadata"] or failing or (not suspended and any(phase(p) == "Failed" for p in mine)):
        known = any(pod_ending(p) for p in mine) or failing
        stopped = not failing and "deletionTimestamp" not in job["metadata"] and any(_stopped(p, now) for p in mine)
        cause = root_cause(mine, failing or {}) if known else None
        return Run(name, "Ending", failure=cause, leader_uid=uid, stopped=stopped, since=since)
    waits, lacks = next((w for w in (waiting(p, now) for p in mine) if w), None), lacking(job, mine)
    if not lacks and waits is None and all(phase(p) in ("Running", "Succeeded") or asks(p) for p in mine):
        ip = leader.get("status", {}).get("podIP") if leader and (phase(leader) == "Running" or asks(leader)) else None
        return Run(name, "Running", leader_ip=ip, leader_uid=uid, since=since, judged_since=judged_since(leader) if leader else None)
    unheard = bool(lacks and not suspended) or any(phase(p) == "Pending" and p.get("spec", {}).get("nodeName") for p in mine)
    return Run(
        name, "Waiting", waiting=waits, leader_uid=uid, suspended=suspended, unheard=unheard, held=held(mine, now),
        crowded=_crowded(mine), waited=_waited(job, mine, now), since=since, probing=any(probes(p) for p in mine),
    )  # fmt: skip


def _stopped(pod: Mapping[str, Any], now: datetime) -> bool:
    """Has a rank stopped on request, so long ago that the watch would have told by now if the Job were suspended?"""
    ends = [c.get("state", {}).get("terminated") or {} for c in pod.get("status", {}).get("containerStatuses") or ()]
    since = next((time(e.get("finishedAt")) for e in ends if e.get("exitCode") == names.STOPPED), None)
    return since is not None and (now - since).total_seconds() > STOPPED_SECONDS


def lacking(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> int:
    """How many of a Job's ranks have no pod: not made yet, or refused (a quota may have room for a part of a gang)."""
    return max(0, int(job.get("spec", {}).get("completions") or 1) - len({rank_of(p) for p in pods}))


def _waited(job: Mapping[str, Any], pods: list[Mapping[str, Any]], now: datetime) -> Waited:
    if job.get("spec", {}).get("suspend"):
        return Waited(admission=_kept(job, now))
    pending = [p for p in pods if phase(p) == "Pending"]
    homeless = [p["metadata"].get("creationTimestamp") for p in pending if not p.get("spec", {}).get("nodeName")]
    return Waited(
        schedule=max((_ago(at, now) for at in homeless), default=None),
        start=max((idle(p, now) for p in pending if p.get("spec", {}).get("nodeName")), default=0.0) or None,
    )


def _kept(job: Mapping[str, Any], now: datetime) -> float | None:
    """Seconds that a queue has kept a Job since it was made or taken back; None while the Job controller has not followed yet."""
    conditions = job.get("status", {}).get("conditions") or ()
    told = next((entry for entry in conditions if entry.get("type") == "Suspended"), None)
    if told and told.get("status") != "True":
        return None
    return _ago((told or {}).get("lastTransitionTime") or job["metadata"].get("creationTimestamp"), now)


def begun(job: Mapping[str, Any], now: datetime) -> float:
    """Seconds since a Job could have pods: since it was made, or its queue admitted it, as far as the Job controller has followed."""
    if condition(job, "Suspended"):
        return 0.0
    return _ago(job.get("status", {}).get("startTime") or job["metadata"].get("creationTimestamp"), now)


def _ago(text: str | None, now: datetime) -> float:
    moment = time(text)
    return max(0.0, (now - moment).total_seconds()) if moment else 0.0


def held(pods: Collection[Mapping[str, Any]], now: datetime, stuck: Collection[str] = (), refused: datetime | None = None) -> float:
    """Seconds that some of a Job's pods have held machines while others wait, since both have been so: by what these say, by their names in
    `stuck`, or because they have been refused since then."""
    late = [p for p in pods if waiting(p, now) or p["metadata"]["name"] in stuck]
    waits = [_made(p) for p in late] + ([refused] if refused else [])
    holds = [time(came(p)) or _made(p) for p in pods if p not in late and p.get("spec", {}).get("nodeName")]
    first, others = (min((at for at in times if at), default=None) for times in (waits, holds))
    return max(0.0, (now - max(first, others)).total_seconds()) if first and others else 0.0


def _made(pod: Mapping[str, Any]) -> datetime | None:
    return time(pod["metadata"].get("creationTimestamp"))


def _crowded(pods: Iterable[Mapping[str, Any]]) -> str:
    """The node that pods of a gang are on, where all its others could only be elsewhere; empty if there is none such."""
    nodes = [str(p.get("spec", {}).get("nodeName") or "") for p in pods]
    homeless = [p for p, node in zip(pods, nodes, strict=True) if not node]
    homes = {*nodes} - {""}
    return homes.pop() if len(homes) == 1 and homeless and all(elsewhere(p) for p in homeless) else ""


def untold(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: datetime) -> bool:
    """Has the Job ended, and by what is known of its pods not they? Each kind has a watch of its own, and none waits for another.

    A Job that only is to fail (FailureTarget) waits for its pods: these are behind if rank 0 was never told of.
    """
    ended = condition(job, "Complete") or condition(job, "Failed")
    said = ended or condition(job, "FailureTarget")
    since = time(said.get("lastTransitionTime")) if said else None
    if said is None or (since and (now - since).total_seconds() > TOLD_SECONDS):
        return False
    mine = [p for p in pods if belongs(p, job)]
    return all(rank_of(p) for p in mine) or bool(ended and not all(over(p) for p in mine))


def leftovers(jobs: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], now: datetime) -> dict[str, Run]:
    """Runs whose Job is gone while pods of it still end, by the Job's name."""
    named = (str((p["metadata"].get("labels") or {}).get(names.JOB_NAME, "")) for p in pods if lives(p, now))
    return {name: Run(name, "Ending") for name in named if name and name not in jobs}


def _leader_result(pods: list[Mapping[str, Any]]) -> dict[str, Any]:
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses") or ():
            ended = container.get("state", {}).get("terminated")
            if ended and (result := parse_result(ended.get("message"))):
                return result
    return {}
