"""Children and Events: made once, changed only where they differ, told once."""

from __future__ import annotations

from typing import Any, cast

import pytest
from finetune_operator import errors, kinds, names
from finetune_operator.apply import Children, NameTaken, completed, contains
from finetune_operator.cache import Cache
from finetune_operator.cluster import Cluster
from finetune_operator.events import QUIET_SECONDS, Events

from tests.unit.operator.world import ApiServer, HandClock

# what is there, what is wanted → is it there?
CONTAINS: dict[str, tuple[Any, Any, bool]] = {
    "defaults and status of others do not count": ({"spec": {"a": 1, "b": 2}, "status": {}}, {"spec": {"a": 1}}, True),
    "another value": ({"a": 1}, {"a": 2}, False),
    "a key is missing": ({}, {"a": 1}, False),
    "an empty mapping is as good as none": ({}, {"a": {}}, True),
    "an empty list is as good as none": ({}, {"a": []}, True),
    "an empty text is as good as none": ({}, {"a": ""}, True),
    "false is not none": ({}, {"a": False}, False),
    "zero is not none": ({}, {"a": 0}, False),
    "a list with one more": ({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}]}, False),
    "a list in another order": ({"a": [1, 2]}, {"a": [2, 1]}, False),
    "items with defaults": ({"a": [{"x": 1, "protocol": "TCP"}]}, {"a": [{"x": 1}]}, True),
    "a quantity, written otherwise": ({"cpu": "1"}, {"cpu": "1000m"}, True),
    "another quantity": ({"cpu": "2"}, {"cpu": "1000m"}, False),
    "one label more of a node": ({"nodeSelector": {"a": "1", "b": "2"}}, {"nodeSelector": {"a": "1"}}, False),
    "no label of a node any more": ({"nodeSelector": {"a": "1"}}, {"nodeSelector": {}}, False),
    "the same labels of a node": ({"nodeSelector": {"a": "1"}}, {"nodeSelector": {"a": "1"}}, True),
    "no affinity": ({}, {"affinity": {}}, True),
    "a text instead of a mapping": ({"a": "x"}, {"a": {"b": 1}}, False),
}


@pytest.mark.parametrize("case", CONTAINS)
def test_contains(case: str) -> None:
    actual, wanted, expected = CONTAINS[case]
    assert contains(actual, wanted) is expected


