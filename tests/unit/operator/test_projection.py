"""What is kept of an API server's objects, whichever way they come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from finetune_operator import kinds, names
from finetune_operator.kinds import CHILDREN, CONTROLLER_REVISION, EVENT, EXTRAS, FINETUNE, JOB, LEASE, POD, SECRET, STORAGE_CLASS, Kind
from finetune_operator.projection import projected, read, read_event, read_page

OWNER = {"uid": "o", "kind": "FineTune", "controller": True}
META: dict[str, Any] = {
    "name": "bot", "namespace": "ml", "uid": "u", "resourceVersion": "5", "generation": 2, "creationTimestamp": "2026-01-01T00:00:00Z",
    "deletionTimestamp": "2026-01-02T00:00:00Z", "deletionGracePeriodSeconds": 30, "labels": {names.NAME: "bot", "their/own": "x"},
    "ownerReferences": [{**OWNER, "name": "bot", "blockOwnerDeletion": True}], "finalizers": ["finetune.dev/cleanup"],
}  # fmt: skip
READ = {names.RETRY: "1", names.JOB_INDEX: "0"}
CONDITION = {"type": "Ready", "status": "False", "reason": "R", "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z"}
ENDED = {"exitCode": 3, "reason": "Error", "message": "{}", "finishedAt": "2026-01-01T00:00:00Z"}
CONTAINER = {"name": "c", "image": "i:1", "restartCount": 1, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
STATUS = {"phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z"}
GIVEN: dict[str, Any] = {
    "metadata": {**META, "annotations": {**READ, "kubectl.kubernetes.io/last-applied-configuration": "{}"}, "managedFields": [{"a": 1}]},
    "spec": {"suspend": False, "completions": 2, "nodeName": "node", "template": {"spec": {"containers": []}}},
    "status": {
        **STATUS,
        "conditions": [{**CONDITION, "lastProbeTime": None}],
        "containerStatuses": [{**CONTAINER, "imageID": "sha256:1", "lastState": {"terminated": {**ENDED, "containerID": "c://1"}}}],
        "initContainerStatuses": None,
        "hostIP": "10.0.0.9",
    },
}
CACHED = (*CHILDREN, *EXTRAS, FINETUNE)
NEVER_APPLIED = (JOB, POD, CONTROLLER_REVISION)


def test_of_what_is_never_applied_again_no_more_is_kept_than_is_read() -> None:
    meta = {**META, "annotations": READ, "labels": {names.NAME: "bot"}, "ownerReferences": [OWNER]}
    status = {"startTime": STATUS["startTime"], "conditions": [CONDITION]}
    spec = {"suspend": False, "completions": 2}
    assert projected(JOB, GIVEN) == {"metadata": meta, "spec": spec, "status": status, "apiVersion": "batch/v1", "kind": "Job"}
    containers = [{**CONTAINER, "lastState": {"terminated": ENDED}}]
    status = {**STATUS, "conditions": [CONDITION], "containerStatuses": containers, "initContainerStatuses": None}
    assert projected(POD, GIVEN) == {"metadata": meta, "spec": {"nodeName": "node"}, "status": status, "apiVersion": "v1", "kind": "Pod"}
    given = {"metadata": GIVEN["metadata"], "data": {"revision": "r"}, "revision": 3}
    kept = {**given, "metadata": meta, "apiVersion": "apps/v1", "kind": "ControllerRevision"}
    assert projected(CONTROLLER_REVISION, given) == kept


@pytest.mark.parametrize("kind", [k for k in CACHED if k not in NEVER_APPLIED], ids=lambda kind: kind.kind)
def test_of_the_others_all_is_kept_but_what_the_api_server_notes_for_itself(kind: Kind) -> None:
    given = {**GIVEN, "data": {"a": {"b": [1, None, 2.5, True, "ä"]}}}
    kept = {**given, "metadata": {**META, "annotations": READ if kind is FINETUNE else GIVEN["metadata"]["annotations"]}}
    if kind is not FINETUNE and kind not in EXTRAS:  # how these are is asked of nobody, or of their pods
        del kept["status"]
    assert projected(kind, given) == {**kept, "apiVersion": kind.api_version, "kind": kind.kind}


@pytest.mark.parametrize("kind", [*CACHED, EVENT, LEASE, SECRET, STORAGE_CLASS], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("given", [GIVEN, {"metadata": {"name": "bare"}}], ids=["full", "bare"])
def test_it_is_the_same_whether_it_is_read_alone_listed_or_watched(kind: Kind, given: dict[str, Any]) -> None:
    wanted = projected(kind, given)
    assert read(kind, json.dumps(given).encode()) == wanted
    meta, items = read_page(kind, json.dumps({"metadata": {"resourceVersion": "9", "continue": "c"}, "items": [given, given]}).encode())
    assert (meta["resourceVersion"], meta["continue"], items) == ("9", "c", [wanted, wanted])
    assert read_event(kind, json.dumps({"type": "ADDED", "object": given}).encode()) == ("ADDED", wanted)


def test_what_nobody_caches_is_whole() -> None:
    given = {"metadata": {"name": "standard"}, "provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"}
    assert read(STORAGE_CLASS, json.dumps(given).encode()) == {**given, "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass"}


def test_an_empty_list_may_have_no_items() -> None:
    assert read_page(FINETUNE, b'{"metadata": {"resourceVersion": "9"}, "items": null}') == ({"resourceVersion": "9"}, [])


def test_what_is_given_is_left_as_it_is() -> None:
    given = json.loads(json.dumps(GIVEN))
    projected(JOB, given)
    projected(EVENT, given)
    assert given == GIVEN


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"metadata": ', b'{"metadata": 5}'])
@pytest.mark.parametrize("how", [read, read_page, read_event])
def test_what_is_none_is_an_error(how: Any, raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        how(kinds.POD, raw)
