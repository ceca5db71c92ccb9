"""The same status and spec give the same manifests, byte for byte (invariant 1); every derived name is a DNS label."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from finetune_operator import kinds, names, plan, status
from finetune_operator.api.fields import REDEPLOY, REEVALUATE, RETRAIN, extract
from finetune_operator.api.load import load_spec
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Cleaning, Status, Trouble
from finetune_operator.build.envoy import REQUEST_SECONDS
from finetune_operator.build.jobs import Stage, job_name
from finetune_operator.build.pods import GPU_TOLERATION, Accelerator, Images, Manifest, Owner
from finetune_operator.decide import decide
from finetune_operator.decide.draft import Draft
from finetune_operator.kinds import Kind
from finetune_operator.observed import ArmHealth, Observed
from finetune_operator.tokens import generate_key, jwks
from finetune_operator.workloads.run import Run
from finetune_trainer.serve import drain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import specs

LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
CYCLES = 16
START = datetime(2026, 1, 1, tzinfo=UTC)
PROFILES = {"h100": Accelerator("h100", "nvidia.com/gpu", {"nvidia.com/gpu.product": ("NVIDIA-H100-80GB-HBM3",)})}
IMAGES = Images("example.com/trainer:1", "example.com/router:1", "example.com/vllm:1")
JWKS = partial(jwks, generate_key())
SCORE = {"score": 0.9, "low": 0.85, "high": 0.95, "n": 40}
RESULTS: dict[str, dict[str, Any]] = {
    "fetch": {"stage": "fetch", "digest": "ab" * 32},
    "prepare": {"stage": "prepare", "digest": "cd" * 32, "rows": {"read": 100, "train": 80, "validation": 10, "test": 10}},
    "train": {"stage": "train", "artifact": "/work/revisions/r/a1-uid/artifact", "digest": "ef" * 32, "step": 9, "totalSteps": 9},
}


def result(stage: str, metric: str, path: str) -> dict[str, Any]:
    """A good end of a stage: tuning helps."""
    if stage in RESULTS:
        return RESULTS[stage]
    score = SCORE if stage == "evaluate" else {**SCORE, "score": 0.1}
    paired = {"metric": metric, "difference": 0.8, "low": 0.7, "high": 0.9, "n": 40} if stage == "evaluate" else None
    return {"stage": "evaluate", "metrics": {metric: score}, "paired": paired, "path": path}


def observe(name: str, spec: dict[str, Any], kept: Status, known: Mapping[str, Any], now: datetime) -> Observed:
    """A snapshot as a freshly started operator takes it: everything through JSON."""
    written = json.loads(json.dumps(spec))
    loaded = load_spec({"metadata": {"name": name}, "spec": written})
    seen = Status.model_validate(json.loads(json.dumps(kept.to_dict())))
    return Observed(
        namespace="ml", name=name, uid="0b6c1d2e-0000-4000-8000-000000000000", generation=1, spec=loaded, status=seen,
        profiles=PROFILES, ingress_annotations=("cert-manager.io/*",),
        retrain=extract(written, Spec, RETRAIN), redeploy=extract(written, Spec, REDEPLOY),
        reevaluate=extract(written, Spec, REEVALUATE), asked={"spec": written, "retry": ""}, now=now, **copy.deepcopy(dict(known)),
    )  # fmt: skip


def manifests(o: Observed) -> list[tuple[Kind, Manifest]]:
    """All that must exist by the decision on a snapshot."""
    context = plan.Context(Owner(o.namespace, o.name, o.uid), o, decide(o), IMAGES, JWKS)
    made = (plan.volume, plan.fields, plan.once, plan.cleaning, plan.arms, plan.routers, plan.exposure)
    return [child for part in made for child in part(context)]


def life(name: str, spec: dict[str, Any], cycles: int = CYCLES) -> Iterator[Observed]:
    """Snapshots of a run in which everything ends well, up to the rollout."""
    kept, now = Status(), START
    known: dict[str, Any] = {"revisions": {}, "templates": {}, "runs": {}, "arms": {}}
    for _ in range(cycles):
        o = observe(name, spec, kept, known, now)
        yield o
        made = manifests(o)
        decision = decide(o)
        kept, now = status.compute(o, decision), now + timedelta(seconds=5)
        for kind, manifest in made:
            labels = manifest["metadata"]["labels"]
            if kind is kinds.CONTROLLER_REVISION:
                place = "templates" if labels[names.COMPONENT] == "arm" else "revisions"
                known[place][labels[names.REVISION]] = manifest["data"]
            if kind is kinds.DEPLOYMENT and names.ARM in labels:
                replicas = manifest["spec"].get("replicas") or known["arms"][labels[names.ARM]].wanted
                known["arms"][labels[names.ARM]] = ArmHealth(wanted=replicas, ready=replicas, pods=replicas)
        for kind, manifest in made:
            if kind is kinds.JOB:
                job, stage = manifest["metadata"]["name"], manifest["metadata"]["labels"][names.STAGE]
                config = json.loads(manifest["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
                scored = config.get("evaluation") or {"metrics": [{"type": ""}], "path": ""}
                said = result(stage, scored["metrics"][0]["type"], scored["path"])
                known["runs"][job] = Run(job, "Succeeded", result=said, leader_uid="12345678-aaaa")


def text(made: list[tuple[Kind, Manifest]]) -> str:
    """Byte for byte: the order of keys counts."""
    return json.dumps([(kind.kind, manifest) for kind, manifest in made])


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs.names(), specs.specs())
def test_the_same_status_and_spec_give_the_same_manifests(name: str, spec: dict[str, Any]) -> None:
    for o in life(name, spec):
        again = observe(name, spec, o.status, {"revisions": o.revisions, "templates": o.templates, "runs": o.runs, "arms": o.arms}, o.now)
        assert text(manifests(o)) == text(manifests(again))


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs.names(), specs.specs())
def test_every_name_is_a_dns_label(name: str, spec: dict[str, Any]) -> None:
    for o in life(name, spec):
        for kind, manifest in manifests(o):
            child = manifest["metadata"]["name"]
            assert LABEL.match(child), f"{kind.kind} {child}"
            if kind is kinds.JOB:  # its pods' host names are <job>-<index>
                assert LABEL.match(f"{child}-{manifest['spec']['completions'] - 1}"), child


def pod_specs(made: list[tuple[Kind, Manifest]]) -> Iterator[tuple[str, Manifest]]:
    for kind, manifest in made:
        if kind in (kinds.JOB, kinds.DEPLOYMENT):
            yield f"{kind.kind} {manifest['metadata']['name']}", manifest["spec"]["template"]["spec"]


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(specs.names(), specs.specs())
def test_every_pod_is_whole_restricted_and_as_the_user_says(name: str, spec: dict[str, Any]) -> None:
    pods = spec.get("pods") or {}
    for o in life(name, spec):
        for what, pod in pod_specs(manifests(o)):
            volumes = [v["name"] for v in pod["volumes"]]
            assert len(set(volumes)) == len(volumes), what
            assert pod["securityContext"]["runAsNonRoot"], what
            assert not pod["automountServiceAccountToken"], what
            assert pod.get("imagePullSecrets", []) == [{"name": s} for s in pods.get("imagePullSecrets") or ()], what
            on_gpus = any(
                "nvidia.com/gpu" in c["resources"].get("limits", {}) for c in [*pod["containers"], *pod.get("initContainers", ())]
            )
            follows = o.spec.compute.gpus_each > 0 and o.spec.storage.access_mode == "ReadWriteOnce" and "work" in volumes
            tolerated = [GPU_TOLERATION] if on_gpus or follows else []
            assert (pod.get("tolerations") or []) == [*tolerated, *(pods.get("tolerations") or [])], what
            assert (pod.get("nodeSelector") or {}) == (pods.get("nodeSelector") or {}), what
            for container in [*pod["containers"], *pod.get("initContainers", ())]:
                assert {m["name"] for m in container["volumeMounts"]} <= set(volumes), f"{what}: {container['name']}"
                variables = [v["name"] for v in container["env"]]
                assert len(set(variables)) == len(variables), f"{what}: {container['name']}"


GPUS = {"accelerator": "h100", "gpusPerNode": 4, "memory": "64Gi"}


def scoring(stage: str = "baseline", **changes: Any) -> Manifest:
    """The pod that scores, of the baseline or of the tuned model, on GPUs."""
    spec = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}, **changes}
    return next(pod for o in life("bot", spec) for what, pod in pod_specs(manifests(o)) if stage in what)


def test_scoring_on_gpus_is_served_by_vllm_with_shared_memory() -> None:
    pod = scoring(compute=GPUS, evaluation={"metrics": [{"type": "ExactMatch"}]}, serving={})
    (server,) = pod["initContainers"]
    assert "shm" in {v["name"] for v in pod["volumes"]}
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "limits" not in pod["containers"][0]["resources"], "the client needs no GPU"


def test_the_loss_is_computed_where_the_model_fits() -> None:
    pod = scoring(compute=GPUS)
    assert "initContainers" not in pod
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "64Gi"}
    assert "nodeAffinity" in pod["affinity"]


@pytest.mark.parametrize("metrics", [None, [{"type": "ExactMatch"}]])
def test_what_was_forgotten_is_measured_first_on_a_gpu_of_what_follows(metrics: list[Any] | None) -> None:
    """A pod asks for the most of any container that runs before the others, and for the sum of those: no GPU more than without."""
    pod = scoring("evaluate", compute={**GPUS, "cpu": 6}, evaluation={"metrics": metrics} if metrics else {}, serving={})
    probe, *servers = pod["initContainers"]
    assert (probe["name"], probe["args"][0], "restartPolicy" in probe) == ("probe", "probe", False)
    assert probe["image"] == pod["containers"][0]["image"]
    assert probe["resources"] == {"requests": {"cpu": "6", "memory": "64Gi"}, "limits": {"nvidia.com/gpu": "1", "memory": "64Gi"}}
    assert [s["resources"]["limits"]["nvidia.com/gpu"] for s in servers] == (["4"] if metrics else [])
    assert "nodeAffinity" in pod["affinity"]
    assert [c["name"] for c in scoring(compute=GPUS, serving={}).get("initContainers", [])] == [], "the base model has forgotten nothing"


def test_a_job_fails_of_its_probe_too() -> None:
    spec = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}}
    jobs = {m["metadata"]["labels"][names.STAGE]: m for o in life("bot", spec) for kind, m in manifests(o) if kind is kinds.JOB}
    of = {
        stage: [rule["onExitCodes"]["containerName"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        for stage, job in jobs.items()
    }
    assert (of["baseline"], of["evaluate"]) == (["trainer"], ["trainer", "probe"])
    for stage, job in jobs.items():
        pod = job["spec"]["template"]["spec"]
        assert set(of[stage]) <= {c["name"] for c in [*pod["containers"], *pod.get("initContainers", ())]}, "the API server refuses others"


def test_an_image_of_the_users_runs_between_who_asks_and_who_scores_and_sees_nothing_else() -> None:
    own = {"image": "judge:1", "args": ["--strict"], "resources": {"limits": {"memory": "1Gi"}}}
    pod = scoring("evaluate", evaluation={"metrics": [{"type": "Custom", "custom": own}]}, serving={})
    asks, judges = pod["initContainers"][-2:]
    assert [c["name"] for c in pod["initContainers"]] == ["probe", "server", "ask", "metric"]
    (scores,) = pod["containers"]
    assert (asks["image"], asks["args"][0], scores["args"][0]) == (scores["image"], names.ASK, "evaluate")
    assert (judges["image"], judges["args"], "command" in judges) == ("judge:1", ["--strict"], False)
    assert judges["resources"] == {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}
    assert [(m["name"], m["mountPath"], m.get("readOnly", False)) for m in judges["volumeMounts"]] == [
        ("metric", "/metric/in", True), ("metric", "/metric/out", False), ("metric", "/tmp", False),
    ]  # fmt: skip
    assert [v["name"] for v in judges["env"]] == ["HOME", "NVIDIA_VISIBLE_DEVICES"], "no variable of the spec's pods, which may be a secret"
    assert {m["mountPath"] for m in asks["volumeMounts"]} >= {"/work", "/metric"}
    assert "metric" not in str(scoring("prepare", evaluation={"metrics": [{"type": "Custom", "custom": own}]}))


def test_once_its_probe_failed_an_evaluation_goes_without_and_takes_what_was_found_before() -> None:
    spec = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}}
    o = next(o for o in life("bot", spec) if any(job.stage == "evaluate" for job in decide(o).jobs))
    server = Trouble(reason="OOMKilled", message="sidecar server used more memory than its limit")
    for known, count in (({}, 1), ({"trouble": server}, 1), ({"unprobed": "the probe failed"}, 0)):
        revision = o.status.revisions[0].model_copy(update=known)
        again = replace(o, status=o.status.model_copy(update={"revisions": [revision]}))
        [job] = [m for kind, m in manifests(again) if kind is kinds.JOB and m["metadata"]["labels"][names.STAGE] == "evaluate"]
        pod, config = job["spec"]["template"]["spec"], json.loads(job["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
        for asked in ("forgetting", "fidelity"):
            found = config["evaluation"][asked]
            assert (len(pod.get("initContainers", [])), found["skipped"]) == (count, known.get("unprobed")), known
            assert found["path"].endswith(f"/evaluations/{asked}")
        rules = [rule["onExitCodes"]["containerName"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        assert rules == ["trainer", *["probe"][:count]], "the API server refuses a rule for a container that is not there"


@pytest.mark.parametrize(
    ("compute", "serving", "quantized"),
    [(GPUS, {}, False), (GPUS, {"runtime": "Transformers"}, True), (GPUS, {"image": "example.com/own:1"}, True), ({}, {}, True)],
)
def test_the_probe_measures_upon_weights_as_the_server_has_them(compute: Manifest, serving: Manifest, quantized: bool) -> None:
    spec = {
        "model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "QLoRA"}, "compute": compute,
        "evaluation": {"metrics": [{"type": "ExactMatch"}]}, "serving": serving,
    }  # fmt: skip
    jobs = {m["metadata"]["labels"][names.STAGE]: m for o in life("bot", spec) for kind, m in manifests(o) if kind is kinds.JOB}
    config = json.loads(jobs["evaluate"]["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
    assert (config["evaluation"]["forgetting"]["quantized"], config["evaluation"]["fidelity"]["merged"]) == (quantized, quantized)
    baseline = json.loads(jobs["baseline"]["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
    assert (baseline["evaluation"]["forgetting"], baseline["evaluation"]["fidelity"]) == (None, None)


def arms(**changes: Any) -> dict[str, Manifest]:
    """The server's container of each arm that a whole life makes, by what it serves: `base`, or `tuned`."""
    return {what: pod["containers"][0] for what, pod in arm_pods(**changes).items()}


