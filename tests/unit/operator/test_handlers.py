"""kopf's handlers feed the cache and the queue, in the thread that owns them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import kopf
import pytest
from finetune_operator import handlers
from finetune_operator.cache import Cache, Key
from finetune_operator.connection import Listed
from finetune_operator.kinds import FINETUNE
from finetune_operator.queue import Queue


def at_once(function: Callable[..., object], *arguments: object) -> None:
    """In this very thread."""
    function(*arguments)


def nothing() -> None:
    """For handlers whose end is of no interest."""


Seen = Callable[..., Coroutine[Any, Any, None]]


def of_finetunes(made: kopf.OperatorRegistry) -> Seen:
    """The handler of FineTunes, and the rest of the loop's round in which it was called."""
    seen = next(h.fn for h in made._watching.get_all_handlers() if h.id == FINETUNE.plural)

    async def one(**event: Any) -> None:
        await seen(**event)
        await asyncio.sleep(0)

    return one


def test_finetunes_alone_are_watched_by_a_handler_that_runs_in_the_event_loop() -> None:
    queue: Queue[Key] = Queue(lambda: 0.0)
    made = handlers.registry(Cache(), queue, nothing, at_once, nothing)
    watching = list(made._watching.get_all_handlers())
    assert [(h.id, inspect.iscoroutinefunction(h.fn)) for h in watching] == [(FINETUNE.plural, True)]


async def test_an_event_makes_its_finetune_due_and_a_deletion_forgets_it() -> None:
    cache, queue = Cache(), Queue[Key](lambda: 0.0)
    made = handlers.registry(cache, queue, nothing, at_once, nothing)
    seen = of_finetunes(made)
    body = {"metadata": {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}}
    await seen(type="ADDED", body={**body, "metadata": {**body["metadata"], "managedFields": [{}]}})
    assert await asyncio.wait_for(queue.take(), 1) == ("ml", "bot")
    assert cache.owner(("ml", "bot")) == {**body, "apiVersion": FINETUNE.api_version, "kind": FINETUNE.kind}
    queue.done(("ml", "bot"))
    await seen(type="DELETED", body=body)
    assert cache.owner(("ml", "bot")) is None
    assert await asyncio.wait_for(queue.take(), 1) == ("ml", "bot")


async def test_an_echo_of_what_was_written_or_listed_is_no_news() -> None:
    cache, queue = Cache(), Queue[Key](lambda: 0.0)
    seen = of_finetunes(handlers.registry(cache, queue, nothing, at_once, nothing))
    body = {"metadata": {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}}
    cache.put(FINETUNE, body)
    await seen(type="MODIFIED", body=body)
    assert len(queue) == 0
    await seen(type="MODIFIED", body={"metadata": {**body["metadata"], "resourceVersion": "6"}})
    assert len(queue) == 1


def obj(name: str, version: str = "5") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ml", "uid": name, "resourceVersion": version}}


async def test_what_a_list_has_is_due_where_it_is_news() -> None:
    cache, queue = Cache(), Queue[Key](lambda: 0.0)
    cache.put(FINETUNE, obj("known"))
    cache.put(FINETUNE, obj("changed"))
    handlers.Lists(cache, queue, nothing).take(Listed("ml", True, True, [obj("known"), obj("changed", "6"), obj("new")]))
    assert {await queue.take(), await queue.take()} == {("ml", "changed"), ("ml", "new")}
    assert len(queue) == 0


def test_a_list_that_lacks_what_was_known_before_it_says_so_at_its_end() -> None:
    cache, said = Cache(), list[str]()
    lists = handlers.Lists(cache, Queue[Key](lambda: 0.0), lambda: said.append("lacking"))
    for name in ("a", "b"):
        cache.put(FINETUNE, obj(name))
    lists.take(Listed(None, True, False, [obj("a")]))
    cache.put(FINETUNE, obj("made-meanwhile"))
    lists.take(Listed(None, False, True, [obj("b")]))
    lists.take(Listed(None, True, False, [obj("a"), obj("b")]))
    lists.take(Listed("another", True, True, []))
    assert said == [], "of another namespace nothing is missing"
    lists.take(Listed(None, True, False, [obj("a")]))  # begun anew
    assert said == [], "it is not at its end"
    lists.take(Listed(None, False, True, [obj("made-meanwhile")]))
    assert said == ["lacking"]


async def test_the_other_thread_is_woken_once_for_many_events_and_none_is_lost() -> None:
    cache, queue, wakes = Cache(), Queue[Key](lambda: 0.0), list[Callable[[], object]]()
    made = handlers.registry(cache, queue, nothing, wakes.append, nothing)
    seen = of_finetunes(made)

    async def add(name: str) -> None:
        await seen(type="ADDED", body={"metadata": {"name": name, "namespace": "ml", "uid": name, "resourceVersion": "5"}})

    for name in ("a", "b"):
        await add(name)
    assert len(wakes) == 1
    wakes.pop()()
    assert cache.owners() == [("ml", "a"), ("ml", "b")]
    await seen(type="ADDED", body={"metadata": {}})
    await add("c")
    with pytest.raises(KeyError):
        wakes.pop()()
    wakes.pop()()
    assert cache.owner(("ml", "c")) is not None
    assert wakes == []
