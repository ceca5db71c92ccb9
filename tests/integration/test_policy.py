"""The chart's policy on a real API server: what is within it passes, each bound refuses with its message, what was there before goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator import kinds, names
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection

from devcluster.controlplane import ControlPlane
from devcluster.shell import CommandError
from tests.integration.test_chart import _as_operator, install
from tests.unit.api.refusals import Manifest, changed, make_finetune

POLICY = {
    "maxGPUs": 8, "maxReplicas": 3, "accelerators": ["l40s", "h100"], "requireQueue": True, "requireBudget": True, "maxCost": "250",
    "modelSources": ["hf://meta-llama/", "image:///opt/models/m", 'hf://"]||true||["'], "contact": 'the "platform" team\\',
    "namespaceSelector": {"matchExpressions": [{"key": "free", "operator": "DoesNotExist"}]},
}  # fmt: skip
WITHIN = make_finetune(
    "within",
    model={"source": "hf://meta-llama/Llama-3.1-8B"},
    compute={"accelerator": "h100", "nodes": 2, "gpusPerNode": 4, "queueName": "ml"},
    budget={"maxCost": "2.5e2"},
    serving={"replicas": 3, "resources": {"limits": {"nvidia.com/gpu": 8, "memory": "64Gi"}}},
)
BEFORE = make_finetune(
    "before", model={"source": "hf://elsewhere/m"}, compute={"accelerator": "b200", "nodes": 16, "gpusPerNode": 8}, serving={"replicas": 9}
)
ON_CPUS = make_finetune("on-cpus", serving={"replicas": 1})  # neither queue nor budget is asked of it

SOURCES = 'hf://meta-llama/ or image:///opt/models/m or hf://"]||true||["'
GPUS = "maxGPUs", "spec.compute: nodes × gpusPerNode may be at most 8; lower one"
SERVER = "maxGPUs", "spec.serving.resources.limits: a server may have at most 8 GPUs; lower it"
REPLICAS = "maxReplicas", "spec.serving: replicas and autoscaling.maxReplicas may be at most 3; lower them"
ACCELERATOR = "accelerators", "spec.compute.accelerator: must be l40s or h100 where GPUs are asked for; name it"
MODEL = "modelSources", f"spec.model.source: must be {SOURCES} (or below one that ends with /), without ..; name such a model"
QUEUE = "requireQueue", "spec.compute.queueName: must be there where GPUs are asked for; name a LocalQueue of the namespace"
BUDGET = "requireBudget", "spec.budget: must be there where GPUs are asked for; set maxDuration or maxCost"
COST = "maxCost", "spec.budget.maxCost: must be there where GPUs are asked for, and at most 250; set it"
REFUSED: dict[str, tuple[Manifest, tuple[str, str]]] = {
    "a gang of more GPUs": (changed(WITHIN, "spec.compute.nodes", 3), GPUS),
    "more accelerators without a count, which are one a node": (
        changed(WITHIN, "spec.compute", {"accelerator": "h100", "nodes": 9, "queueName": "ml"}), GPUS,
    ),
    "a count of 0, which is one a node": (
        changed(WITHIN, "spec.compute", {"accelerator": "h100", "nodes": 9, "gpusPerNode": 0, "queueName": "ml"}), GPUS,
    ),
    "a server of more GPUs": (changed(WITHIN, "spec.serving.resources", {"limits": {"nvidia.com/gpu": "9"}}), SERVER),
    "another accelerator": (changed(WITHIN, "spec.compute.accelerator", "b200"), ACCELERATOR),
    "GPUs of whatever kind": (changed(WITHIN, "spec.compute", {"gpusPerNode": 1, "queueName": "ml"}), ACCELERATOR),
    "GPUs of a server alone": (
        changed(ON_CPUS, "spec.serving.resources", {"limits": {"nvidia.com/gpu": 1}}), ACCELERATOR,
    ),
    "more replicas": (changed(WITHIN, "spec.serving.replicas", 4), REPLICAS),
    "more replicas for an autoscaler": (
        changed(WITHIN, "spec.serving.autoscaling", {"maxReplicas": 4, "metric": {"name": "m", "averageValue": "4"}}), REPLICAS,
    ),
    "another owner's model": (changed(WITHIN, "spec.model.source", "hf://meta-llama-2/m"), MODEL),
    "a way out of what is let through": (changed(WITHIN, "spec.model.source", "hf://meta-llama/../m"), MODEL),
    "what begins as the one model that is let through": (changed(WITHIN, "spec.model.source", "image:///opt/models/m/2"), MODEL),
    "GPUs past the queue": (changed(WITHIN, "spec.compute", {"accelerator": "h100"}), QUEUE),
    "GPUs without a budget": (changed(WITHIN, "spec.budget", {"currency": "EUR"}), BUDGET),
    "GPUs without a cost": (changed(WITHIN, "spec.budget", {"maxDuration": "24h"}), COST),
    "a larger cost": (changed(WITHIN, "spec.budget.maxCost", "250.01"), COST),
}  # fmt: skip


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(scheduler=False) as started:
        install(started)
        started.kubectl("wait", "--for=condition=Established", "crd/finetunes.finetune.dev", "--timeout=30s")
        apply(started, BEFORE)
        values = tmp_path_factory.mktemp("policy") / "values.yaml"
        values.write_text(json.dumps({"policy": POLICY}))
        install(started, "--values", str(values))
        _in_force(started)
        yield started


def apply(plane: ControlPlane, manifest: Manifest, *arguments: str) -> Manifest:
    return dict(json.loads(plane.kubectl("apply", *arguments, "-f", "-", "-o", "json", stdin=json.dumps(manifest))))


def refused(plane: ControlPlane, manifest: Manifest) -> str:
    with pytest.raises(CommandError) as caught:
        apply(plane, manifest)
    return str(caught.value)


def told(bound: str, message: str) -> str:
    """What the API server says, to the end of the line."""
    return f"denied request: {message}, or ask {POLICY['contact']} (policy.{bound})\n"


def _in_force(plane: ControlPlane, seconds: float = 60) -> None:
    """The API server takes a policy up some time after it was made."""
    deadline = time.monotonic() + seconds
    while _passes(plane, changed(BEFORE, "metadata.name", "probe")):
        assert time.monotonic() < deadline, f"the policy was not in force within {seconds:.0f} s"
        time.sleep(0.5)


def _passes(plane: ControlPlane, manifest: Manifest) -> bool:
    try:
        return bool(apply(plane, manifest, "--dry-run=server"))
    except CommandError:
        return False


@pytest.mark.parametrize("manifest", [WITHIN, ON_CPUS], ids=["on GPUs", "on CPUs"])
def test_what_is_within_it_is_made_edited_and_scaled(plane: ControlPlane, manifest: Manifest) -> None:
    apply(plane, manifest)
    apply(plane, changed(manifest, "spec.compute.memory", "8Gi"))
    name = manifest["metadata"]["name"]
    plane.kubectl("scale", "ft", name, "--replicas=2")
    with pytest.raises(CommandError, match=r"replicas and autoscaling\.maxReplicas may be at most 3"):
        plane.kubectl("scale", "ft", name, "--replicas=4")


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_is_refused_when_it_is_made(plane: ControlPlane, case: str) -> None:
    manifest, (bound, message) = REFUSED[case]
    assert told(bound, message) in refused(plane, changed(manifest, "metadata.name", "new")) + "\n"


@pytest.mark.parametrize("case", REFUSED)
def test_and_when_it_is_edited_so(plane: ControlPlane, case: str) -> None:
    manifest, (bound, message) = REFUSED[case]
    apply(plane, WITHIN if manifest["metadata"]["name"] == "within" else ON_CPUS)
    assert told(bound, message) in refused(plane, manifest) + "\n"


async def test_what_was_there_before_goes_on(plane: ControlPlane) -> None:
    plane.kubectl("label", "ft", "before", "team=ml")
    plane.kubectl("patch", "ft", "before", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    plane.kubectl("patch", "ft", "before", "--type=merge", "-p", '{"spec": {"serving": {"replicas": 2}}}')
    with pytest.raises(CommandError, match=r"spec\.compute: nodes × gpusPerNode"):
        plane.kubectl("patch", "ft", "before", "--type=merge", "-p", '{"spec": {"compute": {"nodes": 15}}}')
    async with Connection(lambda: _as_operator(plane)) as connection:
        cluster = Cluster(connection)
        (finetune,) = [f for f in await cluster.list(kinds.FINETUNE, "default") if f["metadata"]["name"] == "before"]
        meta = {key: finetune["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
        status = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": {"phase": "Suspended"}}
        await cluster.apply_status(status)
    kept: dict[str, Any] = json.loads(plane.kubectl("get", "ft", "before", "-o", "json"))
    assert (kept["status"]["phase"], kept["spec"]["suspend"], kept["spec"]["compute"]["nodes"]) == ("Suspended", True, 16)
    plane.kubectl("delete", "ft", "before", "--cascade=foreground", "--timeout=60s")  # its finalizer is taken off by an update


def test_other_namespaces_are_left_alone(plane: ControlPlane) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "free", "labels": {"free": ""}}}
    apply(plane, namespace)
    assert apply(plane, changed(BEFORE, "metadata.namespace", "free"))["spec"]["compute"]["nodes"] == 16


def test_the_api_server_finds_nothing_wrong_with_its_types(plane: ControlPlane) -> None:
    deadline = time.monotonic() + 60
    while True:
        policy = json.loads(plane.kubectl("get", "validatingadmissionpolicy", "finetune-system-finetune-operator", "-o", "json"))
        if "observedGeneration" in policy.get("status", {}):
            break
        assert time.monotonic() < deadline, policy
        time.sleep(0.5)
    assert policy["status"].get("typeChecking", {}).get("expressionWarnings", []) == []
