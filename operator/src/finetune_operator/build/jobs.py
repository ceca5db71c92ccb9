"""One builder for every stage's Job: fetch, prepare, baseline, train, evaluate, clean.

The run configuration travels as an annotation of the pod template, projected into the pod by the downward API: Job and
configuration are one object, made once and never changed (docs/adr/0001).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_operator import names
from finetune_operator.api.blocks.deadlines import of_stage
from finetune_operator.api.blocks.evaluation import Custom
from finetune_operator.api.blocks.resources import Resources
from finetune_operator.api.fields import digest
from finetune_operator.api.quantities import seconds
from finetune_operator.api.spec import Spec
from finetune_operator.build import pods, sources
from finetune_operator.build.arm import Served, server, shared_memory
from finetune_operator.build.pods import NO_DEVICES, Accelerator, Devices, Images, Manifest, Owner

CONTAINER = "trainer"
JUDGES = {"HOME": "/tmp", "NVIDIA_VISIBLE_DEVICES": "void"}  # where NVIDIA's runtime is every pod's, an image may ask for all GPUs
ONLINE = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}  # who fetches the model, or data of a hub, may ask it
SHORTEST_KEEP_SECONDS = 3600  # a finished Job stays for its logs, and for the operator that was away when it ended
LONGEST_SECONDS = 2**31 - 1  # what a Job can hold
TRAIN_GRACE_SECONDS = 120  # the gang agrees to stop and saves a checkpoint within this time
CLEANING_DEADLINE_SECONDS = 3600  # one that gets no pod is not waited for: it is tried again
PLACES = ("resource", "node_labels", "tolerations", "extra_resources", "priority_class")  # of a profile: where its pods may go
MEMORY = {"clean": "128Mi", "fetch": "256Mi", "prepare": "512Mi", "baseline": "256Mi", "evaluate": "256Mi", "train": "1Gi"}


@dataclass(frozen=True)
class Stage:
    """What is special about a Job: its stage, its revision, its number (a try, or the attempt)."""

    name: str
    revision: str
    number: int


def stage_job(
    owner: Owner,
    spec: Spec,
    stage: Stage,
    config: Mapping[str, Any],
    images: Images,
    *,
    served: Served | None = None,
    devices: Devices = NO_DEVICES,
    avoid: Sequence[str] = (),
) -> Manifest:
    """The Job of a stage; `served` (scoring alone) is what its sidecar serves; `devices` are those of each pod.

    `avoid` are nodes that it had better not meet; where there is no other it takes them all the same.
    """
    training = stage.name == "train"
    nodes = spec.compute.nodes if training else 1
    labels = {names.REVISION: stage.revision, names.STAGE: stage.name}
    if training:
        labels[names.ATTEMPT] = str(stage.number)
    queue = _queue(spec) if training else {}
    key = names.evaluation_key(str((config.get("evaluation") or {}).get("path", "")))
    of_the_job = {names.ASKED: asked(spec, stage.name, devices.profile), **({names.KEY: key} if key else {})}
    job_spec: Manifest = {
        "completions": nodes,
        "parallelism": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": _failure_policy(training=training, before=_before(spec, stage, config)),
        "ttlSecondsAfterFinished": min(LONGEST_SECONDS, max(SHORTEST_KEEP_SECONDS, int(seconds(spec.retention.jobs)))),
        "template": _template(owner, spec, stage, config, images, served, devices, labels),
    }
    if avoid:
        spec_of_pod = job_spec["template"]["spec"]
        spec_of_pod["affinity"] = _avoiding(spec_of_pod.get("affinity") or {}, avoid)
    if stage.name == names.CLEAN or (not training and spec.deadlines.schedule):  # waiting for a machine counts: it may take for ever
        job_spec["activeDeadlineSeconds"] = deadline(spec, stage.name)
    if queue:
        job_spec["suspend"] = True  # until it is admitted; from then on the field is the queue's
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": owner.metadata(job_name(owner.name, stage), "stage", {**labels, **queue, **of_the_job}),
        "spec": job_spec,
    }


def asked(spec: Spec, stage: str, profile: Accelerator) -> str:
    """Digest of what decides where a stage's pods may go, by the spec and its accelerator's profile: when it changes, a Job without a
    machine is made anew."""
    server = spec.serving.resources if spec.serving and stage != "train" else None
    judge = _judge(spec, stage)
    blocks = {"compute": spec.compute, "pods": spec.pods, "server": server, "metric": judge.resources if judge else None}
    written: Manifest = {name: block.model_dump(exclude_defaults=True) for name, block in blocks.items() if block}
    if stage in names.SCORING and not (spec.evaluation and spec.evaluation.metrics):
        written["answers"] = False  # no server stands beside it: it asks for one accelerator
    return digest({**written, "profile": {name: getattr(profile, name) for name in PLACES}})


def job_name(finetune: str, stage: Stage) -> str:
    """The Job's name: a training attempt's, a stage's, or that of what cleans the volume."""
    if stage.name == "train":
        return names.attempt_job(finetune, stage.revision, stage.number)
    if stage.name == names.CLEAN:
        return names.clean_job(finetune, stage.number)
    return names.stage_job(finetune, stage.revision, stage.name, stage.number)


