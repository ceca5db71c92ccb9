"""What every pod of a FineTune has in common: restricted, without an API token, offline, and one work volume.

With ReadWriteOnce all pods that mount the work volume are kept on one node by pod affinity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_operator import names
from finetune_operator.api.blocks.pods import Pods
from finetune_operator.api.quantities import quantity
from finetune_operator.api.spec import Spec

Manifest = dict[str, Any]
REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
NO_LABELS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True)
class Owner:
    """The FineTune that the children belong to."""

    namespace: str
    name: str
    uid: str

    def reference(self) -> Manifest:
        """A controller ownerReference: garbage collection takes the child with its FineTune."""
        return {
            "apiVersion": names.API_VERSION, "kind": names.KIND, "name": self.name, "uid": self.uid,
            "controller": True, "blockOwnerDeletion": False,
        }  # fmt: skip

    def metadata(self, name: str, component: str, labels: Mapping[str, str] = NO_LABELS, *, owned: bool = True) -> Manifest:
        """Metadata of a child; `labels` are label names of `names` with their values. One that is not owned outlives its FineTune."""
        meta: Manifest = {"name": name, "namespace": self.namespace, "labels": names.labels(self.name, component, **labels)}
        meta["ownerReferences"] = [self.reference()] if owned else []  # said also when empty, so that it is taken back
        return meta


@dataclass(frozen=True)
class Images:
    """Images that the operator starts, from its settings."""

    trainer: str
    router: str
    vllm: str = ""


GPU_TOLERATION: Final[Mapping[str, str]] = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@dataclass(frozen=True)
class Accelerator:
    """An accelerator profile: which resource is asked for, on which nodes, and what its pods need besides.

    `memory_bytes`, `hourly_price` are of one accelerator; `extra_resources` and `shared_memory` of one pod that trains;
    `per_machine` is how many the largest machine has.
    """

    name: str
    resource: str
    node_labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None
    tolerations: Sequence[Mapping[str, str]] = (GPU_TOLERATION,)
    hourly_price: float | None = None
    extra_resources: Mapping[str, str] = field(default_factory=dict)
    shared_memory: str = "8Gi"
    priority_class: str = ""
    per_machine: int = 8

    @property
    def sliced(self) -> bool:
        """Is it a part of an accelerator, as MIG makes them? A process sees one of these, however many its pod has."""
        return self.resource.startswith("nvidia.com/mig-")


ANY_GPU: Final = Accelerator("", "nvidia.com/gpu")


@dataclass(frozen=True)
class Devices:
    """The accelerators of one pod: how many, and of which profile.

    `beside`: it has none, but its volume may be where a pod that has them is running, and it must follow there.
    """

    count: int = 0
    profile: Accelerator = ANY_GPU
    beside: bool = False

    def limits(self) -> dict[str, str]:
        """What the container asks the device plugin for."""
        return {self.profile.resource: str(self.count)} if self.count else {}

    def env(self) -> dict[str, str]:
        """The profile's variables."""
        return dict(self.profile.env) if self.count else {}

    def extra(self) -> dict[str, str]:
        """What a pod that trains with them asks for besides (RDMA)."""
        return dict(self.profile.extra_resources) if self.count else {}

    def shared_memory(self) -> str:
        """The size of /dev/shm in a pod that trains."""
        return self.profile.shared_memory if self.count else CPU_SHARED_MEMORY

    def node_labels(self) -> Mapping[str, Sequence[str]]:
        """Labels that a node must have, each with one of its values."""
        return self.profile.node_labels if self.count else {}

    def placement(self) -> Manifest:
        """Fields of a pod's spec that let it on the nodes that have them."""
        given = {
            "tolerations": [dict(t) for t in self.profile.tolerations] if self.count or self.beside else [],
            "priorityClassName": self.profile.priority_class if self.count else "",
        }
        return {key: value for key, value in given.items() if value}


