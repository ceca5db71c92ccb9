"""The chart on a real API server: it installs and upgrades, its rights let the operator do its calls, uninstalling keeps FineTunes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kopf
import pytest
import yaml
from finetune_operator import errors, kinds, names, signing
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection
from finetune_operator.kinds import CHILDREN, Kind

from devcluster.controlplane import ControlPlane
from tests.integration.engine import credentials
from tests.unit.api.refusals import make_finetune

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(controllers=False, scheduler=False) as started:
        yield started


def helm(plane: ControlPlane, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "charts" / "helm.py"), "--kubeconfig", str(plane.kubeconfig), "-n", "finetune-system", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(plane: ControlPlane, *values: str) -> str:
    images = ("--set", "images.operator=example.com/operator:1", "--set", "images.trainer=example.com/trainer:1")
    return helm(plane, "upgrade", "--install", "finetune-operator", str(CHART), "--create-namespace", *images, *values)


def test_it_installs_upgrades_and_leaves_finetunes_when_it_goes(plane: ControlPlane) -> None:
    assert "kubectl explain finetune.spec" in install(plane)
    plane.kubectl("wait", "--for=condition=Established", "crd/finetunes.finetune.dev", "--timeout=30s")
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(make_finetune("kept")))

    install(plane, "--set", "replicas=2", "--set", "namespaces={default}")
    assert "2" in plane.kubectl("-n", "finetune-system", "get", "deploy", "finetune-operator", "-o", "jsonpath={.spec.replicas}")
    assert "finetune-operator" in plane.kubectl("-n", "default", "get", "role", "-o", "name")

    helm(plane, "uninstall", "finetune-operator")
    assert "finetune.finetune.dev/kept" in plane.kubectl("-n", "default", "get", "ft", "-o", "name")
    install(plane)  # and it comes back to the CRD that it left


@pytest.mark.parametrize("namespaces", [(), ("default",)], ids=["all namespaces", "one namespace"])
async def test_its_rights_are_enough(plane: ControlPlane, namespaces: tuple[str, ...]) -> None:
    """As its ServiceAccount: every list that fills the caches, its own Secret and Lease, a child made, changed and removed."""
    install(plane, "--set-json", f"namespaces={json.dumps(namespaces)}")
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(make_finetune("rights")))
    async with Connection(lambda: _as_operator(plane)) as connection:
        cluster = Cluster(connection)
        for kind in (kinds.FINETUNE, *CHILDREN):
            await cluster.list(kind, namespaces[0] if namespaces else None)
        await cluster.list(kinds.STORAGE_CLASS)
        assert await signing.key(cluster, "finetune-system") == await signing.key(cluster, "finetune-system")
        lease = {"metadata": {"name": "finetune-operator", "namespace": "finetune-system"}, "spec": {"holderIdentity": "a"}}
        made = await cluster.get(kinds.LEASE, "finetune-system", "finetune-operator") or await cluster.create(kinds.LEASE, lease)
        await cluster.replace(kinds.LEASE, {**made, "spec": {"holderIdentity": "b"}})
        (finetune,) = [f for f in await cluster.list(kinds.FINETUNE, "default") if f["metadata"]["name"] == "rights"]
        meta = {key: finetune["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
        await cluster.apply_status({"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": {"phase": "Pending"}})
        child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "child", "namespace": "default"}, "data": {"a": "1"}}
        made = await cluster.create(kinds.CONFIGMAP, child)
        await cluster.apply(kinds.CONFIGMAP, {**child, "data": {"a": "2"}}, resource_version=made["metadata"]["resourceVersion"])
        await cluster.delete(kinds.CONFIGMAP, "default", "child", uid=made["metadata"]["uid"])


@pytest.mark.parametrize(
    ("case", "kind", "namespace", "name"),
    [
        ("another Secret of its namespace", kinds.SECRET, "finetune-system", "other"),
        ("a user's Secret", kinds.SECRET, "default", "token"),
        ("another Lease", kinds.LEASE, "finetune-system", "other"),
    ],
)
async def test_what_it_has_no_right_to(plane: ControlPlane, case: str, kind: Kind, namespace: str, name: str) -> None:
    install(plane)
    async with Connection(lambda: _as_operator(plane)) as connection:
        with pytest.raises(errors.Forbidden):
            await Cluster(connection).get(kind, namespace, name)


def _as_operator(plane: ControlPlane) -> kopf.ConnectionInfo:
    """What logs in with a token of the operator's ServiceAccount instead of the administrator's certificate."""
    token = plane.kubectl("-n", "finetune-system", "create", "token", "finetune-operator").strip()
    document = yaml.safe_load(plane.kubeconfig.read_text())
    document["users"] = [{"name": user["name"], "user": {"token": token}} for user in document["users"]]
    return credentials(document)
