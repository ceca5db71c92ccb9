"""What a leader lists: all at its start, and again what its watches may have missed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from finetune_operator import errors, handlers
from finetune_operator.cluster import Cluster, Page
from finetune_operator.connection import Connection, Listed
from finetune_operator.extras import Extras
from finetune_operator.informer import Informer
from finetune_operator.kinds import CHILDREN, FINETUNE, INGRESS, POD, Kind
from finetune_operator.process import Operator
from finetune_operator.settings import Settings

from tests.unit.operator.world import KEY


def given(operator: Operator, cluster: Any) -> None:
    """The operator with that cluster."""
    operator.cluster = cast(Cluster, cluster)
    operator.informer = Informer(operator.cluster, operator.cache, operator.queue)


class Busy:
    """An API server that answers the first request of each kind with 429."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.listed: set[Kind] = set()
        self.may: Kind | None = None

    async def get(self, kind: Kind, *_: Any) -> dict[str, Any]:
        self._ask(kind)
        return {"data": {"key.pem": base64.b64encode(KEY.encode()).decode()}}

    async def pages(self, kind: Kind, *_: Any, **__: Any) -> AsyncIterator[Page]:
        self._ask(kind)
        self.listed.add(kind)
        yield Page("1", [])

    async def may_list(self, kind: Kind, _: str | None) -> None:
        self._ask(kind)
        self.may = kind

    def _ask(self, kind: Kind) -> None:
        if kind.plural not in self.asked:
            self.asked.add(kind.plural)
            raise errors.Unavailable("429", retry_after=3.0)


async def test_an_api_server_that_is_busy_delays_the_start_and_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    operator, busy = Operator(cast(Connection, None), Settings("trainer", "router")), Busy()
    given(operator, busy)
    reconciler = await operator._prepared()
    assert reconciler.signing_key == KEY
    assert operator.filled
    assert (busy.may, busy.listed) == (FINETUNE, set(CHILDREN)), "FineTunes themselves are listed by kopf, once"
    assert slept
    assert set(slept) == {3.0}, "as long as it was told"


class Closed:
    """An API server that answers 403 for some kinds in namespace `ml`, lists nothing elsewhere, and `has` one object."""

    def __init__(self, *kinds: Kind, has: dict[str, Any] | None = None) -> None:
        self.kinds, self.has = kinds, has
        self.listed: set[tuple[Kind, str | None]] = set()

    async def pages(self, kind: Kind, namespace: str | None = None, *_: Any, **__: Any) -> AsyncIterator[Page]:
        if kind in self.kinds and namespace == "ml":
            raise errors.Forbidden("403")
        self.listed.add((kind, namespace))
        yield Page("1", [])

    async def may_list(self, kind: Kind, namespace: str | None) -> None:
        """Of a list nothing is taken in."""
        [page async for page in self.pages(kind, namespace)]

    async def get(self, *_: Any) -> dict[str, Any] | None:
        return self.has


async def test_a_namespace_without_access_to_finetunes_is_left_out_and_the_others_are_not() -> None:
    operator = Operator(cast(Connection, None), Settings("trainer", "router", namespaces=("ml", "nlp")))
    closed = Closed(FINETUNE, *CHILDREN)
    given(operator, closed)
    await operator._each_kind(operator.informer.begin, CHILDREN)
    assert operator.closed == {"ml"}
    assert closed.listed == {(kind, "nlp") for kind in (FINETUNE, *CHILDREN)}


async def test_a_lacking_right_to_children_is_an_error_and_closes_no_namespace() -> None:
    operator = Operator(cast(Connection, None), Settings("trainer", "router", namespaces=("ml", "nlp")))
    given(operator, Closed(POD))
    with pytest.raises(errors.Forbidden):
        await operator._each_kind(operator.informer.begin, CHILDREN)
    assert operator.closed == set()


async def test_what_was_deleted_before_a_list_of_the_watches_is_missed_at_its_end() -> None:
    operator, closed = Operator(cast(Connection, None), Settings("trainer", "router", sweep_seconds=86400)), Closed()
    given(operator, closed)
    finetune = {"metadata": {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}}
    operator.cache.put(FINETUNE, finetune)
    lists = handlers.Lists(operator.cache, operator.queue, operator.lacking.set)
    sweeping = asyncio.create_task(operator._after_lists())
    try:
        lists.take(Listed(None, first=True, last=True, items=[finetune]))
        await asyncio.sleep(0.2)
        assert not closed.listed, "that list lacks nothing: there is nothing to read"
        lists.take(Listed(None, first=True, last=False, items=[]))
        await asyncio.sleep(0.02)
        assert len(operator.queue) == 0, "the list is not at its end"
        lists.take(Listed(None, first=False, last=True, items=[]))
        assert await asyncio.wait_for(operator.queue.take(), 5) == ("ml", "bot")
        assert operator.cache.uids(FINETUNE) == frozenset()
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


@pytest.mark.parametrize(("uid", "kept"), [("1", True), ("another of its name", False)])
async def test_what_a_list_lacks_is_asked_for_before_it_is_forgotten(uid: str, kept: bool) -> None:
    """A list is stale while the storage of a CRD is made anew; what is forgotten is forgotten for good."""
    pod = {"metadata": {"name": "bot-0", "namespace": "ml", "uid": "1", "resourceVersion": "5", "labels": {"finetune.dev/name": "bot"}}}
    operator = Operator(cast(Connection, None), Settings("trainer", "router"))
    given(operator, Closed(has={"metadata": {**pod["metadata"], "uid": uid}}))
    operator.cache.put(POD, pod)
    await operator.informer.compare(POD, None)
    assert operator.cache.uids(POD) == (frozenset({"1"}) if kept else frozenset())
    assert len(operator.queue) == (0 if kept else 1)


async def test_of_a_namespace_that_is_open_again_the_children_are_known_before_its_finetunes() -> None:
    """Else what trains there would seem to have lost its Job."""
    operator = Operator(cast(Connection, None), Settings("trainer", "router", namespaces=("ml", "nlp")))
    order: list[tuple[Kind, str | None]] = []

    class Open(Closed):
        async def pages(self, kind: Kind, namespace: str | None = None, *_: Any, **__: Any) -> AsyncIterator[Page]:
            order.append((kind, namespace))
            yield Page("1", [])

    given(operator, Open())
    operator.closed = {"ml"}
    await operator._compare()
    assert order == [*((kind, "ml") for kind in CHILDREN), (FINETUNE, "ml"), (FINETUNE, "nlp")]
    assert operator.closed == set()


async def test_kinds_that_few_need_are_followed_where_the_namespace_is_open_and_one_has_asked() -> None:
    operator = Operator(cast(Connection, None), Settings("trainer", "router", namespaces=("ml", "nlp")))
    given(operator, Closed())
    operator.extras = Extras(operator.informer.fill, operator.clock.monotonic, everywhere=False)
    assert not operator._is_followed(INGRESS, "ml")
    for namespace in ("ml", "nlp"):
        await operator.extras.missing(INGRESS, namespace)
        assert operator._is_followed(INGRESS, namespace)
    given(operator, Closed(FINETUNE))
    await operator._compare()
    assert (operator._is_followed(INGRESS, "ml"), operator._is_followed(INGRESS, "nlp")) == (False, True)
    given(operator, Closed())
    await operator._compare()
    assert not operator._is_followed(INGRESS, "ml"), "what was there went with the namespace: it is listed when one asks again"
    await operator.extras.missing(INGRESS, "ml")
    assert operator._is_followed(INGRESS, "ml")
    operator.closed = {"ml"}
    assert not operator._is_followed(INGRESS, "ml")
