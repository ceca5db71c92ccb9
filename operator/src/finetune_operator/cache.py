"""Last seen objects by owner, as `projection` reads them, packed (docs/adr/0024). Filled by lists before watching, then by events; own
writes are put in at once.

Invariant: an object is never replaced by an older one of its name (resourceVersions are ordered), and what is gone stays gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, Final

from finetune_operator import names
from finetune_operator.kinds import FINETUNE, POD, Kind
from finetune_operator.packed import Object, Packed, Packer, Unpacked, is_of, owners, unpack, version

GRAVES = 10_000  # uids of deleted objects that are remembered
NOTHING: Final[Mapping[Any, Any]] = {}
Key = tuple[str, str]  # namespace, name of the FineTune


class Cache:
    """FineTunes by key, and their children by kind, key and name."""

    def __init__(self) -> None:
        self._owners: dict[Key, Packed] = {}
        self._children: dict[Key, dict[Kind, dict[str, Packed]]] = {}
        self._gone: dict[str, None] = {}
        self._bereft: set[Key] = set()
        self._packer = Packer()

    def owner(self, key: Key) -> Object | None:
        """The FineTune, or None when it is gone."""
        found = self._owners.get(key)
        return self._packer.unpack(found) if found else None

    def knows(self, key: Key) -> bool:
        """Is the FineTune there?"""
        return key in self._owners

    def owners(self) -> list[Key]:
        """Keys of all FineTunes."""
        return list(self._owners)

    def children(self, kind: Kind, key: Key) -> Mapping[str, Object]:
        """The FineTune's children of that kind, by name; not what has its labels alone, as those of an earlier one of its name have."""
        named = self._named(kind, key)
        if not named:  # of most kinds a FineTune has nothing
            return NOTHING
        owner = self._owners.get(key)
        theirs = {name: packed for name, packed in named.items() if owner is None or is_of(kind, packed.owners, owner.uid)}
        return Unpacked(theirs, self._packer.unpack)

    def put(self, kind: Kind, obj: Object) -> Key | None:
        """Store what was just read or written, unless something newer is there; returns the owner's key."""
        key = owner_key(kind, obj)
        if key is None:
            return None
        known = self._known(kind, key, obj)
        if known is None or version(obj) >= known.version:
            self._set(kind, key, obj)
        return key

    def tell(self, kind: Kind, obj: Object) -> Key | None:
        """Store what a watch told; returns the owner's key if that was news, and not an echo of what was written or listed."""
        key = self._news(kind, obj)
        return key if key and self._set(kind, key, obj) else None

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
        if known is not None and known.uid == obj["metadata"]["uid"]:
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
        known = self.owner(key)
        if known is not None and (obj is None or obj["metadata"]["uid"] != known["metadata"]["uid"]):
            self.drop(FINETUNE, known)
        if obj is not None:
            self.put(FINETUNE, obj)
        self._bereft.discard(key)

    def uids(self, kind: Kind, namespace: str | None = None) -> frozenset[str]:
        """What is stored now (of one namespace, or of all): taken before a list begins, for `missing`."""
        return frozenset(packed.uid for key, packed in self._all(kind) if namespace in (None, key[0]))

    def fill(self, kind: Kind, objects: Iterable[Object]) -> set[Key]:
        """Store what was listed; returns the owners of what was missing or changed."""
        return {key for obj in objects if (key := self._news(kind, obj)) and self._set(kind, key, obj)}

    def missing(self, kind: Kind, listed: Set[str], known: frozenset[str]) -> list[Object]:
        """What a complete list lacks, by uid, of what was `known` when it began: what was made since is not missing."""
        gone = known - listed
        return [unpack(packed) for _, packed in self._all(kind) if packed.uid in gone]

    def behind(self, kind: Kind, objects: Iterable[Object]) -> list[Object]:
        """Those of a list (their metadata are enough) of which nothing, or an older state, is stored."""
        return [obj for obj in objects if self._news(kind, obj)]

    def _news(self, kind: Kind, obj: Object) -> Key | None:
        """The owner's key, if it has one and is newer than what is stored under its name."""
        key = owner_key(kind, obj)
        known = self._known(kind, key, obj) if key else None
        return key if known is None or version(obj) > known.version else None

    def _forget(self, kind: Kind, key: Key, name: str) -> None:
        kinds = self._children[key]
        del kinds[kind][name]
        if not kinds[kind]:
            del kinds[kind]
        if not kinds:
            del self._children[key]

    def _bury(self, uid: str) -> None:
        """A write's answer may come after the event of its object's deletion: it must not bring the object back."""
        self._gone[uid] = None
        while len(self._gone) > GRAVES:
            del self._gone[next(iter(self._gone))]

    def _all(self, kind: Kind) -> list[tuple[Key, Packed]]:
        if kind is FINETUNE:
            return list(self._owners.items())
        return [(key, packed) for key, kinds in self._children.items() for packed in kinds.get(kind, {}).values()]

    def _named(self, kind: Kind, key: Key) -> Mapping[str, Packed]:
        return self._children.get(key, NOTHING).get(kind, NOTHING)

    def _known(self, kind: Kind, key: Key, obj: Object) -> Packed | None:
        """What is stored under the object's name."""
        return self._owners.get(key) if kind is FINETUNE else self._named(kind, key).get(obj["metadata"]["name"])

    def _set(self, kind: Kind, key: Key, obj: Object) -> bool:
        """Store it, unless it is known to be gone."""
        if obj["metadata"]["uid"] in self._gone:
            return False
        if kind is FINETUNE:
            self._owners[key] = self._packer.pack(kind, obj)
        else:
            self._children.setdefault(key, {}).setdefault(kind, {})[obj["metadata"]["name"]] = self._packer.pack(kind, obj)
        return True


def owner_key(kind: Kind, obj: Object) -> Key | None:
    """Whose the object is: its own key, or that of the FineTune its label names."""
    meta = obj["metadata"]
    if kind is FINETUNE:
        return (meta["namespace"], meta["name"])
    name = (meta.get("labels") or {}).get(names.NAME)
    return (meta["namespace"], name) if name else None


def belongs(kind: Kind, obj: Object, uid: str) -> bool:
    """Is a child that FineTune's?"""
    return is_of(kind, owners(kind, obj), uid)