def gang_service(owner: Owner, stage: Stage) -> Manifest:
    """The headless Service by which the ranks of an attempt find rank 0, before any of them is ready."""
    name = job_name(owner.name, stage)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(name, "stage", {names.REVISION: stage.revision, names.ATTEMPT: str(stage.number)}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_NAME: name},
            "ports": [{"name": "rendezvous", "port": names.MASTER_PORT}],
        },
    }


def _queue(spec: Spec) -> dict[str, str]:
    """The labels by which Kueue knows a Job, and its place among the others; empty where no queue is named."""
    asked = {names.QUEUE: spec.compute.queue_name, names.QUEUE_PRIORITY: spec.compute.queue_priority_class}
    return {label: value for label, value in asked.items() if value} if spec.compute.queue_name else {}


def deadline(spec: Spec, stage: str) -> int:
    """Seconds after which the Job ends by itself, whatever keeps it from ending: for an operator that is away, which else is stricter
    (decide.patience). Where its pods may wait for a machine for ever, it is what it may take from then on, and does not end it."""
    deadlines = spec.deadlines
    if stage == names.CLEAN:
        return CLEANING_DEADLINE_SECONDS
    own: str = getattr(deadlines, of_stage(stage))
    return min(LONGEST_SECONDS, math.ceil(seconds(deadlines.schedule or "0s") + seconds(deadlines.start) + seconds(own)))


def _avoiding(affinity: Manifest, nodes: Sequence[str]) -> Manifest:
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    return pods.with_terms(affinity, "nodeAffinity", pods.PREFERRED, [{"weight": 100, "preference": {"matchFields": fields}}])


def _before(spec: Spec, stage: Stage, config: Mapping[str, Any]) -> list[str]:
    """The containers that must end well before the trainer's own begins."""
    return [*([names.PROBE] if _probes(config) else ()), *((names.ASK, names.METRIC) if _judge(spec, stage.name) else ())]


def _failure_policy(*, training: bool, before: Sequence[str]) -> Manifest:
    """One lost pod ends the Job: a gang is started again as a whole, by the operator, from the last checkpoint.

    But ranks that stop on request do not, so that a Job which its queue suspends stays suspended and resumes with a fresh gang. Its
    condition keeps the exit code, and so the failure's class, when the pods are gone.
    """
    stopped = {"action": "Ignore", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [names.STOPPED]}}
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            *([stopped] if training else ()),
            *(
                {"action": "FailJob", "onExitCodes": {"containerName": name, "operator": "NotIn", "values": [0]}}
                for name in (CONTAINER, *before)
            ),
        ]
    }


