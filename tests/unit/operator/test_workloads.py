"""Jobs and pods, read: the root cause of what failed, and what a pod waits for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator import kinds
from finetune_operator.build.jobs import Stage, asked, stage_job
from finetune_operator.build.pods import ANY_GPU, Images, Owner
from finetune_operator.projection import projected
from finetune_operator.workloads.endings import fall
from finetune_operator.workloads.jobs import leftovers, read_run, untold
from finetune_operator.workloads.run import ABSENT, Failure, Run, Waited, Waiting
from finetune_operator.workloads.waiting import stuck_since, waiting

from tests.unit.operator.helpers import make_observed

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
JOB: dict[str, Any] = {"metadata": {"name": "job", "uid": "u"}, "spec": {}}
LONG_AGO = {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T11:00:00Z"}
Object = dict[str, Any]


def job(*conditions: str, message: str = "", reason: str = "PodFailurePolicy", **changes: Any) -> Object:
    made = [{"type": t, "status": "True", "reason": reason, "message": message} for t in conditions]
    return {**JOB, **changes, "status": {"conditions": made}}


def pod(
    rank: int = 0, phase: str = "Running", containers: list[Object] | None = None, inits: list[Object] | None = None, **status: Any
) -> Object:
    meta: Object = {
        "name": f"job-{rank}", "uid": f"pod-{rank}", "ownerReferences": [{"uid": "u"}], "labels": {"batch.kubernetes.io/job-name": "job"},
        "annotations": {"batch.kubernetes.io/job-completion-index": str(rank)},
    }  # fmt: skip
    if "deleted" in status:
        meta["deletionTimestamp"], meta["deletionGracePeriodSeconds"] = status.pop("deleted"), status.pop("grace", 0)
    known = {"phase": phase, "podIP": f"10.0.0.{rank}", "containerStatuses": containers or [], "initContainerStatuses": inits or []}
    return {"metadata": meta, "spec": {"nodeName": "node"}, "status": {**known, **status}}


def made_at(one: Object, at: str, **spec: Any) -> Object:
    """The same object, made then; a pod without a machine, unless it is given one."""
    return {**one, "metadata": {**one["metadata"], "creationTimestamp": f"2026-01-01T{at}Z"}, "spec": spec}


def ended(code: int, message: Any = "", *, at: str = "12:00:00", reason: str = "Error", name: str = "trainer", image: str = "") -> Object:
    text = message if isinstance(message, str) else json.dumps(message)
    return {
        "name": name,
        "image": image,
        "state": {"terminated": {"exitCode": code, "message": text, "reason": reason, "finishedAt": f"2026-01-01T{at}Z"}},
    }


def error(kind: str, reason: str, message: str, fix: str = "") -> Object:
    return {"stage": "train", "error": {"class": kind, "reason": reason, "message": message, "fix": fix}}


def gone(rank: int, *states: Object, phase: str = "Failed", **status: Any) -> Object:
    return pod(rank, phase, list(states), **status)


def disrupted(at: str = "11:59:00") -> Object:
    return {
        "conditions": [
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "evicted",
                "lastTransitionTime": f"2026-01-01T{at}Z",
            }
        ]
    }


SCHEDULED_AT = {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T11:57:00Z"}]}
INITIALISING = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
SIDECAR = ended(143, name="server")
STARVED = {"name": "server", "state": {"running": {}}, "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
REJECTED = gone(
    1, reason="UnexpectedAdmissionError", message="Pod was rejected: Allocate failed due to requested number of devices unavailable for "
    "nvidia.com/gpu. Requested: 8, Available: 7, which is unexpected", startTime="2026-01-01T12:00:00Z",
)  # fmt: skip
# As kubelets of 1.34 say it (pkg/kubelet/eviction/helpers.go), without a condition; of a node that is low they set DisruptionTarget.
OF_THE_POD = {"reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "}
OF_A_CONTAINER = {"reason": "Evicted", "message": 'Container server exceeded its local ephemeral storage limit "2Gi". '}
OF_A_VOLUME = {"reason": "Evicted", "message": 'Usage of EmptyDir volume "shm" exceeds the limit "8Gi". '}
OF_THE_NODE = {
    "reason": "Evicted",
    "message": "The node was low on resource: ephemeral-storage. Container trainer was using 9Gi, request is 0. ",
}
BY_RULE = "Container trainer for pod ml/job-1 failed with exit code 21 matching FailJob rule at index 1"
# The Job's condition and its pods → class, reason, pod, words.
CAUSES: dict[str, tuple[Object, list[Object], tuple[str, str, str, str]]] = {
    "rank 1 runs out of memory and rank 0 loses its peer": (
        job("Failed"),
        [gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone"))), gone(1, ended(137, reason="OOMKilled"))],
        ("outOfMemory", "OOMKilled", "job-1", "more memory than its limit"),
    ),
    "bad data on one rank, and all others echo": (
        job("Failed"),
        [gone(0, ended(1, "Traceback", at="11:00:00")), gone(1, ended(20, error("user", "DataInvalid", "row 3", "Mend it.")))],
        ("user", "DataInvalid", "job-1", "row 3. Mend it."),
    ),
    "a pod was evicted and the other rank crashed of it": (
        job("Failed"),
        [gone(0, ended(1, "connection reset")), gone(1, ended(25, at="12:01:00"), **disrupted())],
        ("disruption", "EvictionByEvictionAPI", "job-1", "evicted"),
    ),
    "a rank crashed and the other was ended by the Job controller": (
        job("Failed"),
        [gone(0, ended(1, "ZeroDivisionError")), gone(1, ended(143, at="12:00:05"))],
        ("error", "Error", "job-0", "ZeroDivisionError"),
    ),
    "a rank was killed on its node and the other waited for it in vain: charged, for nobody asked for it": (
        job("Failed"),
        [gone(0, ended(22, at="12:10:00")), gone(1, ended(137))],
        ("infrastructure", "Killed", "job-1", "the node may have run out of memory"),
    ),
    "somebody deleted a pod by force and the other lost its peer": (
        job("Failed"),
        [gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone"))), gone(1, ended(137), deleted="2026-01-01T12:00:00Z")],
        ("disruption", "PodDeleted", "job-1", "the pod was deleted"),
    ),
    "somebody deleted a pod, and both ranks stopped as agreed": (
        job("Failed"),
        [gone(0, ended(25, at="12:00:03")), gone(1, ended(25, at="12:00:02"), deleted="2026-01-01T12:02:00Z", grace=120)],
        ("disruption", "PodDeleted", "job-1", "the pod was deleted"),
    ),
    "a pod was deleted by force and is gone, and the other lost its peer": (
        job("Failed", message=BY_RULE.replace("21", "137")),
        [gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone")))],
        ("disruption", "ExitCode", "job-1", "exit code 137"),
    ),
    "a pod was deleted before it ran and the other waited for it in vain": (
        job("Failed", reason="BackoffLimitExceeded"),
        [gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone")))],
        ("disruption", "PodDeleted", "", "a rank was deleted"),
    ),
    "a node's kubelet would not run a pod, and the other was ended by the Job controller": (
        job("Failed", reason="BackoffLimitExceeded"),
        [gone(0, ended(25, at="12:00:09"), deleted="2026-01-01T12:02:03Z", grace=120), REJECTED],
        ("infrastructure", "UnexpectedAdmissionError", "job-1", "devices unavailable"),
    ),
    "a node's kubelet would not run a pod, for which the other waited in vain": (
        job("Failed", reason="BackoffLimitExceeded"),
        [gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone"))), REJECTED],
        ("infrastructure", "UnexpectedAdmissionError", "job-1", "devices unavailable"),
    ),
    "the network was cut: a rank lost its peer, which the Job controller then ended": (
        job("Failed"),
        [
            gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone"))),
            gone(1, ended(25, at="12:00:09"), deleted="2026-01-01T12:02:03Z", grace=120),
        ],
        ("infrastructure", "PeerLost", "job-0", "rank 1 is gone"),
    ),
    "the disk is full for one rank, and the other was ended by the Job controller": (
        job("Failed"),
        [
            gone(0, ended(24, error("infrastructure", "DiskFull", "no room"))),
            gone(1, ended(137, at="12:00:05"), deleted="2026-01-01T12:00:02Z"),
        ],
        ("infrastructure", "DiskFull", "job-0", "no room"),
    ),
    "a rank crashed, and its pod was deleted afterwards": (
        job("Failed"),
        [gone(0, ended(1, "ZeroDivisionError"), deleted="2026-01-01T12:30:00Z")],
        ("error", "Error", "job-0", "ZeroDivisionError"),
    ),
    "a rank crashed in the second in which the other was ended": (
        job("Failed"),
        [gone(0, ended(143)), gone(1, ended(1))],
        ("error", "Error", "job-1", "exit code 1"),
    ),
    "non-finite numbers": (
        job("Failed"),
        [gone(0, ended(23, error("nonFinite", "NonFiniteLoss", "nan")))],
        ("nonFinite", "NonFiniteLoss", "job-0", "nan"),
    ),
    "an evicted pod whose code says bad data": (
        job("Failed"),
        [gone(0, ended(20, error("user", "DataInvalid", "row 3")), **disrupted())],
        ("user", "DataInvalid", "job-0", "row 3"),
    ),
    "the sidecar was ended because the evaluator failed": (
        job("Failed"),
        [gone(0, ended(20, error("user", "SchemaInvalid", "line 2")), initContainerStatuses=[SIDECAR])],
        ("user", "SchemaInvalid", "job-0", "line 2"),
    ),
    "the evaluator failed because the sidecar ran out of memory": (
        job("Failed"),
        [gone(0, ended(24), initContainerStatuses=[STARVED])],
        ("outOfMemory", "OOMKilled", "job-0", "serving.resources"),
    ),
    "the probe was killed for its memory before the evaluator began": (
        job("Failed"),
        [gone(0, INITIALISING, initContainerStatuses=[ended(137, name="probe", reason="OOMKilled")])],
        ("outOfMemory", "OOMKilled", "job-0", "raise compute.memory"),
    ),
    "the user's own image ended badly, and the server was ended for it": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[SIDECAR, ended(20, "no such code book", name="metric", image="icd:3")])],
        ("user", "MetricFailed", "job-0", "image icd:3 of metric Custom ended with exit code 20, and said: no such code book"),
    ),
    "the user's own image wanted more memory than it may": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[SIDECAR, ended(137, name="metric", reason="OOMKilled")])],
        ("user", "MetricFailed", "job-0", "evaluation.metrics[].custom.resources"),
    ),
    "the user's own image was evicted": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[SIDECAR, ended(143, name="metric")], **disrupted())],
        ("disruption", "EvictionByEvictionAPI", "job-0", "evicted"),
    ),
    "a rank wrote more than its pod may, and stopped as it was asked to: nobody disrupted it": (
        job("Failed"),
        [gone(0, ended(24, error("infrastructure", "PeerLost", "rank 1 is gone"))), gone(1, ended(25), **OF_THE_POD)],
        (
            "error",
            "Evicted",
            "job-1",
            "container trainer: Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. Raise",
        ),
    ),
    "a server wrote more than it may": (
        job("Failed"),
        [gone(0, ended(137), inits=[SIDECAR], **OF_A_CONTAINER)],
        (
            "error",
            "Evicted",
            "job-0",
            'Container server exceeded its local ephemeral storage limit "2Gi". Raise that limit (serving.resources or',
        ),
    ),
    "a pod filled a volume of its own, and no container of it is told of": (
        job("Failed", reason="BackoffLimitExceeded"),
        [gone(0, **OF_A_VOLUME)],
        ("error", "Evicted", "job-0", 'EmptyDir volume "shm" exceeds the limit "8Gi". Raise'),
    ),
    "a node was low on room, and its kubelet said so": (
        job("Failed"),
        [gone(0, ended(137), **OF_THE_NODE, **disrupted())],
        ("disruption", "EvictionByEvictionAPI", "job-0", "evicted"),
    ),
    "an evicted pod wrote too much, and its code says bad data": (
        job("Failed"),
        [gone(0, ended(20, error("user", "DataInvalid", "row 3")), **OF_THE_POD)],
        ("user", "DataInvalid", "job-0", "row 3"),
    ),
    "the user's own image wrote more than it may": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[SIDECAR, ended(137, name="metric")], **OF_THE_POD)],
        ("user", "MetricFailed", "job-0", "containers 1Gi. Raise that limit (evaluation.metrics[].custom.resources or"),
    ),
    "a server wrote more than it may while the user's own image was at work": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[ended(143, name="server"), ended(137, name="metric")], **OF_A_CONTAINER)],
        ("error", "Evicted", "job-0", "Raise that limit (serving.resources or"),
    ),
    "the user's own image was killed on its node": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[ended(137, name="metric")])],
        ("infrastructure", "Killed", "job-0", "the node may have run out of memory"),
    ),
    "the user's own image ended badly, and the pod is gone": (
        job("Failed", message=BY_RULE.replace("trainer", "metric")),
        [],
        ("user", "MetricFailed", "job-1", "exit code 21"),
    ),
    "what asks before it failed": (
        job("Failed"),
        [gone(0, INITIALISING, inits=[SIDECAR, ended(20, error("user", "EveryRowRefused", "the first"), name="ask")])],
        ("user", "EveryRowRefused", "job-0", "the first"),
    ),
    "the deadline passed, and the pods were ended for it": (
        job("Failed", reason="DeadlineExceeded", message="too long"),
        [gone(0, ended(143))],
        ("stalled", "DeadlineExceeded", "", "too long"),
    ),
    "the pods are gone and the Job keeps the exit code": (
        job("Failed", message=BY_RULE),
        [],
        ("outOfMemory", "ExitCode", "job-1", "exit code 21"),
    ),
    "the pods are gone and nothing is known": (
        job("Failed", message="backoff limit"),
        [],
        ("disruption", "PodFailurePolicy", "", "backoff limit"),
    ),
    "a lost node: the Job waits for pods that never answer": (
        job("FailureTarget"),
        [gone(0, phase="Running", deleted="2026-01-01T11:00:00Z", **disrupted())],
        ("disruption", "EvictionByEvictionAPI", "job-0", "evicted"),
    ),
}


@pytest.mark.parametrize("case", CAUSES)
def test_root_cause(case: str) -> None:
    made, pods, (kind, reason, name, words) = CAUSES[case]
    run = read_run(projected(kinds.JOB, made), [projected(kinds.POD, p) for p in pods], NOW)
    assert run.state == "Failed"
    assert isinstance(run.failure, Failure)
    assert (run.failure.failure_class, run.failure.reason, run.failure.pod) == (kind, reason, name)
    assert words in run.failure.message


DEADLINE = job("Failed", reason="DeadlineExceeded")
DONE = {"name": "probe", "state": {"terminated": {"exitCode": 0}}}
WHOSE: dict[str, tuple[Object, list[Object], str]] = {
    "the trainer's": (job("Failed"), [gone(0, ended(1))], "trainer"),
    "the probe's": (job("Failed"), [gone(0, INITIALISING, initContainerStatuses=[ended(139, name="probe")])], "probe"),
    "the server's, for its memory": (job("Failed"), [gone(0, ended(24), initContainerStatuses=[DONE, STARVED])], "server"),
    "of a pod that is gone": (job("Failed", message=BY_RULE.replace("trainer", "probe")), [], "probe"),
    "the deadline passed while the probe ran": (
        DEADLINE,
        [gone(0, INITIALISING, inits=[{"name": "probe", "state": {"running": {}}}])],
        "probe",
    ),
    "the probe was ended for the deadline": (DEADLINE, [gone(0, INITIALISING, inits=[ended(143, name="probe")])], "probe"),
    "the deadline passed after the probe": (DEADLINE, [gone(0, ended(143), inits=[DONE])], ""),
    "the deadline passed before the probe": (DEADLINE, [gone(0, INITIALISING, inits=[{"name": "probe", "state": {"waiting": {}}}])], ""),
}


@pytest.mark.parametrize("case", WHOSE)
def test_whose_end_it_was(case: str) -> None:
    made, pods, container = WHOSE[case]
    failure = read_run(made, pods, NOW).failure
    assert failure is not None
    assert failure.container == container


UNTOLD: dict[str, tuple[Object, list[Object], bool]] = {
    "it goes on": (JOB, [], False),
    "it failed, and its pods are told": (job("Failed"), [gone(0, ended(1)), gone(1, ended(1))], False),
    "it failed, and a pod runs": (job("Failed"), [gone(0, ended(1)), pod(1)], True),
    "it is complete, and rank 0 was never told of": (job("Complete"), [pod(1, "Succeeded")], True),
    "it is to fail, and no pod was told of": (job("FailureTarget"), [], True),
    "it is to fail, and rank 0 was never told of": (job("FailureTarget"), [gone(1, ended(1))], True),
    "it is to fail, and waits for its pods": (job("FailureTarget"), [pod(0), gone(1, ended(1))], False),
    "it failed long ago": ({**JOB, "status": {"conditions": [LONG_AGO]}}, [], False),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_pods_are_asked_for_when_their_watch_is_behind(case: str) -> None:
    made, pods, expected = UNTOLD[case]
    assert untold(made, pods, NOW) is expected


RESULT = {"stage": "train", "artifact": "/a"}
PENDING = pod(0, "Pending")
STATES: dict[str, tuple[Object | None, list[Object], Run]] = {
    "there is no Job": (None, [], ABSENT),
    "its pods are not made yet": (JOB, [], Run("job", "Waiting", unheard=True)),
    "a pod starts": (JOB, [PENDING], Run("job", "Waiting", leader_uid="pod-0", unheard=True)),
    "all run": (JOB, [pod(0), pod(1)], Run("job", "Running", leader_ip="10.0.0.0", leader_uid="pod-0")),
    "another Job's pod does not count": (
        JOB,
        [{**pod(1), "metadata": {**pod(1)["metadata"], "ownerReferences": []}}],
        Run("job", "Waiting", unheard=True),
    ),
    "a queue holds it": ({**JOB, "spec": {"suspend": True}}, [], Run("job", "Waiting", suspended=True, waited=Waited(admission=0))),
    "a queue stops it, and a rank has ended": (
        {**JOB, "spec": {"suspend": True}},
        [gone(0, ended(25))],
        Run("job", "Waiting", leader_uid="pod-0", suspended=True, waited=Waited(admission=0)),
    ),
    "it ended well": (
        job("Complete"),
        [gone(0, ended(0, RESULT), phase="Succeeded")],
        Run("job", "Succeeded", result=RESULT, leader_uid="pod-0"),
    ),
    "it ended well an hour ago": (
        {**JOB, "status": {"conditions": [{**LONG_AGO, "type": "Complete"}]}},
        [],
        Run("job", "Succeeded", ended=NOW - timedelta(hours=1)),
    ),
    "it failed an hour ago": (
        {**JOB, "status": {"conditions": [LONG_AGO]}},
        [],
        Run("job", "Failed", failure=Failure("disruption", "", "its pods were deleted"), ended=NOW - timedelta(hours=1)),
    ),
    "it ended well and its pod is gone": (job("Complete"), [], Run("job", "Succeeded")),
    "it is being deleted": (
        {**JOB, "metadata": {**JOB["metadata"], "deletionTimestamp": "x"}},
        [pod(0)],
        Run("job", "Ending", leader_uid="pod-0"),
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_state(case: str) -> None:
    made, pods, expected = STATES[case]
    assert read_run(made, pods, NOW) == expected


def test_a_failed_rank_is_told_before_the_job_has_failed() -> None:
    run = read_run(JOB, [pod(0), gone(1, ended(21, error("outOfMemory", "Cuda", "CUDA out of memory")))], NOW)
    assert (run.state, run.failure and run.failure.message) == ("Ending", "CUDA out of memory")


@pytest.mark.parametrize(
    ("message", "fix", "told"),
    [
        ("row 3 has no answer", "Mend it.", "row 3 has no answer. Mend it."),
        ("row 3 has no answer.", "Mend it.", "row 3 has no answer. Mend it."),
        ("is it a model?\n", "Give a folder of one.", "is it a model? Give a folder of one."),
        ("", "Mend it.", "Mend it."),
        ("row 3 has no answer", "", "row 3 has no answer"),
    ],
)
def test_a_failure_and_its_fix_are_sentences(message: str, fix: str, told: str) -> None:
    run = read_run(JOB, [gone(0, ended(20, error("user", "DataInvalid", message, fix)))], NOW)
    assert run.failure
    assert run.failure.message == told


def test_pods_whose_job_is_gone_are_waited_for_unless_their_node_is_lost() -> None:
    lost = "2026-01-01T11:00:00Z"
    assert leftovers({}, [pod(0)], NOW) == {"job": Run("job", "Ending")}
    assert leftovers({"job": JOB}, [pod(0)], NOW) == {}
    assert leftovers({}, [pod(0, "Failed"), pod(1, deleted=lost)], NOW) == {}


def waits(reason: str, message: str = "", **changes: Any) -> Object:
    return {"name": "server", "image": "img:1", "state": {"waiting": {"reason": reason, "message": message}}, **changes}


UNSCHEDULABLE = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient memory."}]}
AGAIN = {"lastState": {"terminated": {"exitCode": 1, "message": "no such adapter", "reason": "Error"}}}
WAITS: dict[str, tuple[Object, Waiting | None]] = {
    "it merely starts": (pod(0, "Pending", [waits("ContainerCreating")]), None),
    "no node is large enough": (
        pod(0, "Pending", **UNSCHEDULABLE),
        Waiting(c.UNSCHEDULABLE, "pod job-0 cannot be scheduled: 0/1 nodes are available: 1 Insufficient memory."),
    ),
    "its image cannot be pulled": (
        pod(0, "Pending", [waits("ImagePullBackOff", "not found")]),
        Waiting(c.IMAGE_UNAVAILABLE, "pod job-0: image img:1 cannot be pulled: not found"),
    ),
    "a Secret is missing": (
        pod(0, "Pending", [waits("CreateContainerConfigError", 'secret "hf" not found')]),
        Waiting(c.SECRET_MISSING, 'pod job-0: secret "hf" not found; it starts by itself once that is there'),
    ),
    "a ConfigMap is missing": (
        pod(0, "Pending", [waits("CreateContainerConfigError", 'configmap "rows" not found')]),
        Waiting(c.SOURCE_MISSING, 'pod job-0: configmap "rows" not found; it starts by itself once that is there'),
    ),
    "its registry is away": (
        pod(0, "Pending", [waits("RegistryUnavailable", "pull QPS exceeded")]),
        Waiting(c.IMAGE_UNAVAILABLE, "pod job-0: image img:1 cannot be pulled: pull QPS exceeded"),
    ),
    "its node cannot look for its image, and does not say why": (
        pod(0, "Pending", [waits("ImageInspectError")]),
        Waiting(c.IMAGE_UNAVAILABLE, "pod job-0: image img:1 cannot be pulled: ImageInspectError"),
    ),
    "a Secret lacks a key": (
        pod(0, "Pending", [waits("CreateContainerConfigError", "couldn't find key token in Secret ml/hf")]),
        Waiting(c.SECRET_MISSING, "pod job-0: couldn't find key token in Secret ml/hf; it starts by itself once that is there"),
    ),
    "its kubelet has not heard of a Secret yet, which may be there": (
        pod(0, "Pending", [waits("CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition")]),
        Waiting(
            "CreateContainerConfigError", "pod job-0, container server: failed to sync secret cache: timed out waiting for the condition"
        ),
    ),
    "its image says nothing to start": (
        pod(0, "Pending", [waits("CreateContainerError", "no command specified")]),
        Waiting("CreateContainerError", "pod job-0, container server: no command specified"),
    ),
    "its runtime does not start it": (
        pod(0, "Pending", [waits("RunContainerError", "no such device")]),
        Waiting("RunContainerError", "pod job-0, container server: no such device"),
    ),
    "its node fails it in a way that nobody has thought of": (
        pod(0, "Pending", [waits("PreStartHookError")]),
        Waiting("PreStartHookError", "pod job-0, container server: PreStartHookError"),
    ),
    "its sidecar crashes again and again": (
        pod(0, "Pending", inits=[waits("CrashLoopBackOff", "back-off 5m0s", **AGAIN)]),
        Waiting("CrashLoopBackOff", "pod job-0, container server: it ends again and again: exit code 1: no such adapter"),
    ),
}


@pytest.mark.parametrize("case", WAITS)
def test_waiting(case: str) -> None:
    made, expected = WAITS[case]
    assert waiting(made, NOW) == expected


def test_a_gang_is_held_for_as_long_as_a_part_of_it_waits() -> None:
    def made(one: Object) -> Object:
        return {**one, "metadata": {**one["metadata"], "creationTimestamp": "2026-01-01T11:50:00Z"}}

    late, runs = made(pod(1, "Pending", **UNSCHEDULABLE)), made(pod(0))
    assert read_run(JOB, [runs, late], NOW).held == 600
    assert read_run(JOB, [late], NOW).held == 0, "alone it holds nothing"
    assert read_run(JOB, [made(pod(0, "Pending")), runs], NOW).held == 0, "it merely starts"


def test_a_gang_holds_nothing_before_one_of_its_pods_has_come_to_a_machine() -> None:
    """All have waited for hours when the first gets its place."""
    late = made_at(pod(1, "Pending", **UNSCHEDULABLE), "03:00:00")
    first = made_at(pod(0, startTime="2026-01-01T11:59:00Z"), "03:00:00", nodeName="node")
    assert read_run(JOB, [first, late], NOW).held == 60
    scheduled = made_at(pod(0, "Pending", **SCHEDULED_AT), "03:00:00", nodeName="node")
    assert read_run(JOB, [scheduled, late], NOW).held == 180, "its kubelet has not said anything yet"


def unschedulable(rank: int, message: str, **status: Any) -> Object:
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return made_at(pod(rank, "Pending", conditions=[said], **status), "11:50:00")


def on(rank: int, node: str) -> Object:
    return made_at(pod(rank), "11:50:00", nodeName=node)


# The scheduler's own words, of 1.34, for ranks that must be where rank 0 is.
CROWDED = (
    "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) didn't match pod affinity rules. preemption: 0/3 nodes are "
    "available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
)
FULL = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 No preemption victims found."
BOUND = "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had volume node affinity conflict."
# its pods → the node that is too small for all of them
CROWDS: dict[str, tuple[list[Object], str]] = {
    "others have room, and its node has none": ([on(0, "a"), unschedulable(1, CROWDED)], "a"),
    "two of three are there": ([on(0, "a"), on(1, "a"), unschedulable(2, CROWDED)], "a"),
    "no node has room": ([on(0, "a"), unschedulable(1, FULL)], ""),
    "the others are no place for its volume": ([on(0, "a"), unschedulable(1, BOUND)], ""),
    "one of the others only comes to wait": ([on(0, "a"), unschedulable(1, CROWDED), made_at(pod(2, "Pending"), "12:00:00")], ""),
    "the scheduler makes room": ([on(0, "a"), unschedulable(1, CROWDED, nominatedNodeName="a")], ""),
    "they are on two nodes": ([on(0, "a"), on(1, "b"), unschedulable(2, CROWDED)], ""),
    "none has a node": ([unschedulable(0, CROWDED), unschedulable(1, CROWDED)], ""),
    "all of them do": ([on(0, "a"), on(1, "a")], ""),
}


@pytest.mark.parametrize("case", CROWDS)
def test_a_node_that_has_room_for_a_part_of_a_gang_alone(case: str) -> None:
    pods, node = CROWDS[case]
    assert read_run(JOB, [projected(kinds.POD, one) for one in pods], NOW).crowded == node


def test_a_gang_of_which_a_rank_has_no_pod_does_not_run() -> None:
    """A quota has room for a part of it: for how long the pod that is there has held its machine in vain, Events alone tell."""
    two = {**JOB, "spec": {"completions": 2}, "status": {"startTime": "2026-01-01T11:50:00Z"}}
    assert read_run(two, [pod(0)], NOW) == Run("job", "Waiting", leader_uid="pod-0", unheard=True)
    assert read_run(two, [pod(0), pod(1)], NOW).state == "Running"
    suspended = {**two, "spec": {"completions": 2, "suspend": True}}
    assert not read_run(suspended, [], NOW).unheard, "its queue has not admitted it"


ON = {"nodeName": "node"}
SUSPENDED = {"type": "Suspended", "status": "True", "lastTransitionTime": "2026-01-01T11:30:00Z"}
RESUMED = {"type": "Suspended", "status": "False", "lastTransitionTime": "2026-01-01T11:50:00Z"}
CAME = {"startTime": "2026-01-01T11:58:00Z"}
PROBED = {"name": "probe", "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T11:59:00Z"}}}
SERVES = {"name": "server", "state": {"running": {}}}
BEGAN = {"name": "server", "state": {"running": {"startedAt": "2026-01-01T11:59:40Z"}}}
ASKED = {**PROBED, "name": "ask"}
UNPULLED = waits("ErrImagePull")
UNMADE = waits("CreateContainerError", "no command specified")
CRASHED = waits(
    "CrashLoopBackOff", "back-off", lastState={"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T11:59:30Z"}}
)  # fmt: skip
# The Job, its pods → seconds that they have been waited for.
WAITED: dict[str, tuple[Object, list[Object], Waited]] = {
    "its queue has not admitted it": (made_at(JOB, "11:00:00", suspend=True), [], Waited(admission=3600)),
    "its queue took it back": (
        {**made_at(JOB, "11:00:00", suspend=True), "status": {"conditions": [SUSPENDED]}}, [], Waited(admission=1800),
    ),
    "its queue takes it back, and the Job controller has not yet": (
        {**made_at(JOB, "11:00:00", suspend=True), "status": {"conditions": [RESUMED], "startTime": "2026-01-01T11:50:00Z"}}, [], Waited(),
    ),
    "its queue admits it, and the Job controller has not yet": (
        {**made_at(JOB, "11:00:00", suspend=False), "status": {"conditions": [SUSPENDED]}}, [], Waited(),
    ),
    "its pod is gone, and the next one is not made yet": (
        {**made_at(JOB, "11:00:00"), "status": {"startTime": "2026-01-01T11:50:00Z"}}, [], Waited(),
    ),
    "a pod was made by a clock that is ahead": (JOB, [made_at(pod(0, "Pending", **UNSCHEDULABLE), "12:00:05")], Waited(schedule=0)),
    "a pod has no machine": (JOB, [made_at(pod(0, "Pending", **UNSCHEDULABLE), "11:55:00")], Waited(schedule=300)),
    "the one that has waited longest counts": (
        {**JOB, "spec": {"completions": 2}},
        [made_at(pod(n, "Pending", **UNSCHEDULABLE), at) for n, at in enumerate(("11:55:00", "11:50:00"))], Waited(schedule=600),
    ),
    "its image is not there": (
        JOB, [made_at(pod(0, "Pending", [waits("ImagePullBackOff")], **CAME), "11:00:00", **ON)], Waited(start=120),
    ),
    "its volume is not there, and its kubelet says nothing": (
        JOB, [made_at(pod(0, "Pending", **SCHEDULED_AT), "11:00:00", **ON)], Waited(start=180),
    ),
    "its probe ran until a minute ago": (
        JOB, [made_at(pod(0, "Pending", [INITIALISING], [PROBED], **CAME), "11:00:00", **ON)], Waited(start=60),
    ),
    "the image of its metric is not there": (
        JOB,
        [made_at(pod(0, "Pending", [INITIALISING], [SERVES, ASKED, {**UNPULLED, "name": "metric"}], **CAME), "11:00:00", **ON)],
        Waited(start=60),
    ),
    "its metric cannot be made, while the server holds the machine": (
        JOB,
        [made_at(pod(0, "Pending", [INITIALISING], [SERVES, ASKED, {**UNMADE, "name": "metric"}], **CAME), "11:00:00", **ON)],
        Waited(start=60),
    ),
    "the image behind its server is not there, and the server's took long": (
        JOB,
        [made_at(pod(0, "Pending", [INITIALISING], [BEGAN, {**UNPULLED, "name": "ask"}], **CAME), "11:00:00", **ON)],
        Waited(start=20),
    ),
    "its server crashes now and then": (JOB, [made_at(pod(0, "Pending", inits=[CRASHED], **CAME), "11:00:00", **ON)], Waited(start=30)),
    "its server loads": (
        JOB, [made_at(pod(0, "Pending", [INITIALISING], [SERVES], **CAME), "11:00:00", **ON)],
        Waited(),
    ),
}  # fmt: skip


def test_what_a_job_that_waits_was_made_for_is_read_as_it_was_written() -> None:
    spec = make_observed().spec
    made = stage_job(Owner("ml", "bot", "u"), spec, Stage("fetch", "r1", 1), {}, Images("t:1", "r:1"))
    seen = projected(kinds.JOB, {**made, "metadata": {**made["metadata"], "uid": "u"}})
    assert read_run(seen, [], NOW).asked == asked(spec, "fetch", ANY_GPU) != ""


@pytest.mark.parametrize("case", WAITED)
def test_how_long_pods_have_been_waited_for(case: str) -> None:
    made, pods, expected = WAITED[case]
    found = read_run(projected(kinds.JOB, made), [projected(kinds.POD, p) for p in pods], NOW)
    assert (found.state, found.waited) == ("Waiting", expected)


def test_rows_are_answered_and_judged_before_the_pods_own_container_begins() -> None:
    judging = {"name": "metric", "state": {"running": {"startedAt": "2026-01-01T11:59:00Z"}}}
    for inits, state, since in (
        ([SERVES], "Waiting", None),
        ([SERVES, {"name": "ask", "state": {"running": {"startedAt": "2026-01-01T11:58:00Z"}}}], "Running", None),
        ([SERVES, ASKED, judging], "Running", NOW - timedelta(minutes=1)),
    ):
        found = read_run(JOB, [projected(kinds.POD, pod(0, "Pending", [INITIALISING], inits, **CAME))], NOW)
        assert (found.state, found.judged_since, found.leader_ip) == (state, since, "10.0.0.0" if state == "Running" else None)


def test_a_stage_counts_from_when_its_first_pod_came_to_its_machine() -> None:
    early, now = pod(0, startTime="2026-01-01T11:10:00Z"), pod(1, startTime="2026-01-01T11:20:00Z")
    for made, pods in (
        (JOB, [now, early]),
        (job("Failed"), [early]),
        (JOB, [{**early, "status": {**early["status"], "phase": "Pending"}}]),
    ):
        assert read_run(made, pods, NOW).since == NOW - timedelta(minutes=50)
    assert read_run(JOB, [PENDING], NOW).since is None


def test_a_pod_that_nothing_explains_is_stuck_since_its_start() -> None:
    assert stuck_since(pod(0, "Pending", startTime="2026-01-01T11:58:00Z"), NOW) == 120
    assert stuck_since(pod(0, "Running", startTime="2026-01-01T11:58:00Z"), NOW) == 0
    probing = [{"name": "probe", "state": {"running": {}}}]
    assert stuck_since(pod(0, "Pending", [INITIALISING], probing, startTime="2026-01-01T11:58:00Z"), NOW) == 0, "its probe runs"


@pytest.mark.parametrize(
    ("found", "pods", "state", "stopped"),
    [
        pytest.param({}, [gone(0, ended(25, at="11:59:54"))], "Ending", True, id="ranks stopped, and nobody says why"),
        pytest.param({}, [gone(0, ended(25, at="11:59:57"))], "Ending", False, id="the watch may yet tell that the Job is suspended"),
        pytest.param({}, [gone(0, ended(1, at="11:59:00"))], "Ending", False, id="another end is for the failure policy"),
        pytest.param({"spec": {"suspend": True}}, [gone(0, ended(25, at="11:59:00"))], "Waiting", False, id="its queue suspended it"),
        pytest.param({"metadata": {**JOB["metadata"], "deletionTimestamp": "x"}}, [gone(0, ended(25, at="11:59:00"))], "Ending", False,
                     id="it is being deleted"),
    ],
)  # fmt: skip
def test_stopped_ranks(found: Object, pods: list[Object], state: str, stopped: bool) -> None:
    run = read_run({**JOB, **found}, pods, NOW)
    assert (run.state, run.stopped) == (state, stopped)


FELL = {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T11:59:00Z"}


@pytest.mark.parametrize(
    ("state", "last", "said"),
    [
        ({"running": {}}, FELL, "pod job-0, container server: the container used more memory than its limit"),
        (
            {"terminated": FELL},
            {"exitCode": 1, "finishedAt": "2026-01-01T11:58:00Z"},
            "pod job-0, container server: the container used more",
        ),
        ({"running": {}}, {"exitCode": 0, "finishedAt": "2026-01-01T11:59:00Z"}, None),
        ({"running": {}}, None, None),
    ],
    ids=["started anew", "ended again", "ended well", "runs"],
)
def test_a_container_of_a_server_that_ended_badly(state: Object, last: Object | None, said: str | None) -> None:
    found = fall(pod(0, "Running", [{"name": "server", "state": state, "lastState": {"terminated": last} if last else {}}]))
    if said is None or found is None:
        assert (said, found) == (None, None)
    else:
        assert found.at == datetime(2026, 1, 1, 11, 59, tzinfo=UTC)
        assert found.message.startswith(said)


def test_a_server_that_wrote_more_than_it_may_says_so() -> None:
    found = fall(gone(0, ended(137, name="server"), **OF_THE_POD))
    assert found
    assert found.message.startswith("pod job-0, container server: Pod ephemeral local storage usage exceeds")
    assert "serving.resources" in found.message


def test_an_image_on_a_node_that_is_lost_is_not_said_to_be_slow() -> None:
    judging = {"name": "metric", "state": {"running": {"startedAt": "2026-01-01T11:44:00Z"}}}
    pod = {
        "metadata": {"name": "p", "uid": "u", "ownerReferences": [{"uid": "j"}], "deletionTimestamp": "2026-01-01T11:50:00Z"},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Pending", "initContainerStatuses": [SERVES, judging]},
    }
    job = {"metadata": {"name": "bot-r1-evaluate", "uid": "j", "labels": {}}, "spec": {"completions": 1}}
    assert read_run(job, [pod], NOW).judged_since is None
