"""An arm: a Deployment of model servers and its headless Service. Named by what it serves, not by its role."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator import kinds, names
from finetune_operator.api.blocks.method import PROMPTS
from finetune_operator.api.blocks.resources import Resources
from finetune_operator.api.blocks.serving import Autoscaling
from finetune_operator.api.quantities import quantity, seconds
from finetune_operator.api.spec import Spec
from finetune_operator.build import pods
from finetune_operator.build.envoy import REQUEST_SECONDS
from finetune_operator.build.pods import Accelerator, Devices, Images, Manifest, Owner
from finetune_operator.errors import SpecError

PRESTOP_SECONDS: Final = 8  # longer than the routers' DNS refresh and health checks take
# vLLM says 503 to whoever comes while it drains: longer than a name server may go on telling of a pod that goes.
VLLM_PRESTOP_SECONDS: Final = 35
MARGIN_SECONDS: Final = 20  # to stop, once the longest answer is given
USUAL: Final = {"cpu": "100m", "memory": "512Mi"}  # what a server requests, where nothing else is said
TARGET_CPU: Final = 80  # percent of the request
READY_SECONDS = 900  # a model server may load for this long before it is restarted, or for rollout.progressDeadline if that is longer
LONGEST_READY_SECONDS: Final = 86400  # a probe counts its failures in 32 bits
IMAGE_CHARACTERS: Final = 253  # of its end, which tells versions apart
VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # --max-lora-rank takes no other (tools/vllm_options.py)

# Arguments: the model's name, the server's port. It fails by an exception, whose last line is the probe's event. It goes through no proxy
# that `spec.pods.env` names.
COMPLETES: Final = """
import json, sys, urllib.request
asked = json.dumps({"model": sys.argv[1], "prompt": "1", "max_tokens": 1}).encode()
request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[2]}/v1/completions", asked, {"Content-Type": "application/json"})
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
assert json.load(direct.open(request, timeout=55))["choices"]
"""


@dataclass(frozen=True)
class Served:
    """What a server loads. `adapter` is None for the untouched base model, and for one of which all weights were trained."""

    model: str
    adapter: str | None
    revision: str
    name: str
    lora_rank: int = 16


@dataclass(frozen=True)
class ServedBy:
    """What decides how fast a server answers: its runtime (or own image) and its accelerators. `accelerator` is None on CPUs, and of one
    without a profile."""

    accelerator: str | None
    accelerators: int
    runtime: str

    def __str__(self) -> str:
        devices = f"{self.accelerators} {self.accelerator or 'GPU'}" if self.accelerators else "CPUs"
        return f"{self.runtime} on {devices}"


def template(owner: Owner, spec: Spec, served: Served, images: Images, devices: Devices) -> Manifest:
    """The pod template of an arm, without what changes in place (replicas)."""
    volumes = [pods.work_volume(owner), pods.tmp_volume(), *shared_memory(spec)]
    sleep = VLLM_PRESTOP_SECONDS if uses_vllm(spec) else PRESTOP_SECONDS
    container = {**server(spec, served, images, devices), "lifecycle": {"preStop": {"sleep": {"seconds": sleep}}}}
    grace = sleep + REQUEST_SECONDS + MARGIN_SECONDS
    pod = pods.pod_spec(owner, spec, containers=[container], volumes=volumes, devices=devices, grace_seconds=grace)
    if spec.storage.access_mode == "ReadWriteMany":  # else all are where the volume is
        pod["topologySpreadConstraints"] = pods.spread(owner, "arm")
    return {"metadata": {"annotations": pods.pod_annotations(spec)}, "spec": pod}


def server(spec: Spec, served: Served, images: Images, devices: Devices) -> Manifest:
    """The container that serves the OpenAI API on port 8000; evaluation runs the same one as its sidecar. SpecError where its image is
    not known."""
    serving = spec.serving
    vllm = uses_vllm(spec)
    if vllm and not images.vllm:
        raise SpecError(no_vllm(spec))
    health = "/health" if vllm else "/healthz"
    ready = "/health" if vllm else "/readyz"
    loads = min(LONGEST_READY_SECONDS, max(READY_SECONDS, math.ceil(seconds(spec.rollout.progress_deadline))))
    container: Manifest = {
        "name": names.SERVER,
        "image": (serving.image if serving and serving.image else None) or (images.vllm if vllm else images.trainer),
        "args": vllm_args(served, accelerators(spec, devices.profile)) if vllm else serve_args(served),
        "env": pods.env({**pods.OFFLINE, **devices.env(), **({"VLLM_NO_USAGE_STATS": "1"} if vllm else {})}, spec.pods),
        "ports": [{"name": "http", "containerPort": names.MODEL_PORT}],
        "resources": _resources(spec, devices),
        "securityContext": pods.RESTRICTED_CONTAINER,
        "startupProbe": _completes(served.name, loads) if vllm else _probe(ready, period=2, failures=loads // 2),
        "readinessProbe": _probe(ready, period=2, failures=2),
        "livenessProbe": _probe(health, period=10, failures=6),
        "volumeMounts": [
            {"name": "work", "mountPath": names.WORK, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            *([pods.SHARED_MEMORY_MOUNT] if vllm else []),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return container


def accelerators(spec: Spec, profile: Accelerator) -> int:
    """Of one server: `serving.resources` may say another number than trains."""
    limits = (spec.serving.resources.limits if spec.serving and spec.serving.resources else None) or {}
    given = quantity(str(limits.get(profile.resource, "")))
    return spec.compute.gpus_each if given is None else int(given)


def served_by(spec: Spec, profile: Accelerator) -> ServedBy:
    """What a server is, as the spec has it."""
    count = accelerators(spec, profile)
    image = spec.serving.image if spec.serving else None
    return ServedBy(spec.compute.accelerator if count else None, count, image[-IMAGE_CHARACTERS:] if image else runtime(spec))


def shared_memory(spec: Spec) -> list[Manifest]:
    """The volume at /dev/shm of a server that needs one: the workers of vLLM talk through it."""
    return [pods.shared_memory("2Gi")] if uses_vllm(spec) else []


def serve_args(served: Served) -> list[str]:
    """Arguments of `finetune-trainer serve` (docs/contracts.md)."""
    adapter = ["--adapter", served.adapter] if served.adapter else []
    return [
        "serve", "--model", served.model, *adapter, "--served-model-name", served.name, "--host", "0.0.0.0",
        "--port", str(names.MODEL_PORT), "--revision", served.revision,
    ]  # fmt: skip


def vllm_args(served: Served, gpus: int) -> list[str]:
    """Arguments of the vLLM image's entry point, `vllm serve`. The adapter is served under the model's name.

    The model comes first, for `--model` is deprecated there. A name may hold any character: it is joined to its option by `=`
    and is written as JSON in the adapter's entry, whose short form `name=path` has no room for commas.
    """
    common = [
        served.model, "--host", "0.0.0.0", "--port", str(names.MODEL_PORT), "--tensor-parallel-size", str(max(1, gpus)),
        "--shutdown-timeout", str(REQUEST_SECONDS),
    ]  # fmt: skip
    if served.adapter is None:
        return [*common, f"--served-model-name={served.name}"]
    return [
        *common, f"--served-model-name={served.name}-base", "--enable-lora", "--max-lora-rank", str(_vllm_rank(served.lora_rank)),
        "--lora-modules", json.dumps({"name": served.name, "path": served.adapter}),
    ]  # fmt: skip


def runtime(spec: Spec) -> str:
    """`Auto` is vLLM where an accelerator is asked for and it can serve what is trained, else transformers."""
    wanted = spec.serving.runtime if spec.serving else "Auto"
    if wanted != "Auto":
        return wanted
    if spec.method.type in PROMPTS or (spec.method.lora and spec.method.lora.use_dora):
        return "Transformers"
    return "vLLM" if spec.compute.accelerator else "Transformers"


def uses_vllm(spec: Spec) -> bool:
    """Is the server vLLM, and not an image that takes the trainer's arguments?"""
    return runtime(spec) == "vLLM" and not (spec.serving and spec.serving.image)


