"""What the cache keeps of an object: small, and the same again when it is read."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from finetune_operator import names
from finetune_operator.cache import Cache
from finetune_operator.kinds import CONFIGMAP, DEPLOYMENT, JOB, SERVICE
from finetune_operator.packed import AT_HAND, LARGE, Packer, Unpacked

KEY = ("ml", "bot")


def child(name: str, **content: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "ml", "uid": f"uid-{name}", "resourceVersion": "7", "labels": {names.NAME: "bot"}}
    return {"metadata": meta, **content}


def text(seed: int, length: int = 3 * LARGE) -> str:
    """No two parts of it are alike."""
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))


CONTENT: dict[str, dict[str, Any]] = {
    "small": {"spec": {"replicas": 2, "share": 0.5, "on": True, "none": None, "list": [1, -1, 2**63 - 1, "ä", {}]}},
    "the first large one": {"data": {"document": text(1)}},
    "one that is much like it": {"data": {"document": text(1)[:-9] + "another"}},
    "one that is not at all": {"data": {"document": text(2)}},
    "one larger than what deflate looks back": {"data": {"document": text(1) + text(3, 64 * 1024)}},
}


def test_what_is_read_is_what_was_put() -> None:
    cache = Cache()
    for name, content in CONTENT.items():
        cache.put(CONFIGMAP, child(name, **content))
    assert dict(cache.children(CONFIGMAP, KEY)) == {name: child(name, **content) for name, content in CONTENT.items()}


def test_of_a_large_one_that_is_like_the_first_of_its_kind_next_to_nothing_is_kept() -> None:
    packer, large = Packer(), {"spec": {"document": text(1)}}
    sizes = {kind: [len(packer.pack(kind, child(name, **large)).data) for name in "ab"] for kind in (CONFIGMAP, DEPLOYMENT)}
    assert max(size for kept in sizes.values() for size in kept) < LARGE / 20
    assert len(packer.pack(SERVICE, child("s", spec={"a": text(1)[:500]})).data) > 500, "of a small one all: it is read more often"


def test_what_is_put_is_left_as_it_is_and_may_change() -> None:
    cache, given = Cache(), child("j", status={"conditions": []})
    cache.put(JOB, given)
    given["status"]["conditions"].append(1)
    assert cache.children(JOB, KEY)["j"]["status"] == {"conditions": []}


def test_what_was_read_last_is_at_hand() -> None:
    """A cycle reads the same objects several times."""
    packer, unpacked = Packer(), list[str]()
    packed = {name: packer.pack(JOB, child(name)) for name in map(str, range(AT_HAND + 1))}
    children = Unpacked(packed, packer.unpack)
    assert children["0"] is children["0"]
    first = children["0"]
    for name in children:
        unpacked.append(children[name]["metadata"]["name"])
    assert unpacked == list(packed)
    assert children["0"] is not first, "not for ever"


def test_nothing_is_unpacked_to_know_what_is_there() -> None:
    def never(_: object) -> dict[str, Any]:
        raise AssertionError("unpacked")

    children = Unpacked({"a": Packer().pack(JOB, child("a"))}, never)
    assert ("a" in children, "b" in children, len(children), list(children), bool(Unpacked({}, never))) == (True, False, 1, ["a"], False)
    with pytest.raises(AssertionError, match="unpacked"):
        children["a"]


def test_what_is_kept_is_smaller_than_the_objects_text() -> None:
    given = child("j", status={"conditions": [{"type": "FailureTarget", "status": "True"}] * 5})
    assert len(Packer().pack(JOB, given).data) < len(json.dumps(given))
