"""An object as the cache keeps it: bytes, and beside them what is asked of all objects. It is made into dicts again when it is read.

As dicts an object takes three to five times as much, most of it for the same keys and words in each; nearly all FineTunes are at rest.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from finetune_operator import names
from finetune_operator.kinds import POD, PVC, Kind

Object = Mapping[str, Any]
LARGE: Final = 4 * 1024  # bytes from which on an object is pressed, too: routers' documents, large pod templates, FineTunes with a past
AT_HAND: Final = 256  # objects that were unpacked last: a cycle reads the same ones several times
RAW: Final = -zlib.MAX_WBITS  # without a checksum, a third of the time


class Packed(msgspec.Struct, frozen=True, eq=False, gc=False):  # it is in no circle, and there are tens of thousands
    """An object; `owners`: uids that say whose it is (`is_of`). One that is pressed leaves out what it has in common with the sample."""

    uid: str
    version: int
    owners: tuple[str, ...]
    data: bytes
    sample: bytes | None


class Packer:
    """Packs objects, and unpacks them. The first large one of each kind is the sample for all others, which look much like it:
    26 KiB of a routers' document become 1, in less time than without."""

    def __init__(self) -> None:
        self._samples: dict[Kind, bytes] = {}
        self.unpack: Callable[[Packed], Object] = lru_cache(AT_HAND)(unpack)

    def pack(self, kind: Kind, obj: Object) -> Packed:
        """The object, which is left as it is."""
        data, meta, sample = msgspec.msgpack.encode(obj), obj["metadata"], None
        if len(data) >= LARGE:
            sample = self._samples.setdefault(kind, data)
            data = _pressed(data, sample)
        return Packed(meta["uid"], version(obj), owners(kind, obj), data, sample)


class Unpacked(Mapping[str, Object]):
    """Packed objects by name, each unpacked when it is asked for."""

    __slots__ = ("_packed", "_unpack")

    def __init__(self, packed: Mapping[str, Packed], unpack: Callable[[Packed], Object]) -> None:
        self._packed, self._unpack = packed, unpack

    def __getitem__(self, name: str) -> Object:
        return self._unpack(self._packed[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, name: object) -> bool:
        return name in self._packed


def unpack(packed: Packed) -> Object:
    """The object that was packed. Nobody may change it: others may have been given the same."""
    data = packed.data if packed.sample is None else zlib.decompressobj(RAW, packed.sample).decompress(packed.data)
    made: Object = msgspec.msgpack.decode(data)
    return made


def _pressed(data: bytes, sample: bytes) -> bytes:
    press = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, RAW, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, sample)
    return press.compress(data) + press.flush()


def version(obj: Object) -> int:
    """Its resourceVersion, of which a later one is larger; 0 without one."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def owners(kind: Kind, obj: Object) -> tuple[str, ...]:
    """The uids that say whose a child is. What has a FineTune's labels is its own by its controller reference alone, for labels anybody
    can make. Pods belong to Jobs and Deployments, and a work volume that was retained to nobody: of these, FineTunes that own them."""
    deciding, value = ("kind", names.KIND) if kind in (POD, PVC) else ("controller", True)
    found = obj["metadata"].get("ownerReferences") or ()
    return tuple([sys.intern(o["uid"]) for o in found if o.get(deciding) == value and "uid" in o])


def is_of(kind: Kind, owners: tuple[str, ...], uid: str) -> bool:
    """Is a child of these owners that FineTune's? Of pods and volumes, what no other FineTune owns."""
    return all(owner == uid for owner in owners) if kind in (POD, PVC) else uid in owners