def arm_pods(**changes: Any) -> dict[str, Manifest]:
    """The same arms' pods."""
    spec = {
        "model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"},
        "evaluation": {"metrics": [{"type": "ExactMatch"}]}, "serving": {}, **changes,
    }  # fmt: skip
    made = [manifest for o in life("bot", spec) for kind, manifest in manifests(o) if kind is kinds.DEPLOYMENT]
    return {
        "base" if manifest["metadata"]["labels"][names.REVISION] == "base" else "tuned": manifest["spec"]["template"]["spec"]
        for manifest in made
        if names.ARM in manifest["metadata"]["labels"]
    }


ARTIFACT = "/work/revisions/r/a1-uid/artifact"


@pytest.mark.parametrize("compute", [{}, GPUS], ids=["the embedded server", "vLLM"])
def test_a_server_that_goes_has_the_time_of_the_longest_answer(compute: Manifest) -> None:
    for pod in arm_pods(compute=compute).values():
        (container,) = pod["containers"]
        args = container["args"]
        drains = float(args[args.index("--shutdown-timeout") + 1]) if compute else drain.DRAIN_SECONDS
        assert drains >= REQUEST_SECONDS
        assert pod["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + drains


@pytest.mark.parametrize("kind", ["LoRA", "QLoRA", "PromptTuning", "PrefixTuning", "PTuning"])
def test_an_adapter_is_served_upon_its_model(kind: str) -> None:
    made = arms(method={"type": kind})
    base, tuned = made["base"]["args"], made["tuned"]["args"]
    assert tuned[1:5] == [*base[1:3], "--adapter", ARTIFACT]
    assert "--adapter" not in base


@pytest.mark.parametrize("compute", [{}, GPUS])
def test_where_all_weights_trained_the_artifact_is_the_model(compute: Manifest) -> None:
    made = arms(method={"type": "Full"}, compute=compute)
    args = made["tuned"]["args"]
    assert args[0 if compute else 2] == ARTIFACT
    assert not {"--adapter", "--enable-lora"} & set(args)
    assert ARTIFACT not in made["base"]["args"]


@pytest.mark.parametrize("kind", ["LoRA", "Full"])
def test_an_arm_is_kept_with_the_artifact_that_it_serves(kind: str) -> None:
    """By which a revision that was removed and trained again gets another arm."""
    spec = {
        "model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": kind},
        "evaluation": {"metrics": [{"type": "ExactMatch"}]}, "serving": {},
    }  # fmt: skip
    made = [manifest["data"] for o in life("bot", spec) for what, manifest in manifests(o) if what is kinds.CONTROLLER_REVISION]
    kept = {data["revision"]: data.get("artifact") for data in made if "template" in data}
    assert kept.pop("base") is None
    assert list(kept.values()) == [ARTIFACT]