def _template(
    owner: Owner, spec: Spec, stage: Stage, config: Mapping[str, Any], images: Images, served: Served | None,
    devices: Devices, labels: Mapping[str, str],
) -> Manifest:  # fmt: skip
    source_volumes, source_mounts = sources.volumes(sources.of_stage(spec, stage.name))
    training = stage.name == "train"
    own = _own_devices(spec, stage, served, devices)
    sidecar = server(spec, served, images, devices) if served else None
    first = [_probe(spec, stage, images, devices)] if _probes(config) else []  # to its end, before the server starts
    memory = [pods.shared_memory(own.shared_memory())] if training else shared_memory(spec) if sidecar else []
    own_image = [{"name": names.METRIC, "mountPath": names.METRIC_DIR}] if _judge(spec, stage.name) else []
    handed = [{"name": mount["name"], "emptyDir": {}} for mount in own_image]
    shared: list[Manifest] = [pods.work_volume(owner), pods.tmp_volume(), _config_volume(), *memory, *handed, *source_volumes]
    last = _container(spec, stage, images, own, [*source_mounts, *own_image], computes=_computes(stage, served))
    spec_of_pod = pods.pod_spec(
        owner,
        spec,
        containers=[last],
        init_containers=[*first, *([_as_sidecar(sidecar)] if sidecar else []), *_judged(spec, stage, last)],
        volumes=shared,
        devices=devices if sidecar else own,
        grace_seconds=TRAIN_GRACE_SECONDS if training else 30,
    )
    spec_of_pod["restartPolicy"] = "Never"
    if training:
        spec_of_pod["subdomain"] = job_name(owner.name, stage)
    config_text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return {
        "metadata": {
            "labels": {**names.labels(owner.name, "stage", **labels), **pods.volume_label(owner)},
            "annotations": {**pods.pod_annotations(spec), names.RUN_CONFIG: config_text},
        },
        "spec": spec_of_pod,
    }


def _probes(config: Mapping[str, Any]) -> bool:
    """Is it measured, before an evaluation, what the tuned model has forgotten?"""
    asked = (config.get("evaluation") or {}).get("forgetting")
    return bool(asked and not asked["skipped"])


def _judge(spec: Spec, stage: str) -> Custom | None:
    """The image of the user's that scores the answers of a stage; None: there is none."""
    return spec.own_metric if stage in names.SCORING else None


def _judged(spec: Spec, stage: Stage, asks: Manifest) -> list[Manifest]:
    """The containers that run one after the other between server and evaluator where an image of the user's scores: one like the
    evaluator (`asks`) has the rows answered, the user's finds the answers in its own volume, where the evaluator finds the scores."""
    judge = _judge(spec, stage.name)
    if judge is None:
        return []
    asking = _as(names.ASK, asks)
    resources = judge.resources or Resources()
    limits = dict(resources.limits or {})
    usual = {name: amount for name, amount in {"cpu": "100m", "memory": MEMORY["evaluate"]}.items() if name not in limits}
    given = {key: value for key, value in (("command", judge.command), ("args", judge.args)) if value}
    judging = {
        "name": names.METRIC,
        "image": judge.image,
        **given,
        "env": pods.env(JUDGES),
        "resources": {"requests": {**usual, **(resources.requests or {})}, **({"limits": limits} if limits else {})},
        "securityContext": pods.RESTRICTED_CONTAINER,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": names.METRIC, "mountPath": f"{names.METRIC_DIR}/in", "subPath": "in", "readOnly": True},
            {"name": names.METRIC, "mountPath": f"{names.METRIC_DIR}/out", "subPath": "out"},
            {"name": names.METRIC, "mountPath": "/tmp", "subPath": "tmp"},
        ],
    }
    return [asking, judging]


