"""Last seen objects by owner, as `projection` reads them. Filled by lists before watching, then by events; own writes are put in at once.

Invariant: an object is never replaced by an older one of its name (resourceVersions are ordered), and what is gone stays gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Final

from finetune_operator import names
from finetune_operator.kinds import FINETUNE, POD, PVC, Kind

GRAVES = 10_000  # uids of deleted objects that are remembered
SHARED: Final = 40  # characters of a string that other objects are likely to have, too
Key = tuple[str, str]  # namespace, name of the FineTune
Object = Mapping[str, Any]


class Cache:
    """FineTunes by key, and their children by kind, key and name."""

    def __init__(self) -> None:
        self._owners: dict[Key, Object] = {}
        self._children: dict[Kind, dict[Key, dict[str, Object]]] = {}
        self._gone: dict[str, None] = {}
        self._bereft: set[Key] = set()

    def owner(self, key: Key) -> Object | None:
        """The FineTune, or None when it is gone."""
        return self._owners.get(key)

    def owners(self) -> list[Key]:
        """Keys of all FineTunes."""
        return list(self._owners)

    def children(self, kind: Kind, key: Key) -> Mapping[str, Object]:
        """The FineTune's children of that kind, by name; not what has its labels alone, as those of an earlier one of its name have."""
        named, owner = self._children.get(kind, {}).get(key, {}), self._owners.get(key)
        if not named or owner is None or kind is FINETUNE:
            return named
        uid = owner["metadata"]["uid"]
        return {name: obj for name, obj in named.items() if belongs(kind, obj, uid)}

    def put(self, kind: Kind, obj: Object) -> Key | None:
        """Store what was just read or written, unless something newer is there; returns the owner's key."""
        return self._put(kind, obj, _shared)

    def tell(self, kind: Kind, obj: Object) -> Key | None:
        """Store what a watch told; returns the owner's key if that was news, and not an echo of what was written or listed."""
        if obj["metadata"]["uid"] in self._gone or not self._is_news(kind, obj):
            return None
        return self.put(kind, obj)

    def event(self, kind: Kind, type_: str, obj: Object) -> Key | None:
        """Take in what a watch told, of that type; returns the owner's key if that was news."""
        return self.drop(kind, obj) if type_ == "DELETED" else self.tell(kind, obj)

    def drop(self, kind: Kind, obj: Object) -> Key | None:
        """Forget a deleted object, unless another one has taken its name since."""
        key = owner_key(kind, obj)
        if key is None:
            return None
        self._bury(obj["metadata"]["uid"])
        known = self._known(kind, key, obj)
        if known is not None and known["metadata"]["uid"] == obj["metadata"]["uid"]:
            if kind is FINETUNE:
                del self._owners[key]
                self._bereft.discard(key)
            else:
                self._forget(kind, key, obj["metadata"]["name"])
                if kind is not POD and key in self._owners:
                    self._bereft.add(key)
        return key

    def bereft(self, key: Key) -> bool:
        """Was a child of the FineTune deleted since it was last known to be there? Its own deletion may be told later than theirs."""
        return key in self._bereft

    def confirm(self, key: Key, obj: Object | None) -> None:
        """Take in that the FineTune was just found like this, or not found."""
        known = self._owners.get(key)
        if known is not None and (obj is None or obj["metadata"]["uid"] != known["metadata"]["uid"]):
            self.drop(FINETUNE, known)
        if obj is not None:
            self.put(FINETUNE, obj)
        self._bereft.discard(key)

    def uids(self, kind: Kind, namespace: str | None = None) -> frozenset[str]:
        """What is stored now (of one namespace, or of all): taken before a list begins, for `missing`."""
        metas = (o["metadata"] for o in self._all(kind))
        return frozenset(m["uid"] for m in metas if namespace in (None, m["namespace"]))

    def fill(self, kind: Kind, objects: Iterable[Object]) -> set[Key]:
        """Store what was listed (a page's objects share their keys already); returns the owners of what was missing or changed."""
        told = [self._put(kind, obj, _as_it_is) for obj in self.behind(kind, objects)]
        return {key for key in told if key is not None}

    def missing(self, kind: Kind, listed: Set[str], known: frozenset[str]) -> list[Object]:
        """What a complete list lacks, by uid, of what was `known` when it began: what was made since is not missing."""
        gone = known - listed
        return [obj for obj in self._all(kind) if obj["metadata"]["uid"] in gone]

    def behind(self, kind: Kind, objects: Iterable[Object]) -> list[Object]:
        """Those of a list (their metadata are enough) of which nothing, or an older state, is stored."""
        return [obj for obj in objects if self._is_news(kind, obj)]

    def _put(self, kind: Kind, obj: Object, made: Callable[[Object], Object]) -> Key | None:
        key = owner_key(kind, obj)
        if key is None:
            return None
        known = self._known(kind, key, obj)
        if obj["metadata"]["uid"] not in self._gone and (known is None or _version(obj) >= _version(known)):
            self._set(kind, key, made(obj))
        return key

    def _is_news(self, kind: Kind, obj: Object) -> bool:
        """Is it of a FineTune, and newer than what is stored under its name?"""
        key = owner_key(kind, obj)
        if key is None:
            return False
        known = self._known(kind, key, obj)
        return known is None or _version(obj) > _version(known)

    def _forget(self, kind: Kind, key: Key, name: str) -> None:
        named = self._children[kind][key]
        del named[name]
        if not named:
            del self._children[kind][key]

    def _bury(self, uid: str) -> None:
        """A write's answer may come after the event of its object's deletion: it must not bring the object back."""
        self._gone[uid] = None
        while len(self._gone) > GRAVES:
            del self._gone[next(iter(self._gone))]

    def _all(self, kind: Kind) -> list[Object]:
        if kind is FINETUNE:
            return list(self._owners.values())
        return [o for named in self._children.get(kind, {}).values() for o in named.values()]

    def _known(self, kind: Kind, key: Key, obj: Object) -> Object | None:
        """What is stored under the object's name."""
        return self._owners.get(key) if kind is FINETUNE else self._children.get(kind, {}).get(key, {}).get(obj["metadata"]["name"])

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


def belongs(kind: Kind, obj: Object, uid: str) -> bool:
    """Is it this FineTune's? What has its labels is so by its controller reference alone, for labels anybody can make. Pods belong to
    Jobs and Deployments, and a work volume that was retained to nobody: of these, what no other FineTune owns."""
    owners = obj["metadata"].get("ownerReferences") or ()
    if kind in (POD, PVC):
        return all(o.get("uid") == uid for o in owners if o.get("kind") == names.KIND)
    return any(o.get("uid") == uid and o.get("controller") for o in owners)


def _as_it_is(obj: Object) -> Object:
    return obj


def _shared(value: Any) -> Any:
    """The same with one string for all equal ones, of which objects of a kind are full: half of what each takes (15 instead of 31 kB)."""
    if isinstance(value, dict):
        return {sys.intern(k): _shared(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shared(v) for v in value]
    return sys.intern(value) if type(value) is str and len(value) <= SHARED else value


def _version(obj: Object) -> int:
    return int(obj["metadata"].get("resourceVersion") or 0)
