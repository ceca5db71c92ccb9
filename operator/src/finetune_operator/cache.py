"""Last seen objects by owner. Filled by lists before watching, then by events; own writes are put in at once.

Invariant: an object is never replaced by an older one of its name (resourceVersions are ordered), and what is gone stays gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from finetune_operator import names
from finetune_operator.kinds import FINETUNE, Kind

GRAVES = 10_000  # uids of deleted objects that are remembered
Key = tuple[str, str]  # namespace, name of the FineTune
Object = Mapping[str, Any]


class Cache:
    """FineTunes by key, and their children by kind, key and name."""

    def __init__(self) -> None:
        self._owners: dict[Key, Object] = {}
        self._children: dict[Kind, dict[Key, dict[str, Object]]] = {}
        self._gone: dict[str, None] = {}

    def owner(self, key: Key) -> Object | None:
        """The FineTune, or None when it is gone."""
        return self._owners.get(key)

    def owners(self) -> list[Key]:
        """Keys of all FineTunes."""
        return list(self._owners)

    def children(self, kind: Kind, key: Key) -> Mapping[str, Object]:
        """The FineTune's children of that kind, by name; not those of an earlier one of its name, which are on their way out."""
        named, owner = self._children.get(kind, {}).get(key, {}), self._owners.get(key)
        if owner is None or kind is FINETUNE:
            return named
        uid = owner["metadata"]["uid"]
        return {name: obj for name, obj in named.items() if _belongs(obj, uid)}

    def put(self, kind: Kind, obj: Object) -> Key | None:
        """Store what was just read or written, unless something newer is there; returns the owner's key."""
        key = owner_key(kind, obj)
        if key is None:
            return None
        store = self._store(kind, key)
        name = obj["metadata"]["name"] if kind is not FINETUNE else ""
        known = store.get(name)
        if obj["metadata"]["uid"] not in self._gone and (known is None or _version(obj) >= _version(known)):
            self._set(kind, key, stripped(kind, obj))
        return key

    def drop(self, kind: Kind, obj: Object) -> Key | None:
        """Forget a deleted object, unless another one has taken its name since."""
        key = owner_key(kind, obj)
        if key is None:
            return None
        self._bury(obj["metadata"]["uid"])
        name = obj["metadata"]["name"] if kind is not FINETUNE else ""
        known = self._store(kind, key).get(name)
        if known is not None and known["metadata"]["uid"] == obj["metadata"]["uid"]:
            if kind is FINETUNE:
                del self._owners[key]
            else:
                del self._children[kind][key][name]
        return key

    def uids(self, kind: Kind, namespace: str | None = None) -> frozenset[str]:
        """What is stored now (of one namespace, or of all): taken before a list begins, for `fill`."""
        metas = (o["metadata"] for o in self._all(kind))
        return frozenset(m["uid"] for m in metas if namespace in (None, m["namespace"]))

    def fill(self, kind: Kind, objects: Iterable[Object], known: frozenset[str]) -> set[Key]:
        """Make the cache agree with a complete list; returns the owners of what was missing, changed or gone.

        Of what the list lacks only the `known` is dropped: what was made after the list began is not gone.
        """
        listed = list(objects)
        touched: set[Key] = set()
        gone = known - {o["metadata"]["uid"] for o in listed}
        before = {o["metadata"]["uid"]: o for o in self._all(kind)}
        for uid in gone & before.keys():
            if (key := self.drop(kind, before[uid])) is not None:
                touched.add(key)
        for obj in listed:
            old = before.get(obj["metadata"]["uid"])
            if (old is None or _version(old) < _version(obj)) and (key := self.put(kind, obj)) is not None:
                touched.add(key)
        return touched

    def _bury(self, uid: str) -> None:
        """A write's answer may come after the event of its object's deletion: it must not bring the object back."""
        self._gone[uid] = None
        while len(self._gone) > GRAVES:
            del self._gone[next(iter(self._gone))]

    def _all(self, kind: Kind) -> list[Object]:
        if kind is FINETUNE:
            return list(self._owners.values())
        return [o for named in self._children.get(kind, {}).values() for o in named.values()]

    def _store(self, kind: Kind, key: Key) -> Mapping[str, Object]:
        if kind is FINETUNE:
            return {"": self._owners[key]} if key in self._owners else {}
        return self._children.get(kind, {}).get(key, {})

    def _set(self, kind: Kind, key: Key, obj: Object) -> None:
        if kind is FINETUNE:
            self._owners[key] = obj
        else:
            self._children.setdefault(kind, {}).setdefault(key, {})[obj["metadata"]["name"]] = obj


def owner_key(kind: Kind, obj: Object) -> Key | None:
    """Whose the object is: its own key, or that of the FineTune its label names."""
    meta = obj["metadata"]
    if kind is FINETUNE:
        return (meta["namespace"], meta["name"])
    name = (meta.get("labels") or {}).get(names.NAME)
    return (meta["namespace"], name) if name else None


def _belongs(obj: Object, uid: str) -> bool:
    """Is it owned by this FineTune, or by none (pods belong to Jobs and Deployments, a retained volume to nobody)?"""
    owners = obj["metadata"].get("ownerReferences") or ()
    return all(o.get("uid") == uid for o in owners if o.get("kind") == names.KIND)


def stripped(kind: Kind, obj: Object) -> Object:
    """A copy with apiVersion and kind (a LIST leaves them out) and without managedFields."""
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {**obj, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}


def _version(obj: Object) -> int:
    return int(obj["metadata"].get("resourceVersion") or 0)
