"""Pods on accelerators: what a profile gives them, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.api.load import load_spec
from finetune_operator.build import arm, jobs, pods
from finetune_operator.build.jobs import Stage
from finetune_operator.build.pods import GPU_TOLERATION, NO_DEVICES, Accelerator, Devices, Images, Owner

from tests.unit.operator.helpers import make_finetune

OWNER = Owner("ml", "bot", "uid-bot")
IMAGES = Images("trainer:1", "router:1", "vllm:1")
H100 = Accelerator(
    "h100", "nvidia.com/gpu", {"nvidia.com/gpu.product": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe")}, {"NCCL_IB_HCA": "mlx5"},
    tolerations=({"key": "gpu", "operator": "Exists"},), extra_resources={"rdma/ib": "1"}, shared_memory="16Gi", priority_class="training",
)  # fmt: skip
TRAIN, PREPARE = Stage("train", "r1", 1), Stage("prepare", "r1", 1)


def pod_of(stage: Stage, devices: Devices, **changes: Any) -> dict[str, Any]:
    spec = load_spec(make_finetune(**changes))
    made = jobs.stage_job(OWNER, spec, stage, {}, IMAGES, devices=devices)
    return dict(made["spec"]["template"]["spec"])


def shm(pod: dict[str, Any]) -> str:
    return str(next(v for v in pod["volumes"] if v["name"] == "shm")["emptyDir"]["sizeLimit"])


def test_a_gang_gets_what_its_profile_says() -> None:
    pod = pod_of(TRAIN, Devices(8, H100), compute={"nodes": 2, "memory": "48Gi"}, pods={"tolerations": [{"key": "mine"}]})
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/ib": "1", "memory": "64Gi"}
    assert container["resources"]["requests"]["memory"] == "48Gi"
    assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in container["env"]
    assert (shm(pod), pod["priorityClassName"]) == ("16Gi", "training")
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}, {"key": "mine"}]


def test_a_stage_without_accelerators_gets_none_of_it() -> None:
    pod = pod_of(PREPARE, Devices(8, H100), storage={"accessMode": "ReadWriteMany"})
    assert "priorityClassName" not in pod
    assert "tolerations" not in pod
    assert "limits" not in pod["containers"][0]["resources"]


def test_a_stage_without_accelerators_follows_its_volume_to_a_node_that_has_them() -> None:
    pod = pod_of(PREPARE, Devices(8, H100), pods={"tolerations": [{"key": "mine"}]})
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}, {"key": "mine"}]
    assert "priorityClassName" not in pod
    assert "limits" not in pod["containers"][0]["resources"]


def test_on_cpus_shared_memory_is_small_and_counted() -> None:
    pod = pod_of(TRAIN, NO_DEVICES, compute={"nodes": 2, "memory": "2Gi"})
    assert (shm(pod), pod["containers"][0]["resources"]["limits"]) == ("1Gi", {"memory": "3Gi"})
    assert "tolerations" not in pod


def test_gpus_of_no_profile_are_tolerated_as_the_device_plugin_taints_them() -> None:
    pod = pod_of(TRAIN, Devices(2))
    assert (pod["tolerations"], shm(pod)) == ([GPU_TOLERATION], "8Gi")


def test_a_server_is_let_on_the_nodes_and_needs_no_rdma() -> None:
    spec = load_spec(make_finetune(compute={"accelerator": "h100"}))
    template = arm.template(OWNER, spec, arm.Served("/m", None, "r1", "bot"), IMAGES, Devices(1, H100))["spec"]
    assert template["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert template["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


@pytest.mark.parametrize(
    ("memory", "shared", "limit"),
    [("48Gi", "8Gi", "56Gi"), ("1536Mi", "1Gi", "2560Mi"), ("1G", "1Gi", "2073741824"), ("1.5k", "1", "1501")],
)
def test_limits_are_summed(memory: str, shared: str, limit: str) -> None:
    assert pods.with_shared_memory(memory, shared) == limit


def job_of(stage: Stage, **changes: Any) -> dict[str, Any]:
    return jobs.stage_job(OWNER, load_spec(make_finetune(**changes)), stage, {}, IMAGES)


def test_a_queue_admits_what_trains_and_nothing_starts_before() -> None:
    queued, plain = job_of(TRAIN, compute={"nodes": 2, "queueName": "team"}), job_of(TRAIN, compute={"nodes": 2})
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert queued["spec"]["suspend"] is True
    assert "kueue.x-k8s.io/queue-name" not in queued["spec"]["template"]["metadata"]["labels"]
    assert "suspend" not in plain["spec"]
    assert "kueue.x-k8s.io/queue-name" not in job_of(PREPARE, compute={"queueName": "team"})["metadata"]["labels"]
    first = job_of(TRAIN, compute={"queueName": "team", "queuePriorityClass": "urgent"})["metadata"]["labels"]
    assert (first["kueue.x-k8s.io/queue-name"], first["kueue.x-k8s.io/priority-class"]) == ("team", "urgent")
    assert "kueue.x-k8s.io/priority-class" not in queued["metadata"]["labels"]


def test_a_rank_that_stops_on_request_fails_no_job_unless_it_was_disrupted() -> None:
    rules = [(rule["action"], *rule.get("onExitCodes", {}).get("values", ["disrupted"])) for rule in policy(TRAIN)]
    assert rules == [("FailJob", "disrupted"), ("Ignore", 25), ("FailJob", 0)]
    assert [rule["action"] for rule in policy(PREPARE)] == ["FailJob", "FailJob"]


def policy(stage: Stage) -> list[dict[str, Any]]:
    return list(job_of(stage)["spec"]["podFailurePolicy"]["rules"])


@pytest.mark.parametrize(("deadline", "borne"), [("5s", 900), ("2h", 7200), ("9999d", 86400)])
@pytest.mark.parametrize("runtime", ["vLLM", "Transformers"])
def test_a_server_of_a_huge_model_may_load_for_as_long_as_its_rollout_waits(runtime: str, deadline: str, borne: int) -> None:
    changes = {"compute": {"accelerator": "h100"}, "serving": {"runtime": runtime}, "rollout": {"progressDeadline": deadline}}
    kept = arm.template(OWNER, load_spec(make_finetune(**changes)), arm.Served("/m", None, "r1", "bot"), IMAGES, Devices(1, H100))
    probe = kept["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == borne
    made = arm.deployment(OWNER, "aaa11111", "r1", kept, 2)["spec"]
    assert made["progressDeadlineSeconds"] == borne, "so long nobody who reads the Deployment is to call it failed"


@pytest.mark.parametrize(
    ("resources", "requests"),
    [
        ({}, {"cpu": "100m", "memory": "512Mi"}),
        ({"limits": {"memory": "256Mi"}}, {"cpu": "100m"}),
        ({"limits": {"memory": "2Gi", "cpu": "50m"}}, {"memory": "512Mi"}),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}, {"cpu": "100m", "memory": "1Gi"}),
    ],
)
def test_what_a_server_requests_unasked_is_not_above_its_limit(resources: dict[str, Any], requests: dict[str, str]) -> None:
    spec = load_spec(make_finetune(serving={"resources": resources}))
    server = arm.server(spec, arm.Served("/m", None, "r1", "bot"), IMAGES, Devices())
    assert server["resources"]["requests"] == requests


@pytest.mark.parametrize(("limits", "expected"), [({}, "8"), ({"nvidia.com/gpu": "2"}, "2"), ({"memory": "90Gi"}, "8")])
def test_vllm_divides_the_model_over_as_many_as_the_server_has(limits: dict[str, str], expected: str) -> None:
    changes = {"compute": {"accelerator": "h100", "gpusPerNode": 8}, "serving": {"resources": {"limits": limits}}}
    server = arm.server(load_spec(make_finetune(**changes)), arm.Served("/m", None, "r1", "bot"), IMAGES, Devices(8, H100))
    assert server["args"][server["args"].index("--tensor-parallel-size") + 1] == expected
    assert server["resources"]["limits"]["nvidia.com/gpu"] == expected