def test_the_loss_of_a_model_of_which_all_weights_trained_is_read_from_the_artifact() -> None:
    spec = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "Full"}}
    configs = [
        json.loads(manifest["spec"]["template"]["metadata"]["annotations"][names.RUN_CONFIG])
        for o in life("bot", spec)
        for kind, manifest in manifests(o)
        if kind is kinds.JOB and manifest["metadata"]["labels"][names.STAGE] == "evaluate"
    ]
    assert {(c["model"]["path"], c["evaluation"]["adapterPath"]) for c in configs} == {(ARTIFACT, None)}


BY_TRANSFORMERS = {
    "a trained prompt": {"type": "PTuning"},
    "DoRA": {"type": "LoRA", "lora": {"useDora": True}},
}


@pytest.mark.parametrize("method", BY_TRANSFORMERS.values(), ids=BY_TRANSFORMERS)
def test_what_vllm_cannot_serve_is_served_by_transformers_on_its_accelerator(method: Manifest) -> None:
    tuned, by_vllm = (arms(method=m, compute=GPUS)["tuned"] for m in (method, {"type": "LoRA"}))
    assert (tuned["image"], by_vllm["image"]) == (IMAGES.trainer, IMAGES.vllm)
    assert tuned["resources"]["limits"] == by_vllm["resources"]["limits"]


