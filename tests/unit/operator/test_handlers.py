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
    made = handlers.registry(Cache(), queue, handlers.Lists(), at_once, nothing)
    watching = list(made._watching.get_all_handlers())
    assert [(h.id, inspect.iscoroutinefunction(h.fn)) for h in watching] == [(FINETUNE.plural, True)]


async def test_an_event_makes_its_finetune_due_and_a_deletion_forgets_it() -> None:
    cache, queue = Cache(), Queue[Key](lambda: 0.0)
    made = handlers.registry(cache, queue, handlers.Lists(), at_once, nothing)
    seen = of_finetunes(made)
    body = {"metadata": {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}}
    await seen(type="ADDED", body=body)
    assert await asyncio.wait_for(queue.take(), 1) == ("ml", "bot")
    assert cache.owner(("ml", "bot")) is not None
    queue.done(("ml", "bot"))
    await seen(type="DELETED", body=body)
    assert cache.owner(("ml", "bot")) is None
    assert await asyncio.wait_for(queue.take(), 1) == ("ml", "bot")


async def test_an_echo_of_what_was_written_or_listed_is_no_news() -> None:
    cache, queue = Cache(), Queue[Key](lambda: 0.0)
    seen = of_finetunes(handlers.registry(cache, queue, handlers.Lists(), at_once, nothing))
    body = {"metadata": {"name": "bot", "namespace": "ml", "uid": "1", "resourceVersion": "5"}}
    cache.put(FINETUNE, body)
    await seen(type="MODIFIED", body=body)
    assert len(queue) == 0
    await seen(type="MODIFIED", body={"metadata": {**body["metadata"], "resourceVersion": "6"}})
    assert len(queue) == 1


async def test_what_came_of_a_list_is_said_at_its_end_and_of_each_list_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "LISTED_SECONDS", 0.05)
    lists = handlers.Lists()
    seen = of_finetunes(handlers.registry(Cache(), Queue[Key](lambda: 0.0), lists, at_once, nothing))
    for rounds in ({None: ("1", "2"), "ADDED": ("3",)}, {None: ("2",)}):
        for type_, uids in rounds.items():
            for uid in uids:
                await seen(type=type_, body={"metadata": {"name": uid, "namespace": "ml", "uid": uid, "resourceVersion": "5"}})
        assert await asyncio.wait_for(lists.next(), 5) == set(rounds[None])


async def test_the_other_thread_is_woken_once_for_many_events_and_none_is_lost() -> None:
    cache, queue, wakes = Cache(), Queue[Key](lambda: 0.0), list[Callable[[], object]]()
    made = handlers.registry(cache, queue, handlers.Lists(), wakes.append, nothing)
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
