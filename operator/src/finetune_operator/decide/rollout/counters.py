"""What routers and servers have counted of both arms since the step began, by their counters as they were then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from finetune_operator.api.status import Rollout
from finetune_operator.decide.guards import add, subtract
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.scene import Scene
from finetune_operator.traffic import ArmTotals, Buckets
from finetune_operator.workloads.objects import time

Counted = tuple[str, str, Mapping[str, ArmTotals]]  # a router or server: name, start, counters by arm


def sources(scene: Scene) -> Iterator[Counted]:
    """(name, start, counters by arm) of every router and server that could be asked."""
    for router in scene.routers:
        if not router.error:
            yield router.pod, router.started, router.totals
    for server in scene.servers:
        if server.totals is not None:
            yield server.pod, server.started, {server.arm: server.totals}


def counters(sources: Iterable[Counted]) -> dict[str, Any]:
    """Counters now, per router or server and its start, in a form that the status can hold."""
    return {f"{pod}@{started}": {arm: _wire(counted) for arm, counted in totals.items()} for pod, started, totals in sources}


def based(scene: Scene, r: Rollout) -> Rollout:
    """With today's counters of what is older than the step and could not be asked when it began: it counts from now on."""
    before, began = r.memory.get("counted") or {}, time(r.memory.get("began"))

    def late(pod: str, since: str) -> bool:
        started = time(since)
        return f"{pod}@{since}" not in before and bool(began and started and started <= began)

    found = counters(source for source in sources(scene) if late(*source[:2]))
    return changed(r, memory={**r.memory, "counted": {**before, **found}}) if found else r


def counted(scene: Scene, r: Rollout) -> tuple[ArmTotals, ArmTotals]:
    """(canary, stable) sums since the step began; a router or server that started since then counts from zero."""
    before, structure = r.memory.get("counted") or {}, scene.structure
    canary, stable = ArmTotals(), ArmTotals()
    for pod, since, counters in sources(scene):
        old = before.get(f"{pod}@{since}") or {}
        for arm, totals in counters.items():
            part = subtract(totals, _read(old.get(arm)))
            if structure.canary and arm == structure.canary.arm:
                canary = add(canary, part)
            elif arm == structure.stable.arm:
                stable = add(stable, part)
    return canary, stable


def _wire(totals: ArmTotals) -> list[Any]:
    """What `_read` reads: the servers' counters only where there are any, of a histogram only bounds with something below them."""
    routers = [totals.requests, totals.errors, _bounds(totals.latency)]
    if not totals.first_token:
        return routers
    return [*routers, _bounds(totals.first_token), _bounds(totals.output_token), totals.answers, totals.unusable]


def _read(stored: list[Any] | None) -> ArmTotals:
    if not stored:
        return ArmTotals()
    requests, errors, latency, *servers = stored
    first, output, answers, unusable = servers or ([], [], 0, 0)
    return ArmTotals(
        int(requests), int(errors), _buckets(latency),
        first_token=_buckets(first), output_token=_buckets(output), answers=int(answers), unusable=int(unusable),
    )  # fmt: skip


def _bounds(buckets: Buckets) -> list[Any]:
    return [["Inf" if math.isinf(bound) else bound, count] for bound, count in buckets if count]


def _buckets(stored: list[Any]) -> Buckets:
    return tuple((float(bound), float(count)) for bound, count in stored)