@pytest.mark.parametrize("number", [1, 2, 99])
@pytest.mark.parametrize("stage", [*names.STAGES, names.CLEAN])
def test_the_longest_names_are_dns_labels(stage: str, number: int) -> None:
    job = job_name("a" * 40, Stage(stage, "0123abcd", number))
    assert LABEL.match(f"{job}-{511 if stage == 'train' else 0}")


def test_a_life_comes_to_its_rollout() -> None:
    """Else the tests above would see the first stages alone."""
    spec = {
        "model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"},
        "evaluation": {"metrics": [{"type": "ExactMatch"}]}, "serving": {},
    }  # fmt: skip
    snapshots = list(life("bot", spec))
    assert {kind.kind for kind, _ in manifests(snapshots[-1])} >= {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget"}
    jobs = [manifest for o in snapshots for kind, manifest in manifests(o) if kind is kinds.JOB]
    assert {job["metadata"]["labels"][names.STAGE] for job in jobs} == set(names.STAGES)


TRAINS_ONLY = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}}


def cleaning(**changes: Any) -> Manifest:
    """The Job that removes the checkpoints of a revision that is trained."""
    made = [manifest for o in life("bot", {**TRAINS_ONLY, **changes}) for kind, manifest in manifests(o) if kind is kinds.JOB]
    return next(job for job in made if job["metadata"]["labels"][names.STAGE] == names.CLEAN)


