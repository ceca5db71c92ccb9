"""The cache: nothing older replaces anything newer, and what is gone stays gone."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import names
from finetune_operator.cache import Cache
from finetune_operator.kinds import FINETUNE, JOB, POD, PVC, SERVICE, Kind

KEY = ("ml", "bot")
NOBODY: frozenset[str] = frozenset()


def job(version: int, uid: str = "u", name: str = "j", owner: str | None = "bot") -> dict[str, Any]:
    labels = {names.NAME: owner} if owner else {}
    return {
        "metadata": {"name": name, "namespace": "ml", "uid": uid, "resourceVersion": str(version), "labels": labels, "managedFields": [1]}
    }


def stored(cache: Cache) -> dict[str, tuple[str, str]]:
    return {n: (o["metadata"]["uid"], o["metadata"]["resourceVersion"]) for n, o in cache.children(JOB, KEY).items()}


def test_an_older_object_never_replaces_a_newer_one_of_its_name() -> None:
    cache = Cache()
    for version, uid in ((9, "u"), (10, "u"), (2, "u"), (5, "another that was there before")):
        assert cache.put(JOB, job(version, uid)) == KEY
    assert stored(cache) == {"j": ("u", "10")}
    cache.put(JOB, job(11, "its successor"))
    assert stored(cache) == {"j": ("its successor", "11")}


def test_strangers_are_left_out() -> None:
    cache = Cache()
    assert cache.put(JOB, job(1, owner=None)) is None
    assert cache.put(JOB, job(1)) == KEY


def test_a_late_answer_does_not_bring_a_deleted_object_back() -> None:
    cache = Cache()
    cache.put(JOB, job(1))
    assert cache.drop(JOB, job(3)) == KEY
    cache.put(JOB, job(2))
    assert cache.fill(JOB, [job(2)]) == set(), "nor does a page of a list that was begun before, and nothing is due for that"
    assert stored(cache) == {}


def test_the_deletion_of_a_predecessor_leaves_the_successor() -> None:
    cache = Cache()
    cache.put(JOB, job(5, "new"))
    cache.drop(JOB, job(4, "old"))
    assert stored(cache) == {"j": ("new", "5")}


def test_a_list_tells_what_was_missed_changed_and_gone_and_nothing_else() -> None:
    cache = Cache()
    for name, uid in (("same", "a"), ("changed", "b"), ("gone", "c")):
        cache.put(JOB, job(1, uid, name))
    known = cache.uids(JOB)
    cache.put(JOB, job(9, "d", "made after the list began"))
    assert cache.fill(JOB, [job(1, "a", "same")]) == set()
    assert cache.fill(JOB, [job(1, "a", "same"), job(2, "b", "changed")]) == {KEY}
    assert cache.missing(JOB, {"a", "b", "c"}, known) == []
    assert [o["metadata"]["name"] for o in cache.missing(JOB, {"a", "b"}, known)] == ["gone"]
    assert cache.fill(JOB, [job(10, "e", "missed")]) == {KEY}


def test_a_namespace_that_is_listed_says_nothing_of_another() -> None:
    cache = Cache()
    cache.put(JOB, job(1))
    assert (cache.uids(JOB, "ml"), cache.uids(JOB, "other")) == (frozenset({"u"}), NOBODY)


def test_owners_are_found_and_forgotten() -> None:
    cache = Cache()
    owner = {"metadata": {"name": "bot", "namespace": "ml", "uid": "o", "resourceVersion": "1"}}
    cache.put(FINETUNE, owner)
    assert (cache.owners(), cache.owner(KEY) is not None) == ([KEY], True)
    cache.drop(FINETUNE, owner)
    assert (cache.owners(), cache.owner(KEY)) == ([], None)


OWNED: dict[str, tuple[Kind, list[dict[str, Any]], bool]] = {
    "made for it": (JOB, [{"kind": names.KIND, "uid": "new", "controller": True}], True),
    "made for an earlier one of its name": (JOB, [{"kind": names.KIND, "uid": "old", "controller": True}], False),
    "labelled by anybody": (JOB, [], False),
    "of somebody who lets it go with the FineTune": (JOB, [{"kind": names.KIND, "uid": "new"}], False),
    "of somebody else": (JOB, [{"kind": "CronJob", "uid": "x", "controller": True}], False),
    "a pod of a Job": (POD, [{"kind": "Job", "uid": "j", "controller": True}], True),
    "a volume that was retained": (PVC, [], True),
    "a volume that goes with an earlier one": (PVC, [{"kind": names.KIND, "uid": "old", "controller": True}], False),
}


@pytest.mark.parametrize("case", OWNED)
def test_whose_a_child_is_its_owner_says_and_not_its_labels(case: str) -> None:
    kind, owners, ours = OWNED[case]
    cache, child = Cache(), job(1)
    cache.put(FINETUNE, {"metadata": {"name": "bot", "namespace": "ml", "uid": "new", "resourceVersion": "9"}})
    child["metadata"]["ownerReferences"] = owners
    cache.put(kind, child)
    assert (len(cache.children(kind, KEY)), cache.uids(kind)) == (int(ours), {"u"}), "all are known, so that they can be forgotten"


def test_metadata_alone_tell_what_is_gone_and_what_is_behind() -> None:
    cache = Cache()
    for name, uid in (("same", "a"), ("changed", "b"), ("gone", "c")):
        cache.put(JOB, job(1, uid, name))
    listed = [job(1, "a", "same"), job(2, "b", "changed"), job(1, "d", "missed"), job(1, "e", "nobody's", owner=None)]
    assert [o["metadata"]["name"] for o in cache.missing(JOB, {o["metadata"]["uid"] for o in listed}, cache.uids(JOB))] == ["gone"]
    assert [o["metadata"]["name"] for o in cache.behind(JOB, listed)] == ["changed", "missed"]


def test_what_is_told_is_news_once() -> None:
    cache = Cache()
    assert [cache.tell(JOB, job(v)) for v in (3, 3, 2, 4)] == [KEY, None, None, KEY]
    cache.drop(JOB, job(5))
    assert cache.tell(JOB, job(6)) is None


def test_a_finetune_whose_child_was_deleted_is_to_be_asked_for_once() -> None:
    cache, key = Cache(), ("ml", "bot")
    owner = {"metadata": {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}}
    labels = {"finetune.dev/name": "bot"}
    service, pod = ({"metadata": {"name": n, "namespace": "ml", "uid": n, "resourceVersion": "6", "labels": labels}} for n in ("s", "p"))
    cache.put(FINETUNE, owner)
    for kind, child, bereft in ((POD, pod, False), (SERVICE, service, True)):
        cache.put(kind, child)
        cache.event(kind, "DELETED", child)
        assert cache.bereft(key) is bereft
    cache.confirm(key, {"metadata": {**owner["metadata"], "resourceVersion": "7"}})
    assert not cache.bereft(key)
    assert (cache.owner(key) or {})["metadata"]["resourceVersion"] == "7"


@pytest.mark.parametrize("found", [None, "another"])
def test_a_finetune_that_is_not_found_any_more_is_forgotten(found: str | None) -> None:
    cache, key = Cache(), ("ml", "bot")
    meta = {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}
    cache.put(FINETUNE, {"metadata": meta})
    cache.confirm(key, {"metadata": {**meta, "uid": found, "resourceVersion": "9"}} if found else None)
    owner = cache.owner(key)
    assert (owner["metadata"]["uid"] if owner else None) == found
    cache.put(FINETUNE, {"metadata": meta})
    assert (cache.owner(key) or {"metadata": {"uid": None}})["metadata"]["uid"] == found, "it does not come back"