# what is wanted, what is there → what is put in its place
COMPLETED: dict[str, tuple[Any, Any, Any]] = {
    "what others added stays": ({"a": {"x": 1}}, {"a": {"x": 2, "y": 3}, "b": 4}, {"a": {"x": 1, "y": 3}, "b": 4}),
    "an item goes, another keeps its defaults": (
        {"a": [{"name": "n", "x": 1}]}, {"a": [{"name": "m"}, {"name": "n", "x": 2, "y": 3}]}, {"a": [{"name": "n", "x": 1, "y": 3}]},
    ),
    "items without names are as wanted": ({"a": [{"port": 80}]}, {"a": [{"port": 80, "z": 1}, {"port": 443}]}, {"a": [{"port": 80}]}),
    "labels of a node are as wanted": ({"nodeSelector": {"a": "1"}}, {"nodeSelector": {"b": "2"}}, {"nodeSelector": {"a": "1"}}),
    "a copy goes with its original": (
        {"serviceAccountName": ""}, {"serviceAccountName": "s", "serviceAccount": "s"}, {"serviceAccountName": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPLETED)
def test_completed(case: str) -> None:
    wanted, actual, expected = COMPLETED[case]
    assert completed(wanted, actual) == expected


def owned_by(uid: str) -> list[dict[str, Any]]:
    return [{"uid": uid, "controller": True}]


def manifest(data: str = "1", owner: str = "uid-bot") -> dict[str, Any]:
    meta = {"name": "cm", "namespace": "ml", "labels": names.labels("bot", "router"), "ownerReferences": owned_by(owner)}
    return {"metadata": meta, "data": {"x": data}}


def world() -> tuple[ApiServer, Children]:
    api = ApiServer(HandClock())
    return api, Children(cast(Cluster, api), Cache(), ("ml", "bot"), "uid-bot")


async def test_a_child_is_made_once_and_changed_only_when_it_differs() -> None:
    api, children = world()
    for data in ("1", "1", "2", "2"):
        await children.ensure(kinds.CONFIGMAP, manifest(data))
    assert [verb for verb, _, _ in api.writes] == ["create", "apply"]


async def test_a_child_that_is_never_changed() -> None:
    api, children = world()
    for data in ("1", "2"):
        await children.make(kinds.CONFIGMAP, manifest(data))
    assert [verb for verb, _, _ in api.writes] == ["create"]


async def test_a_child_of_ours_that_the_cache_does_not_know_yet_is_taken_over() -> None:
    api, children = world()
    api.put(kinds.CONFIGMAP, manifest())
    await children.ensure(kinds.CONFIGMAP, manifest("2"))
    assert [verb for verb, _, _ in api.writes] == ["apply"]


def labelled(*owners: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {**manifest()["metadata"], "ownerReferences": [*owners]}, "data": {}}


@pytest.mark.parametrize(
    "theirs",
    [
        {"metadata": {"name": "cm", "namespace": "ml"}}, manifest(owner="another FineTune of that name"), labelled(),
        labelled({"uid": "uid-bot"}),
    ],
)  # fmt: skip
async def test_a_name_that_belongs_to_somebody_else_is_told_and_left_alone(theirs: dict[str, Any]) -> None:
    api, children = world()
    before = api.put(kinds.CONFIGMAP, theirs)
    with pytest.raises(NameTaken, match="ConfigMap cm exists already"):
        await children.ensure(kinds.CONFIGMAP, manifest())
    assert api.store[kinds.CONFIGMAP, "ml", "cm"] == before


async def test_a_change_over_something_newer_is_a_conflict() -> None:
    api, children = world()
    await children.ensure(kinds.CONFIGMAP, manifest())
    found = api.store[kinds.CONFIGMAP, "ml", "cm"]
    api.change(kinds.CONFIGMAP, found, {**found, "data": {"x": "theirs"}})
    with pytest.raises(errors.Conflict):
        await children.ensure(kinds.CONFIGMAP, manifest("2"))


async def test_a_child_is_deleted_once_and_only_itself() -> None:
    api, children = world()
    await children.ensure(kinds.CONFIGMAP, manifest())
    api.remove(kinds.CONFIGMAP, "ml", "cm")
    theirs = api.put(kinds.CONFIGMAP, manifest())
    await children.remove(kinds.CONFIGMAP, "cm")
    assert api.store == {(kinds.CONFIGMAP, "ml", "cm"): theirs}, "another object took the name meanwhile"


async def test_a_deletion_is_asked_for_once_though_the_watch_is_late() -> None:
    api, children = world()
    await children.ensure(kinds.CONFIGMAP, manifest())
    for _ in range(2):
        await children.remove(kinds.CONFIGMAP, "cm")
    assert [verb for verb, _, _ in api.writes] == ["create", "delete"]


async def test_what_is_deleted_in_the_foreground_is_seen_until_what_it_owns_is_gone() -> None:
    api, children = world()
    await children.ensure(kinds.CONFIGMAP, manifest())
    for _ in range(2):
        await children.remove(kinds.CONFIGMAP, "cm", foreground=True)
    (left,) = api.all(kinds.CONFIGMAP)
    assert "deletionTimestamp" in left["metadata"]
    assert [verb for verb, _, _ in api.writes] == ["create", "delete"]


async def test_an_annotation_reaches_the_cache_and_what_is_gone_needs_none() -> None:
    api, children = world()
    await children.ensure(kinds.CONFIGMAP, manifest())
    await children.annotate(kinds.CONFIGMAP, "cm", {"a": "b"})
    assert children.cache.children(kinds.CONFIGMAP, ("ml", "bot"))["cm"]["metadata"]["annotations"] == {"a": "b"}
    api.remove(kinds.CONFIGMAP, "ml", "cm")
    await children.annotate(kinds.CONFIGMAP, "cm", {"a": "c"})


def deployment(*annotations: str) -> dict[str, Any]:
    meta = {"name": "d", "namespace": "ml", "labels": names.labels("bot", "router"), "ownerReferences": owned_by("uid-bot")}
    template = {"metadata": {"annotations": dict.fromkeys(annotations, "x")}, "spec": {"containers": [{"name": "envoy"}]}}
    return {
        "metadata": {**meta, "annotations": {names.POD_ANNOTATIONS: ",".join(annotations)}}, "spec": {"replicas": 2, "template": template}
    }  # fmt: skip


async def test_annotations_that_the_user_takes_from_pods_go_and_those_of_others_stay() -> None:
    api, children = world()
    await children.ensure(kinds.DEPLOYMENT, deployment("a", "b"))
    found = api.store[kinds.DEPLOYMENT, "ml", "d"]
    theirs = {**found["spec"]["template"]["metadata"]["annotations"], "restartedAt": "now"}
    template = {**found["spec"]["template"], "metadata": {"annotations": theirs}}
    children.cache.put(kinds.DEPLOYMENT, api.change(kinds.DEPLOYMENT, found, {**found, "spec": {**found["spec"], "template": template}}))
    for wanted in (("a",), ("a",), ("a", "c"), (), ()):
        await children.ensure(kinds.DEPLOYMENT, deployment(*wanted))
        left = api.store[kinds.DEPLOYMENT, "ml", "d"]
        assert left["spec"]["template"]["metadata"]["annotations"] == {**dict.fromkeys(wanted, "x"), "restartedAt": "now"}
        assert left["spec"]["template"]["spec"]["containers"] == [{"name": "envoy"}]
    assert [verb for verb, _, _ in api.writes] == ["create", "apply", "replace", "apply", "replace"]


async def test_annotations_are_not_taken_from_pods_over_something_newer() -> None:
    api, children = world()
    await children.ensure(kinds.DEPLOYMENT, deployment("a"))
    found = api.store[kinds.DEPLOYMENT, "ml", "d"]
    api.change(kinds.DEPLOYMENT, found, {**found, "spec": {**found["spec"], "paused": True}})
    with pytest.raises(errors.Conflict):
        await children.ensure(kinds.DEPLOYMENT, deployment())


FINETUNE = {"metadata": {"name": "bot", "namespace": "ml", "uid": "u"}}


async def test_an_event_is_told_once_in_ten_minutes_and_another_one_at_once() -> None:
    clock = HandClock()
    api = ApiServer(clock)
    events = Events(cast(Cluster, api), clock, "me")
    for message in ("a", "a", "b"):
        await events.emit(FINETUNE, "Normal", "Reason", message)
    clock.seconds += QUIET_SECONDS
    await events.emit(FINETUNE, "Normal", "Reason", "a")
    assert [e["message"] for e in api.all(kinds.EVENT)] == ["a", "b", "a"]


async def test_an_api_server_that_takes_no_event_disturbs_nothing() -> None:
    class Down(ApiServer):
        async def create(self, *_: Any) -> Any:
            raise errors.Unavailable("down")

    clock = HandClock()
    await Events(cast(Cluster, Down(clock)), clock, "me").emit(FINETUNE, "Normal", "Reason", "a")
