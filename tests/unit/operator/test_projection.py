"""What is kept of an API server's objects, whichever way they come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from finetune_operator import kinds, names
from finetune_operator.kinds import CHILDREN, EVENT, EXTRAS, FINETUNE, JOB, LEASE, POD, SECRET, STORAGE_CLASS, Kind
from finetune_operator.projection import projected, read, read_event, read_page

META: dict[str, Any] = {
    "name": "bot", "namespace": "ml", "uid": "u", "resourceVersion": "5", "generation": 2, "creationTimestamp": "2026-01-01T00:00:00Z",
    "deletionTimestamp": "2026-01-02T00:00:00Z", "deletionGracePeriodSeconds": 30, "labels": {names.NAME: "bot", "their/own": "x"},
    "ownerReferences": [{"uid": "o", "kind": "FineTune", "controller": True}], "finalizers": ["finetune.dev/cleanup"],
}  # fmt: skip
READ = {names.RETRY: "1", names.JOB_INDEX: "0"}
GIVEN: dict[str, Any] = {
    "metadata": {**META, "annotations": {**READ, "kubectl.kubernetes.io/last-applied-configuration": "{}"}, "managedFields": [{"a": 1}]},
    "spec": {"suspend": False, "completions": 2, "nodeName": "node", "template": {"spec": {"containers": []}}},
    "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready"}], "hostIP": "10.0.0.9"},
}
CACHED = (*CHILDREN, *EXTRAS, FINETUNE)


def test_of_jobs_and_pods_no_more_is_kept_than_is_read() -> None:
    meta = {**META, "annotations": READ}
    named = {"apiVersion": "batch/v1", "kind": "Job"}
    assert projected(JOB, GIVEN) == {"metadata": meta, "spec": {"suspend": False, "completions": 2}, "status": GIVEN["status"], **named}
    status = {k: v for k, v in GIVEN["status"].items() if k != "hostIP"}
    assert projected(POD, GIVEN) == {"metadata": meta, "spec": {"nodeName": "node"}, "status": status, "apiVersion": "v1", "kind": "Pod"}


@pytest.mark.parametrize("kind", [k for k in CACHED if k not in (JOB, POD)], ids=lambda kind: kind.kind)
def test_of_the_others_all_is_kept_but_what_the_api_server_notes_for_itself(kind: Kind) -> None:
    given = {**GIVEN, "data": {"a": {"b": [1, None, 2.5, True, "ä"]}}}
    kept = projected(kind, given)
    annotations = READ if kind is FINETUNE else GIVEN["metadata"]["annotations"]
    assert kept == {**given, "metadata": {**META, "annotations": annotations}, "apiVersion": kind.api_version, "kind": kind.kind}


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
