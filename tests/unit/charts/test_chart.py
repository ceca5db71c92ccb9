"""The chart as rendered by the project's Helm: rights are the code's calls, no more; the operator reads its own settings."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator import kinds, names
from finetune_operator.build.pods import Accelerator
from finetune_operator.kinds import Kind
from finetune_operator.settings import SettingsError, accelerators, from_environment
from finetune_operator.signing import SECRET_NAME

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "finetune-operator"
SOURCES = ROOT / "operator" / "src" / "finetune_operator"
IMAGES = ("--set", "images.operator=example.com/operator:1", "--set", "images.trainer=example.com/trainer:1")
Manifest = dict[str, Any]
Rights = dict[tuple[str, str], set[str]]

# What the code calls, by kind. `informer` lists each kind that is cached, watches children and gets what no watch has told; kopf
# watches FineTunes; `apply` creates children, gets one whose name is taken, patches those that are kept as wanted (and puts what an
# apply does not take back), deletes those that are not wanted any more (plan.leftovers, obsolete).
CACHED = {"get", "list", "watch"}
MADE_ONCE = {*CACHED, "create"}
KEPT = {*MADE_ONCE, "patch", "update"}
CALLS: dict[Kind, set[str]] = {
    kinds.FINETUNE: CACHED,
    kinds.JOB: {*MADE_ONCE, "delete"},
    kinds.POD: {*CACHED, "patch"},  # reconcile nudges routers
    kinds.DEPLOYMENT: {*KEPT, "delete"},
    kinds.CONTROLLER_REVISION: MADE_ONCE,
    kinds.SERVICE: {*KEPT, "delete"},
    kinds.CONFIGMAP: {*KEPT, "delete"},
    kinds.PVC: KEPT,
    kinds.PDB: {*KEPT, "delete"},
    kinds.HPA: {*KEPT, "delete"},
    kinds.EVENT: {"create", "list"},  # events; observe, for a volume that cannot be mounted
}
SWITCHED: dict[str, Kind] = {"expose.ingress": kinds.INGRESS, "expose.httpRoute": kinds.HTTP_ROUTE}  # by the value that switches them on
CLUSTER: dict[Kind, set[str]] = {kinds.STORAGE_CLASS: {"get", "list"}}  # preflight
VERBS = {"apply": "patch", "annotate": "patch", "replace": "update"}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "charts" / "helm.py"), *arguments], capture_output=True, text=True)


@cache
def rendered(*arguments: str) -> tuple[Manifest, ...]:
    done = helm("template", "ops", str(CHART), "-n", "system", *IMAGES, *arguments)
    assert done.returncode == 0, done.stderr
    return tuple(d for d in yaml.safe_load_all(done.stdout) if d)


def one(manifests: Iterable[Manifest], kind: str, name: str, namespace: str | None = None) -> Manifest:
    found = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name) and m["metadata"].get("namespace") == namespace]
    assert len(found) == 1
    return found[0]


def rights(role: Manifest, names_given: tuple[str, ...] = ()) -> Rights:
    found: Rights = {}
    for rule in role["rules"]:
        if tuple(rule.get("resourceNames", ())) == names_given:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def called(calls: Mapping[Kind, set[str]]) -> Rights:
    return {(kind.group, kind.plural): set(verbs) for kind, verbs in calls.items()}


EVERYWHERE: Rights = {**called(CALLS), (names.GROUP, "finetunes/status"): {"patch"}}


def test_for_all_namespaces_the_rights_are_the_calls() -> None:
    role = one(rendered(), "ClusterRole", "system-ops")
    assert rights(role) == {**EVERYWHERE, **called(CLUSTER)}


def test_for_some_namespaces_the_rights_are_there_alone() -> None:
    manifests = rendered("--set", "namespaces={ml,nlp}")
    assert rights(one(manifests, "ClusterRole", "system-ops")) == called(CLUSTER)
    for namespace in ("ml", "nlp"):
        assert rights(one(manifests, "Role", "ops", namespace)) == EVERYWHERE
        subject = {"kind": "ServiceAccount", "name": "ops", "namespace": "system"}
        assert one(manifests, "RoleBinding", "ops", namespace)["subjects"] == [subject]


@pytest.mark.parametrize("value", SWITCHED)
@pytest.mark.parametrize("namespaces", [(), ("--set", "namespaces={ml}")])
def test_the_rights_to_a_way_into_the_cluster_are_there_where_it_is_switched_on(value: str, namespaces: tuple[str, ...]) -> None:
    manifests = rendered("--set", f"{value}=true", *namespaces)
    found = rights(one(manifests, "Role", "ops", "ml") if namespaces else one(manifests, "ClusterRole", "system-ops"))
    assert found == {**EVERYWHERE, **({} if namespaces else called(CLUSTER)), **called({SWITCHED[value]: {*KEPT, "delete"}})}


def test_who_may_edit_may_scale_and_who_may_view_sees_the_scale() -> None:
    manifests = rendered()
    everything = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
    for role, finetunes, scale in (("edit", everything, {"get", "update", "patch"}), ("view", {"get", "list", "watch"}, {"get"})):
        found = rights(one(manifests, "ClusterRole", f"system-ops-{role}"))
        assert found == {(names.GROUP, "finetunes"): finetunes, (names.GROUP, "finetunes/scale"): scale}


def test_in_its_own_namespace_it_has_its_lease_and_its_key() -> None:
    role = one(rendered(), "Role", "ops-own", "system")
    assert rights(role) == {("coordination.k8s.io", "leases"): {"create"}, ("", "secrets"): {"create"}}
    assert rights(role, ("ops",)) == {("coordination.k8s.io", "leases"): {"get", "update"}}
    assert rights(role, (SECRET_NAME,)) == {("", "secrets"): {"get"}}


def test_the_table_holds_every_call_that_names_its_kind() -> None:
    known = {
        **EVERYWHERE,
        **called(CLUSTER),
        ("coordination.k8s.io", "leases"): {"create", "get", "update"},
        ("", "secrets"): {"create", "get"},
    }
    missing = [f"{verb} {kind.plural}" for verb, kind in calls_in_code() if verb not in known.get((kind.group, kind.plural), set())]
    assert missing == []


def calls_in_code() -> list[tuple[str, Kind]]:
    """`cluster.<verb>(<KIND>, …)` with a kind written out, anywhere in the operator."""
    found = []
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.args
                and "cluster" in ast.unparse(node.func.value)
            ):
                kind = getattr(kinds, ast.unparse(node.args[0]).removeprefix("kinds."), None)
                if isinstance(kind, Kind):
                    found.append((VERBS.get(node.func.attr, node.func.attr), kind))
    assert len(found) > 8
    return found


def test_no_right_is_a_wildcard() -> None:
    roles = [m for m in rendered() if m["kind"] in ("Role", "ClusterRole")]
    assert "*" not in {
        word for role in roles for rule in role["rules"] for key in ("apiGroups", "resources", "verbs") for word in rule[key]
    }


def container(*arguments: str) -> Manifest:
    deployment = one(rendered(*arguments), "Deployment", "ops", "system")
    return dict(deployment["spec"]["template"]["spec"]["containers"][0])


def test_the_operator_reads_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "profiles.yaml"
    file.write_text(one(rendered(), "ConfigMap", "ops-profiles", "system")["data"]["profiles.yaml"])
    fields = {"metadata.namespace": "system", "metadata.name": "ops-1"}
    environment = {
        e["name"]: e.get("value") or fields[e["valueFrom"]["fieldRef"]["fieldPath"]] for e in container()["env"] if e.get("value") != ""
    }
    settings = from_environment({**environment, "FINETUNE_PROFILES_FILE": str(file)})
    assert (settings.trainer_image, settings.router_image) == ("example.com/trainer:1", "envoyproxy/envoy:v1.40.0")
    assert (settings.lease_namespace, settings.lease_name, settings.identity, settings.namespaces) == ("system", "ops", "ops-1", ())
    assert "nginx.ingress.kubernetes.io/proxy-read-timeout" in settings.ingress_annotations
    assert sorted(settings.profiles) == ["a100-40", "a100-80", "b200", "h100", "h100-mig-3g.40gb", "h200", "l40s"]
    mounted = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert str(Path(environment["FINETUNE_PROFILES_FILE"]).parent) in mounted


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FINETUNE_PROMETHEUS_URL", "prometheus:9090", "must be like http://prometheus.monitoring.svc:9090"),
        ("FINETUNE_PROMETHEUS_URL", "ftp://prometheus", "must be like http"),
        ("FINETUNE_PROMETHEUS_URL", "http://user:secret@prometheus", "without user, password or query"),
        ("FINETUNE_PROMETHEUS_URL", "http://prometheus?a=b", "without user, password or query"),
        ("FINETUNE_PROMETHEUS_URL", "http://:9090", "must be like http"),
    ],
)
def test_a_setting_that_is_wrong_is_named_and_not_told(variable: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        from_environment({"FINETUNE_TRAINER_IMAGE": "t:1", "FINETUNE_ROUTER_IMAGE": "r:1", variable: value})
    assert variable in str(caught.value)
    assert "secret" not in str(caught.value)


def test_prometheus_and_what_opens_it_reach_the_operator() -> None:
    assert {e["name"]: e.get("value") for e in container()["env"]}["FINETUNE_PROMETHEUS_URL"] == ""
    given = ("--set", "prometheus.url=https://thanos.example/api/,prometheus.authorizationSecret=thanos")
    variables = {e["name"]: e for e in container(*given)["env"]}
    reference = variables["FINETUNE_PROMETHEUS_AUTHORIZATION"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "thanos", "key": "authorization"}
    environment = {
        "FINETUNE_TRAINER_IMAGE": "t:1", "FINETUNE_ROUTER_IMAGE": "r:1", "FINETUNE_PROMETHEUS_AUTHORIZATION": "Bearer secret\n",
        "FINETUNE_PROMETHEUS_URL": variables["FINETUNE_PROMETHEUS_URL"]["value"],
    }  # fmt: skip
    settings = from_environment(environment)
    assert (settings.prometheus_url, settings.prometheus_authorization) == ("https://thanos.example/api", "Bearer secret")
    assert "secret" not in repr(settings)


def test_every_variable_is_one_that_the_operator_reads() -> None:
    read = set(re.findall(r"\"(FINETUNE_[A-Z_]+)\"", (SOURCES / "settings.py").read_text()))
    assert {e["name"] for e in container()["env"]} <= read


def test_profiles_name_labels_that_nodes_can_have() -> None:
    profiles = accelerators(yaml.safe_load((CHART / "values.yaml").read_text())["profiles"])
    values = [value for profile in profiles.values() for listed in profile.node_labels.values() for value in listed]
    assert [v for v in values if not re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,61}[A-Za-z0-9]", v)] == []
    assert len(values) == len(set(values)), "a node belongs to one profile"


def test_every_profile_says_what_an_estimate_is_held_against() -> None:
    profiles = accelerators(yaml.safe_load((CHART / "values.yaml").read_text())["profiles"])
    gib = {name: (profile.memory_bytes or 0) / 2**30 for name, profile in profiles.items()}
    assert gib == {
        "b200": 178, "h200": 140, "h100": 79, "a100-80": 79, "a100-40": 39, "l40s": 44, "h100-mig-3g.40gb": 39,
    }  # fmt: skip


def test_every_key_of_a_profile_is_in_the_schema_and_reaches_the_operator() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]["profiles"]["additionalProperties"]["properties"]
    assert set(schema) == set(FULL)
    file = one(rendered("--set-json", f"profiles={json.dumps({'h100': FULL})}"), "ConfigMap", "ops-profiles", "system")
    read = accelerators(yaml.safe_load(file["data"]["profiles.yaml"]))
    assert read["h100"] == Accelerator(
        "h100", "nvidia.com/gpu", {"nvidia.com/gpu.product": ("NVIDIA-H100-80GB-HBM3",)}, {"NCCL_IB_HCA": "mlx5"}, 79 * 2**30,
        ({"key": "gpu", "operator": "Exists"},), 2.5, {"rdma/ib": "1"}, "16Gi", "training", 4,
    )  # fmt: skip


FULL: Manifest = {
    "resource": "nvidia.com/gpu",
    "nodeLabels": {"nvidia.com/gpu.product": ["NVIDIA-H100-80GB-HBM3"]},
    "env": {"NCCL_IB_HCA": "mlx5"},
    "memory": "79Gi",
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "hourlyPrice": "2.5",
    "extraResources": {"rdma/ib": 1},
    "sharedMemory": "16Gi",
    "priorityClassName": "training",
    "perMachine": 4,
}


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"memory": "much"}, "profile x, memory: 'much' is not a quantity such as 79Gi"),
        ({"hourlyPrice": "cheap"}, "profile x, hourlyPrice: 'cheap' is not a price"),
        ({"hourlyPrice": -1}, "profile x, hourlyPrice: -1 is not a price"),
        ({"sharedMemory": "0Gi"}, "profile x, sharedMemory: '0Gi' is not a quantity such as 8Gi"),
        ({"tolerations": ["gpu"]}, "profile x, tolerations: ['gpu'] is not a list of tolerations"),
        ({"nodeLabels": {"a": "b"}}, "profile x, nodeLabels: {'a': 'b'} is not a mapping of labels to lists of values"),
        ({"extraResources": "rdma/ib"}, "profile x, extraResources: 'rdma/ib' is not a mapping"),
        ({"perMachine": 0}, "profile x, perMachine: 0 is not a number of accelerators"),
        ({"resource": None}, "profile x, resource: None is not a text"),
        ({"price": 1}, "profile x has unknown keys price"),
    ],
)
def test_what_is_wrong_with_a_profile_is_named_with_its_key(profile: Manifest, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        accelerators({"x": profile})


def test_the_pod_is_restricted() -> None:
    pod = one(rendered(), "Deployment", "ops", "system")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("case", "arguments", "present", "kind"),
    [
        ("two replicas have a disruption budget", ("--set", "replicas=2"), True, "PodDisruptionBudget"),
        ("one has none", (), False, "PodDisruptionBudget"),
        ("a ServiceMonitor where it is asked for", ("--set", "metrics.serviceMonitor.enabled=true"), True, "ServiceMonitor"),
        ("and else none", (), False, "ServiceMonitor"),
        ("the CRD comes with the chart", (), True, "CustomResourceDefinition"),
        ("unless it is switched off", ("--set", "crds.install=false"), False, "CustomResourceDefinition"),
    ],
)
def test_renders(case: str, arguments: tuple[str, ...], present: bool, kind: str) -> None:
    assert any(m["kind"] == kind for m in rendered(*arguments)) is present


def test_the_crd_outlives_the_release() -> None:
    crd = one(rendered(), "CustomResourceDefinition", "finetunes.finetune.dev")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((ROOT / "crds" / "finetune.dev_finetunes.yaml").read_text())


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("no trainer image", ("--set", "images.operator=a:1"), "images.trainer: build Dockerfile.trainer"),
        ("a misspelt value", (*IMAGES, "--set", "replica=2"), "'replica' not allowed"),
        ("a pattern of annotations that is none", (*IMAGES, "--set", "expose.ingressAnnotations={a*b}"), "a*b"),
        ("a log format that is none", (*IMAGES, "--set", "logFormat=xml"), "logFormat"),
        ("a Prometheus without a scheme", (*IMAGES, "--set", "prometheus.url=prometheus:9090"), "/prometheus/url"),
        ("a profile with a misspelt key", (*IMAGES, "--set", "profiles.x.resource=a/b,profiles.x.labels.a=b"), "'labels' not allowed"),
    ],
)
def test_refuses(case: str, arguments: tuple[str, ...], message: str) -> None:
    done = helm("template", "ops", str(CHART), *arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_lint_is_clean() -> None:
    done = helm("lint", "--strict", str(CHART), *IMAGES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
