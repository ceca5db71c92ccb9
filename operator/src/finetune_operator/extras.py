"""Kinds of children that few FineTunes have: listed and watched from when the first FineTune asks for one.

So a cluster pays for no watch that nobody needs, and need not have the kind (a CRD of somebody else's), nor the operator a right to
it, until then. What is lacking is asked for again whenever a FineTune asks: a CRD or a right that comes later needs no restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from finetune_operator import conditions, errors, kinds
from finetune_operator.kinds import Kind
from finetune_operator.workloads import Waiting

Scope = str | None  # a namespace, or None for all of them
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


class Extras:
    """Those kinds, each in the whole cluster or by namespace, as the operator looks after them."""

    def __init__(self, fill: Callable[[Kind, Scope], Awaitable[None]], *, everywhere: bool) -> None:
        self._fill, self._everywhere = fill, everywhere
        self._watched: set[tuple[Kind, Scope]] = set()
        self._asking = asyncio.Lock()

    def watched(self, kind: Kind, scope: Scope) -> bool:
        """Has anybody asked for it there, and is it to be had?"""
        return (kind, scope) in self._watched

    async def missing(self, kind: Kind, namespace: str) -> Waiting | None:
        """See `Asked`."""
        scope = self._scope(namespace)
        async with self._asking:  # of many FineTunes at once, one asks
            if not self.watched(kind, scope):
                try:
                    await self._fill(kind, scope)
                except (errors.NotFound, errors.Forbidden) as error:
                    return lacking(kind, error)
                self._watched.add((kind, scope))
        return None

    def forget(self, namespace: str) -> None:
        """See `Asked`."""
        scope = self._scope(namespace)
        self._watched = {entry for entry in self._watched if entry[1] != scope}

    def _scope(self, namespace: str) -> Scope:
        return None if self._everywhere else namespace


def lacking(kind: Kind, error: errors.ClusterError) -> Waiting:
    """Why a list of the kind was refused, and what to do about it."""
    field, allowed = FORBIDDEN[kind]
    if isinstance(error, errors.Forbidden):
        text = f"{field}: the operator may not make objects of kind {kind.kind}: {allowed}. {BY_ITSELF}"
        return Waiting(conditions.EXPOSURE_FORBIDDEN, text)
    reason, fix = ABSENT.get(kind, (conditions.REFUSED, f"use an API server that serves {kind.api_version}"))
    return Waiting(reason, f"{field}: the cluster knows no {kind.kind} of {kind.api_version}: {fix}. {BY_ITSELF}")