def no_vllm(spec: Spec) -> str:
    """That the operator has no image of vLLM, and the fix."""
    wanted = spec.serving.runtime if spec.serving else "Auto"
    which = wanted if wanted != "Auto" else f"Auto, which is vLLM with accelerator {spec.compute.accelerator}"
    return (
        f"serving.runtime is {which}, and the operator has no image of vLLM (its setting FINETUNE_VLLM_IMAGE is empty): set the chart's "
        f"value images.vllm, or set serving.runtime to Transformers, or serving.image"
    )


def deployment(owner: Owner, arm: str, revision: str, kept: Manifest, replicas: int | None) -> Manifest:
    """The arm's Deployment from its kept template; without replicas where an autoscaler has them in hand."""
    labels = _labels(owner, arm)
    merged = {
        "metadata": {**kept["metadata"], "labels": {**labels, names.REVISION: revision, **pods.volume_label(owner)}},
        "spec": kept["spec"],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": owner.metadata(names.arm(owner.name, arm), "arm", {names.ARM: arm, names.REVISION: revision}),
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": _loads(kept),  # kstatus and Argo CD call it failed after that
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": _selector(owner, arm)},
            "template": merged,
        },
    }


def _loads(kept: Manifest) -> int:
    """Seconds for which a server of that pod template may load, as it was fixed when the arm was made."""
    probes = (container.get("startupProbe") for container in kept["spec"].get("containers") or ())
    return max((probe["periodSeconds"] * probe["failureThreshold"] for probe in probes if probe), default=READY_SECONDS)


