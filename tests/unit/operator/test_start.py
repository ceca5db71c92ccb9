"""The start of a leader, before it watches anything."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, cast

import pytest
from finetune_operator import errors
from finetune_operator.__main__ import Operator
from finetune_operator.cluster import Cluster
from finetune_operator.kinds import CHILDREN, FINETUNE, Kind
from finetune_operator.settings import Settings
from kubernetes.aio.client import ApiClient

from tests.unit.operator.world import KEY


class Busy:
    """An API server that answers the first request of each kind with 429."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.listed: set[Kind] = set()

    async def get(self, kind: Kind, *_: Any) -> dict[str, Any]:
        self._ask(kind)
        return {"data": {"key.pem": base64.b64encode(KEY.encode()).decode()}}

    async def list(self, kind: Kind, *_: Any) -> list[Any]:
        self._ask(kind)
        self.listed.add(kind)
        return []

    def _ask(self, kind: Kind) -> None:
        if kind.plural not in self.asked:
            self.asked.add(kind.plural)
            raise errors.Unavailable("429", retry_after=3.0)


async def test_an_api_server_that_is_busy_delays_the_start_and_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    operator, busy = Operator(cast(ApiClient, None), Settings("trainer", "router")), Busy()
    operator.cluster = cast(Cluster, busy)
    reconciler = await operator._prepared()
    assert reconciler.signing_key == KEY
    assert operator.filled
    assert busy.listed >= {FINETUNE, *CHILDREN}
    assert slept
    assert set(slept) == {3.0}, "as long as it was told"