def test_what_cleans_the_volume_is_a_pod_like_the_others_and_asks_for_no_accelerator() -> None:
    job = cleaning(compute={**GPUS, "nodes": 2, "queueName": "team"}, pods={"tolerations": [{"key": "mine"}]})
    assert job["metadata"]["name"] == "bot-clean-1"
    assert (job["spec"]["completions"], job["spec"]["activeDeadlineSeconds"]) == (1, 3600)
    assert "suspend" not in job["spec"], "no queue admits it"
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][0] == "clean"
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "128Mi"}}
    assert [v["name"] for v in pod["volumes"]] == ["work", "tmp", "config"]
    assert pod["tolerations"] == [GPU_TOLERATION, {"key": "mine"}], "it goes where the volume is"
    assert "podAffinity" in pod["affinity"]


def test_what_cleans_the_volume_is_built_though_the_spec_names_an_unknown_accelerator() -> None:
    """A Job that could not be built would be said of the FineTune."""
    o = list(life("bot", TRAINS_ONLY))[-1]
    spec = load_spec({"metadata": {"name": "bot"}, "spec": {**TRAINS_ONLY, "compute": {"accelerator": "b9"}}})
    status = o.status.model_copy(update={"cleaning": Cleaning(number=1, checkpoints=["r"])})
    context = plan.Context(Owner("ml", "bot", o.uid), replace(o, spec=spec), Draft(status=status, clean=True), IMAGES, JWKS)
    assert [manifest["metadata"]["name"] for _, manifest in plan.cleaning(context)] == ["bot-clean-1"]


