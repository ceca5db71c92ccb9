"""When each object's children came, and who is still there: watches of metadata alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.control_plane.adapters import Adapter
from tests.bench.control_plane.api import Api

Object = dict[str, Any]


class Kind:
    """One kind of object: by owner, when the first one came."""

    def __init__(self, owner: Callable[[Object], str | None]) -> None:
        self._owner = owner
        self.came: dict[str, float] = {}
        self.alive: set[str] = set()
        self.gone_at = 0.0
        self.surplus = 0  # a second one of the same owner

    def seen(self, event: str, metadata: Object, now: float) -> None:
        owner = self._owner(metadata)
        if owner is None:
            return
        if event == "DELETED":
            self.alive.discard(metadata["uid"])
            self.gone_at = now
        elif metadata["uid"] not in self.alive and event == "ADDED":
            self.alive.add(metadata["uid"])
            self.surplus += owner in self.came
            self.came.setdefault(owner, now)


class Recorder:
    """The objects and their children, as the watches tell."""

    def __init__(self, api: Api, adapter: Adapter) -> None:
        self._api = api
        self.parents = Kind(lambda metadata: metadata["name"])
        self.children = {child.kind: Kind(child.owner) for child in adapter.children}
        self._paths = [(self.parents, adapter.collection), *((self.children[c.kind], c.path) for c in adapter.children)]
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for kind, path in self._paths:
            found, version = await self._api.list_metadata(path)
            for metadata in found:
                kind.seen("ADDED", metadata, time.monotonic())
            self._watches.append(asyncio.create_task(self._api.watch_metadata(path, version, kind.seen)))

    async def stop(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    def check(self) -> None:
        """Raise what a watch failed with."""
        for watch in self._watches:
            if watch.done():
                watch.result()

    def complete(self, names: Sequence[str]) -> int:
        """How many of them have a child of every kind."""
        return sum(all(name in kind.came for kind in self.children.values()) for name in names)

    def left(self) -> int:
        """Objects and children that are still there."""
        return len(self.parents.alive) + sum(len(kind.alive) for kind in self.children.values())