CPU_SHARED_MEMORY: Final = "1Gi"
NO_DEVICES: Final = Devices()
RESTRICTED_POD: Manifest = {
    "runAsNonRoot": True, "runAsUser": names.USER_ID, "runAsGroup": names.USER_ID, "fsGroup": names.USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
RESTRICTED_CONTAINER: Manifest = {
    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip
OFFLINE: Mapping[str, str] = {"HOME": "/tmp", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def env(values: Mapping[str, str], pods: Pods | None = None) -> list[Manifest]:
    """Environment variables; the user's own (`spec.pods.env`) win. A name comes once: server-side apply refuses lists with two."""
    given = {e.name: e.value for e in (pods.env if pods and pods.env else ())}
    return [{"name": k, "value": v} for k, v in {**values, **given}.items()]


def work_volume(owner: Owner) -> Manifest:
    """The pod's volume for the FineTune's claim."""
    return {"name": "work", "persistentVolumeClaim": {"claimName": names.work_volume(owner.name)}}


def tmp_volume() -> Manifest:
    """A scratch folder, for the root file system is read-only."""
    return {"name": "tmp", "emptyDir": {}}


def shared_memory(size: str) -> Manifest:
    """Room in /dev/shm, beyond the 64 MiB that a runtime gives."""
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def with_shared_memory(memory: str, shared: str) -> str:
    """A memory limit with room for /dev/shm, whose pages are counted in it."""
    total = int((quantity(memory) or 0) + (quantity(shared) or 0))
    unit, size = next(pair for pair in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10), ("", 1)) if total % pair[1] == 0)
    return f"{total // size}{unit}"


SHARED_MEMORY_MOUNT: Final[Manifest] = {"name": "shm", "mountPath": "/dev/shm"}


def pod_spec(
    owner: Owner,
    spec: Spec,
    *,
    containers: list[Manifest],
    volumes: list[Manifest],
    init_containers: list[Manifest] | None = None,
    devices: Devices = NO_DEVICES,
    grace_seconds: int = 30,
) -> Manifest:
    """A restricted pod with the user's overrides, kept on the volume's node when only one node may mount it."""
    result: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": RESTRICTED_POD,
        "terminationGracePeriodSeconds": grace_seconds,
        "containers": containers,
        "volumes": volumes,
    }
    if init_containers:
        result["initContainers"] = init_containers
    if together := _affinity(owner, spec, devices):
        result["affinity"] = together
    given, placed = {key: value for key, value in overrides(spec).items() if value}, devices.placement()
    if tolerations := [*placed.get("tolerations", ()), *given.get("tolerations", ())]:
        given["tolerations"] = tolerations
    return {**result, **placed, **given}


def spread(owner: Owner, component: str) -> list[Manifest]:
    """Constraints that have the pods of one template keep to different zones, and to different nodes, where there is room."""
    return [
        {
            "maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {names.NAME: owner.name, names.COMPONENT: component}},
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]  # fmt: skip


def disruption_budget(metadata: Manifest, selector: dict[str, str]) -> Manifest:
    """A PodDisruptionBudget: of the pods selected one is evicted at a time, and one that does not serve always may be."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }


def overrides(spec: Spec) -> Manifest:
    """What the user says of every pod (`spec.pods`), without affinity and variables; empty where nothing is said."""
    said = spec.pods or Pods()
    return {
        "serviceAccountName": said.service_account_name or "",
        "imagePullSecrets": [{"name": s} for s in said.image_pull_secrets or ()],
        "nodeSelector": dict(said.node_selector or {}),
        "tolerations": [dict(t) for t in said.tolerations or ()],
    }


def affinity(spec: Spec) -> Manifest:
    """The user's affinity for every pod."""
    return dict(spec.pods.affinity) if spec.pods and spec.pods.affinity else {}


def pod_annotations(spec: Spec) -> dict[str, str]:
    """The user's annotations for every pod."""
    return dict(spec.pods.annotations) if spec.pods and spec.pods.annotations else {}


def volume_label(owner: Owner) -> dict[str, str]:
    """Marks a pod that mounts the work volume; the affinity below selects it."""
    return {names.VOLUME: names.work_volume(owner.name)}


def _affinity(owner: Owner, spec: Spec, devices: Devices) -> Manifest:
    found = affinity(spec)
    if spec.storage.access_mode == "ReadWriteOnce":
        together = {"labelSelector": {"matchLabels": volume_label(owner)}, "topologyKey": "kubernetes.io/hostname"}
        found = with_terms(found, "podAffinity", REQUIRED, [together])
    if labels := devices.node_labels():
        wanted = [{"key": key, "operator": "In", "values": list(values)} for key, values in labels.items()]
        found = _with_expressions(found, wanted)
    return found


def with_terms(affinity: Manifest, kind: str, strength: str, terms: list[Manifest]) -> Manifest:
    """The same affinity with more terms of that kind and strength (`REQUIRED` of pods, `PREFERRED`)."""
    block = dict(affinity.get(kind) or {})
    return {**affinity, kind: {**block, strength: [*(block.get(strength) or ()), *terms]}}


def _with_expressions(affinity: Manifest, wanted: list[Manifest]) -> Manifest:
    """The same affinity for nodes that also meet these expressions: the user's terms are alternatives, so each gets them."""
    block = dict(affinity.get("nodeAffinity") or {})
    terms = (block.get(REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    both = [{**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *wanted]} for term in terms]
    return {**affinity, "nodeAffinity": {**block, REQUIRED: {"nodeSelectorTerms": both}}}