def _probe(spec: Spec, stage: Stage, images: Images, devices: Devices) -> Manifest:
    """The trainer's image reading base and tuned model, on an accelerator that the server or the trainer's container has after it: the
    kubelet gives a container the devices of those that ended before it, so the pod asks for no more."""
    made = _container(spec, stage, images, replace(devices, count=min(1, devices.count)), [], computes=True)
    return _as(names.PROBE, made)


def _as(command: str, container: Manifest) -> Manifest:
    """The same container, of another name, for the trainer's command of that name; a port has its name once in a pod."""
    changed = {**container, "name": command, "args": [command, *container["args"][1:]]}
    return {key: value for key, value in changed.items() if key != "ports"}


def _computes(stage: Stage, served: Served | None) -> bool:
    """Does the trainer's own container run the model? Scoring leaves that to the sidecar, but for the loss."""
    return stage.name == "train" or (stage.name in names.SCORING and served is None)


def _own_devices(spec: Spec, stage: Stage, served: Served | None, devices: Devices) -> Devices:
    """The accelerators of the trainer's own container: all of them to train, one to compute the loss of test rows."""
    if not _computes(stage, served):
        return replace(devices, count=0, beside=devices.count > 0 and spec.storage.access_mode == "ReadWriteOnce")
    return devices if stage.name == "train" else replace(devices, count=min(1, devices.count))


def _container(spec: Spec, stage: Stage, images: Images, devices: Devices, source_mounts: list[Manifest], *, computes: bool) -> Manifest:
    training = stage.name == "train"
    command = "evaluate" if stage.name == "baseline" else stage.name
    return {
        "name": CONTAINER,
        "image": images.trainer,
        "args": [command, "--config", f"{names.CONFIG_DIR}/run.json"],
        "env": [
            *pods.env({**(ONLINE if _asks_hub(spec, stage) else pods.OFFLINE), **devices.env()}, spec.pods),
            {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            *(_token(spec) if stage.name == "fetch" else ()),
        ],
        "ports": [{"name": "progress", "containerPort": names.PROGRESS_PORT}],
        "resources": _resources(spec, stage.name, devices, computes=computes),
        "securityContext": pods.RESTRICTED_CONTAINER,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "work", "mountPath": names.WORK},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "config", "mountPath": f"{names.CONFIG_DIR}/run.json", "subPath": "run.json", "readOnly": True},
            *source_mounts,
            *([pods.SHARED_MEMORY_MOUNT] if training else []),
        ],
    }


def _asks_hub(spec: Spec, stage: Stage) -> bool:
    return stage.name == "fetch" or (stage.name == "prepare" and any(source.scheme == "hf" for source in sources.of_data(spec)))


def _token(spec: Spec) -> list[Manifest]:
    """The hub's token from the user's Secret: the fetch pod alone has it, and the operator never reads it."""
    name = spec.model.secret_name
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}}] if name else []


def _resources(spec: Spec, stage: str, devices: Devices, *, computes: bool) -> Manifest:
    compute = spec.compute
    requests: Manifest = {"cpu": (compute.cpu if computes else None) or "100m", "memory": MEMORY[stage]}
    training = stage == "train"
    limits: Manifest = {**devices.limits(), **(devices.extra() if training else {})}
    if computes and compute.memory:
        requests["memory"] = compute.memory
        limits["memory"] = pods.with_shared_memory(compute.memory, devices.shared_memory()) if training else compute.memory
    return {"requests": requests, **({"limits": limits} if limits else {})}


def _as_sidecar(container: Manifest) -> Manifest:
    """A native sidecar: started before the evaluator, ended after it; it needs no readiness of its own."""
    kept = {k: v for k, v in container.items() if k not in ("readinessProbe", "lifecycle")}
    return {**kept, "restartPolicy": "Always"}


def _config_volume() -> Manifest:
    field = {"path": "run.json", "fieldRef": {"fieldPath": f"metadata.annotations['{names.RUN_CONFIG}']"}}
    return {"name": "config", "downwardAPI": {"items": [field]}}