def service(owner: Owner, arm: str) -> Manifest:
    """The arm's headless Service: routers resolve its ready pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(names.arm(owner.name, arm), "arm", {names.ARM: arm}),
        "spec": {
            "clusterIP": "None",
            "selector": _selector(owner, arm),
            "ports": [{"name": "http", "port": names.MODEL_PORT, "targetPort": "http"}],
        },
    }


def disruption_budget(owner: Owner, arm: str) -> Manifest:
    """Of an arm with more than one pod: a drained node takes one at a time."""
    return pods.disruption_budget(owner.metadata(names.arm(owner.name, arm), "arm", {names.ARM: arm}), _selector(owner, arm))


def autoscaler(owner: Owner, arm: str, scaling: Autoscaling, least: int) -> Manifest:
    """The arm's HorizontalPodAutoscaler; `least` is how few pods it may have now."""
    name = names.arm(owner.name, arm)
    return {
        "apiVersion": kinds.HPA.api_version,
        "kind": kinds.HPA.kind,
        "metadata": owner.metadata(name, "arm", {names.ARM: arm}),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": least,
            "maxReplicas": scaling.max_replicas,
            "metrics": [_metric(scaling)],
        },
    }


def _metric(scaling: Autoscaling) -> Manifest:
    if scaling.metric:
        target = {"type": "AverageValue", "averageValue": scaling.metric.average_value}
        return {"type": "Pods", "pods": {"metric": {"name": scaling.metric.name}, "target": target}}
    utilization = {"type": "Utilization", "averageUtilization": scaling.target_cpu or TARGET_CPU}
    return {"type": "Resource", "resource": {"name": "cpu", "target": utilization}}


def host(owner: Owner, arm: str) -> str:
    """The DNS name that routers resolve: the Service's alone, for they are in its namespace.

    The first search domain of a pod then answers, whatever the cluster's domain is; Envoy's resolver did not get beyond it
    with `<name>.<namespace>.svc`, which is found under the second or third.
    """
    return names.arm(owner.name, arm)


def _selector(owner: Owner, arm: str) -> dict[str, str]:
    return {names.NAME: owner.name, names.ARM: arm}


def _labels(owner: Owner, arm: str) -> dict[str, str]:
    return names.labels(owner.name, "arm", **{names.ARM: arm})


def _resources(spec: Spec, devices: Devices) -> Manifest:
    """With what is usual: where the limit is below that, the API server takes the limit for the request."""
    given = (spec.serving.resources if spec.serving else None) or Resources()
    limits: dict[str, Any] = {**devices.limits(), **(given.limits or {})}
    usual = {name: amount for name, amount in USUAL.items() if not _below(limits.get(name), amount)}
    return {"requests": {**usual, **(given.requests or {})}, **({"limits": limits} if limits else {})}


def _below(limit: str | None, amount: str) -> bool:
    value, least = quantity(limit or ""), quantity(amount)
    return value is not None and least is not None and value < least


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures,
    }  # fmt: skip


def _completes(name: str, loads: int) -> Manifest:
    """vLLM's `/health` says that its engine runs: only an answer of this very model shows that it serves. (`finetune-trainer serve` sees to
    that itself.)"""
    return {
        "exec": {"command": ["python3", "-c", COMPLETES, name, str(names.MODEL_PORT)]},
        "periodSeconds": 5, "timeoutSeconds": 60, "failureThreshold": loads // 5,
    }  # fmt: skip


def _vllm_rank(rank: int) -> int:
    """The least rank to set aside that has room for the adapter's."""
    return next((r for r in VLLM_RANKS if r >= rank), VLLM_RANKS[-1])