def test_the_token_is_in_the_fetch_pod_alone() -> None:
    model = {"source": "hf://owner/gated", "secretName": "hf-token"}
    spec = {"model": model, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}, "serving": {}}
    made = {manifest["metadata"]["name"]: json.dumps(manifest) for o in life("bot", spec) for _, manifest in manifests(o)}
    assert len(made) > 8
    (fetch,) = [text for text in made.values() if "hf-token" in text and '"kind": "Job"' in text]
    assert '{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token"}}}' in fetch
    assert [name for name, text in made.items() if "secretKeyRef" in text] == [json.loads(fetch)["metadata"]["name"]]


def test_keys_of_data_are_in_the_prepare_pod_alone() -> None:
    data = {
        "train": {"source": "s3://bucket/train/", "secretName": "bucket-keys"},
        "mix": [{"source": "hf://owner/name", "secretName": "hub-token", "percent": 10}],
    }
    spec = {"model": {"source": "image:///m"}, "data": data, "method": {"type": "LoRA"}, "serving": {}}
    made = {manifest["metadata"]["name"]: json.dumps(manifest) for o in life("bot", spec) for _, manifest in manifests(o)}
    (prepare,) = [json.loads(text) for text in made.values() if "bucket-keys" in text and '"kind": "Job"' in text]
    pod = prepare["spec"]["template"]
    mounts = {m["name"]: m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"].startswith("secret-")}
    assert mounts == {"secret-train": "/etc/finetune/secrets/train", "secret-mix-0": "/etc/finetune/secrets/mix-0"}
    volumes = {v["name"]: v["secret"] for v in pod["spec"]["volumes"] if "secret" in v}
    assert volumes == {"secret-train": {"secretName": "bucket-keys"}, "secret-mix-0": {"secretName": "hub-token"}}
    config = json.loads(pod["metadata"]["annotations"][names.RUN_CONFIG])["data"]
    assert (config["train"]["secretMount"], config["mix"][0]["secretMount"]) == (mounts["secret-train"], mounts["secret-mix-0"])
    assert not {variable["name"] for variable in pod["spec"]["containers"][0]["env"]} & {"HF_HUB_OFFLINE"}
    assert [name for name, text in made.items() if '"secretName"' in text and '"kind": "Job"' in text] == [prepare["metadata"]["name"]]


@given(st.integers(0, 3))
def test_another_status_gives_other_manifests(tries: int) -> None:
    """The comparison can fail: another number in the status is another Job."""
    spec = {"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}}
    o = list(life("bot", spec, 2))[1]
    revision = o.status.revisions[0].model_copy(update={"tries": {"fetch": 7 + tries}})
    other = replace(o, runs={}, status=o.status.model_copy(update={"revisions": [revision]}))
    assert text(manifests(replace(o, runs={}))) != text(manifests(other))
