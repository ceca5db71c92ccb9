"""The CRD on a real API server: accepted without complaint, defaults land, every rule refuses with its message."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import yaml
from finetune_operator.api import crd

from devcluster.controlplane import ControlPlane
from devcluster.shell import CommandError
from tests.unit.api.refusals import REFUSED, Manifest, changed, full_finetune, make_finetune

CRD = "crds/finetune.dev_finetunes.yaml"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(controllers=False, scheduler=False) as started:
        started.kubectl("apply", "-f", str(crd.ROOT / CRD))
        started.kubectl("wait", "--for=condition=Established", "crd/finetunes.finetune.dev", "--timeout=30s")
        yield started


def apply(plane: ControlPlane, manifest: Manifest) -> dict[str, Any]:
    return dict(json.loads(plane.kubectl("apply", "-f", "-", "-o", "json", stdin=json.dumps(manifest))))


def refused(plane: ControlPlane, manifest: Manifest, *arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        plane.kubectl("apply", *arguments, "-f", "-", stdin=json.dumps(manifest))
    return str(caught.value)


def test_the_schema_is_structural(plane: ControlPlane) -> None:
    conditions = json.loads(plane.kubectl("get", "crd", "finetunes.finetune.dev", "-o", "json"))["status"]["conditions"]
    assert {c["type"]: c["status"] for c in conditions} == {"NamesAccepted": "True", "Established": "True"}


def test_designs_example_applies(plane: ControlPlane) -> None:
    written = full_finetune()
    kept = apply(plane, written)["spec"]
    assert kept["compute"]["cpu"] == 8  # a quantity may be a number
    assert {key: kept[key] for key in ("model", "data", "method", "training", "pods")} == {
        key: written["spec"][key] for key in ("model", "data", "method", "training", "pods")
    }


def test_defaults_land(plane: ControlPlane) -> None:
    scaling = {"maxReplicas": 2, "metric": {"name": "m", "averageValue": "4"}}
    kept = apply(plane, make_finetune("smallest", serving={"autoscaling": scaling}))["spec"]
    assert kept == {
        **make_finetune()["spec"],
        "compute": {"nodes": 1, "sharding": "Auto", "offload": "Auto"},
        "storage": {"size": "50Gi", "accessMode": "ReadWriteOnce", "retain": True},
        "retries": {"error": 2, "outOfMemory": 2, "infrastructure": 10},
        "deadlines": {"start": "2h", "fetch": "24h", "prepare": "24h", "scoring": "6h"},
        "retention": {"jobs": "24h", "checkpoints": 0, "revisions": 5},
        "serving": {"runtime": "Auto", "replicas": 1, "autoscaling": {**scaling, "minReplicas": 1, "autoscaler": "HPA"}},
        "rollout": {
            "guards": {
                "maxErrorRatePercent": 2,
                "maxLatencyRegressionPercent": 25,
                "minRequests": 200,
                "onInsufficient": "Extend",
                "maxExtension": "1h",
            },
            "bake": "1h",
            "progressDeadline": "20m",
        },
        "suspend": False,
    }


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(plane: ControlPlane, case: str) -> None:
    finetune, message = REFUSED[case]
    assert message.replace("[]", "") in refused(plane, finetune).replace("[]", "")


def test_a_misspelt_field_is_refused_by_name(plane: ControlPlane) -> None:
    misspelt = changed(make_finetune(), "spec.training", {"learningRat": "1"})
    assert 'unknown field "spec.training.learningRat"' in refused(plane, misspelt)
    assert ".spec.training.learningRat: field not declared in schema" in refused(plane, misspelt, "--server-side")


def _without_rules(schema: Any) -> Any:
    """The schema as it was before anybody thought of a rule or a pattern."""
    if isinstance(schema, list):
        return [_without_rules(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_one = isinstance(schema.get("type"), str) or "x-kubernetes-int-or-string" in schema  # and no list of properties
    dropped = ("x-kubernetes-validations", "pattern") if is_one else ()
    return {key: _without_rules(value) for key, value in schema.items() if key not in dropped}


def _is_refused(plane: ControlPlane, finetune: Manifest) -> bool:
    try:
        plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps({**finetune, "metadata": {"name": "tried"}}))
    except CommandError:
        return True
    return False


def test_what_was_stored_before_there_was_a_rule_can_still_be_told_about() -> None:
    """A rule that raises would have the API server refuse every status: it lets pass only what a rule had refused before."""
    definition = yaml.safe_load((crd.ROOT / CRD).read_text())
    lax = {**definition, "spec": _without_rules(definition["spec"])}
    documents = [{**finetune, "metadata": {"name": f"s{n}"}} for n, (finetune, _) in enumerate(REFUSED.values())]
    with ControlPlane(controllers=False, scheduler=False) as plane:
        apply(plane, lax)
        plane.kubectl("wait", "--for=condition=Established", "crd/finetunes.finetune.dev", "--timeout=30s")
        with suppress(CommandError):  # some are of another shape, which was never taken
            everything = {"apiVersion": "v1", "kind": "List", "items": documents}
            plane.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(everything))
        stored = plane.kubectl("get", "ft", "-o", "name").split()
        assert len(stored) > len(documents) / 2, "most have the shape of a FineTune"
        plane.kubectl("replace", "-f", str(crd.ROOT / CRD))
        while not _is_refused(plane, documents[-1]):
            time.sleep(0.2)  # until the rules are in force
        plane.kubectl("patch", *stored, "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"phase": "Failed"}}))


STORED = changed(make_finetune("stored"), "spec.storage", {"size": "10Gi", "storageClassName": "fast", "accessMode": "ReadWriteOnce"})


@pytest.mark.parametrize(
    ("case", "storage", "message"),
    [
        ("another class", {"storageClassName": "slow"}, "spec.storage.storageClassName: cannot change"),
        ("no class", {"storageClassName": None}, "spec.storage.storageClassName: cannot change"),
        ("another access mode", {"accessMode": "ReadWriteMany"}, "spec.storage.accessMode: cannot change"),
        ("a smaller size", {"size": "9Gi"}, "spec.storage.size: a volume can grow but never shrink"),
    ],
)
def test_an_edit_of_the_volume_is_refused(plane: ControlPlane, case: str, storage: dict[str, Any], message: str) -> None:
    apply(plane, STORED)
    patch = json.dumps({"spec": {"storage": storage}})
    with pytest.raises(CommandError, match=message):
        plane.kubectl("patch", "ft", "stored", "--type=merge", "-p", patch)


def test_a_volume_may_grow_and_what_is_live_may_change(plane: ControlPlane) -> None:
    apply(plane, STORED)
    grown = changed(changed(STORED, "spec.storage.size", "20Gi"), "spec.compute", {"nodes": 4})
    assert apply(plane, grown)["metadata"]["generation"] > 1


def test_the_columns_show_the_status(plane: ControlPlane) -> None:
    apply(plane, make_finetune("shown"))
    status = {
        "phase": "Training",
        "progress": "40/300",
        "eta": "7m",
        "score": "0.1 → 0.6",
        "weight": "10 %",
        "revision": "1f2e3d4c",
        "attempt": "2",
    }
    body = json.dumps({"status": {**status, "reason": "Training"}})
    plane.kubectl("patch", "ft", "shown", "--subresource=status", "--type=merge", "-p", body)
    narrow = plane.kubectl("get", "ft", "shown").splitlines()
    assert narrow[0].split() == ["NAME", "PHASE", "METHOD", "PROGRESS", "ETA", "SCORE", "WEIGHT", "AGE"]
    assert narrow[1].split()[:4] == ["shown", "Training", "LoRA", "40/300"]
    wide = plane.kubectl("get", "ft", "shown", "-o", "wide").splitlines()
    assert wide[0].split()[-3:] == ["REVISION", "ATTEMPT", "REASON"]
    assert "finetune.finetune.dev/shown" in plane.kubectl("get", "all", "-o", "name")


def test_explain_says_what_an_edit_does(plane: ControlPlane) -> None:
    told = " ".join(plane.kubectl("explain", "finetune.spec.training.learningRate").split())
    assert "Retrain: an edit makes a new revision, which is trained and rolled out." in told
