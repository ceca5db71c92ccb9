"""What is asked for before a stage's Job is made, and how often."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from finetune_operator.clock import Clock
from finetune_operator.cluster import Cluster
from finetune_operator.kinds import STORAGE_CLASS, Kind
from finetune_operator.preflight import REMEMBERED_SECONDS, StorageClasses


class Slow:
    """Lists the classes of the moment, after a moment."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked = 0

    async def list(self, kind: Kind) -> list[Any]:
        assert kind is STORAGE_CLASS
        self.asked += 1
        await asyncio.sleep(0.01)
        return [{"metadata": {"name": name}} for name in self.names]


class Time:
    """Stands still until it is moved."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


async def test_of_many_finetunes_one_asks_for_the_storage_classes() -> None:
    api, time = Slow("fast"), Time()
    classes = StorageClasses(cast(Cluster, api), cast(Clock, time))
    assert await asyncio.gather(*(classes.has("fast") for _ in range(20))) == [True] * 20
    assert api.asked == 1
    time.seconds = REMEMBERED_SECONDS + 1
    assert await asyncio.gather(*(classes.has("fast") for _ in range(20))) == [True] * 20
    assert api.asked == 2


async def test_a_class_that_was_not_there_is_asked_for_again() -> None:
    api, time = Slow(), Time()
    classes = StorageClasses(cast(Cluster, api), cast(Clock, time))
    assert not await classes.has("fast")
    api.names.append("fast")
    assert await classes.has("fast")
    assert api.asked == 2
