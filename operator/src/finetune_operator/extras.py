"""Kinds of children that few FineTunes have: listed and watched from when the first FineTune asks for one.

So a cluster pays for no watch that nobody needs, and need not have the kind (a CRD of somebody else's), nor the operator a right to
it, until then. What is lacking is asked for again whenever a FineTune asks: a CRD or a right that comes later needs no restart.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, Protocol

from finetune_operator import conditions, errors, kinds
from finetune_operator.kinds import Kind
from finetune_operator.workloads.run import Waiting

Scope = str | None  # a namespace, or None for all of them
REFUSAL_SECONDS: Final = 10.0  # so long nobody asks anew for what was refused
BY_ITSELF: Final = "It goes on by itself within a minute of that."
FORBIDDEN: Final = {
    kinds.INGRESS: ("serving.expose.ingress", "install its chart with expose.ingress=true"),
    kinds.HTTP_ROUTE: ("serving.expose.httpRoute", "install its chart with expose.httpRoute=true"),
    kinds.HPA: ("serving.autoscaling", "upgrade its chart"),
}  # the field that asks for it, and what gives the operator the right to it
ABSENT: Final = {kinds.HTTP_ROUTE: (conditions.GATEWAY_API_MISSING, "install the CRDs of the Gateway API (its standard channel)")}


class Asked(Protocol):
    """What a cycle needs to know of such a kind."""

    async def missing(self, kind: Kind, namespace: str) -> Waiting | None:
        """What keeps FineTunes of that namespace from having such children; None once the cache holds those that there are."""

    def forget(self, namespace: str) -> None:
        """Ask anew: what was there is not any more."""


class Refusal(NamedTuple):
    """Why a list was refused, and until when that is believed."""

    waiting: Waiting
    until: float


class Extras:
    """Those kinds, each in the whole cluster or by namespace, as the operator looks after them. `now` is a clock's seconds."""

    def __init__(self, fill: Callable[[Kind, Scope], Awaitable[None]], now: Callable[[], float], *, everywhere: bool) -> None:
        self._fill, self._now, self._everywhere = fill, now, everywhere
        self._watched: set[tuple[Kind, Scope]] = set()
        self._refused: dict[tuple[Kind, Scope], Refusal] = {}
        self._asking: defaultdict[tuple[Kind, Scope], asyncio.Lock] = defaultdict(asyncio.Lock)

    def watched(self, kind: Kind, scope: Scope) -> bool:
        """Has anybody asked for it there, and is it to be had?"""
        return (kind, scope) in self._watched

    async def missing(self, kind: Kind, namespace: str) -> Waiting | None:
        """See `Asked`. Whatever the API server answers is no error: nothing else of the FineTune waits for it."""
        where = (kind, self._scope(namespace))
        refused = self._refused.get(where)
        if refused and (self._now() < refused.until or self._asking[where].locked()):
            return refused.waiting
        if where in self._watched:
            return None
        async with self._asking[where]:  # of many FineTunes at once, one asks
            if where not in self._watched and self._refused.get(where) is refused:
                await self._ask(where)
        refused = self._refused.get(where)
        return refused.waiting if refused else None

    async def _ask(self, where: tuple[Kind, Scope]) -> None:
        try:
            await self._fill(*where)
        except errors.ClusterError as error:
            self._refused[where] = Refusal(lacking(where[0], error), self._now() + REFUSAL_SECONDS)
        else:
            self._refused.pop(where, None)
            self._watched.add(where)

    def forget(self, namespace: str) -> None:
        """See `Asked`."""
        scope = self._scope(namespace)
        self._watched = {entry for entry in self._watched if entry[1] != scope}
        self._refused = {where: refusal for where, refusal in self._refused.items() if where[1] != scope}

    def _scope(self, namespace: str) -> Scope:
        return None if self._everywhere else namespace


def lacking(kind: Kind, error: errors.ClusterError) -> Waiting:
    """Why a list of the kind was refused, and what to do about it."""
    field, allowed = FORBIDDEN[kind]
    if isinstance(error, errors.Forbidden):
        text = f"{field}: the operator may not make objects of kind {kind.kind}: {allowed}. {BY_ITSELF}"
        return Waiting(conditions.EXPOSURE_FORBIDDEN, text)
    if not isinstance(error, errors.NotFound):
        return Waiting(conditions.REFUSED, f"{field}: objects of kind {kind.kind} cannot be listed: {error}. {BY_ITSELF}")
    reason, fix = ABSENT.get(kind, (conditions.REFUSED, f"use an API server that serves {kind.api_version}"))
    return Waiting(reason, f"{field}: the cluster knows no {kind.kind} of {kind.api_version}: {fix}. {BY_ITSELF}")
