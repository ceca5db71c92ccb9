"""What routers and servers have counted of both arms since the step began, by their counters as they were then."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

import msgspec

from finetune_operator.api.status import Rollout
from finetune_operator.decide.guards import add, subtract
from finetune_operator.decide.rollout.memory import changed
from finetune_operator.decide.rollout.scene import Scene
from finetune_operator.traffic import ArmTotals, Buckets
from finetune_operator.workloads.objects import time

Counted = tuple[str, str, Mapping[str, ArmTotals]]  # a router or server: name, start, counters by arm
SERVERS_BYTES: Final = 8 * 1024  # of the status, for what servers had counted: some ten of vLLM's with all bounds in use, and few are


def sources(scene: Scene) -> Iterator[Counted]:
    """(name, start, counters by arm) of every router and server that could be asked."""
    return chain(_routers(scene), _servers(scene))


def _routers(scene: Scene) -> Iterator[Counted]:
    return ((router.pod, router.started, router.totals) for router in scene.routers if not router.error)


def _servers(scene: Scene) -> Iterator[Counted]:
    return ((server.pod, server.started, {server.arm: server.totals}) for server in scene.servers if server.totals is not None)


def counters(scene: Scene) -> dict[str, Any]:
    """Counters now, per router or server and its start, in a form that the status can hold: of all routers, and of servers as far as
    there is room for them. The others do not count in this step, unless they start anew."""
    return {**_kept(_routers(scene)), **_fitting(_kept(_servers(scene)), {})}


def based(scene: Scene, r: Rollout) -> Rollout:
    """With today's counters of what is older than the step and could not be asked when it began: it counts from now on. What is gone since
    then is forgotten."""
    routers, servers = (_kept(s for s in found if _unbased(r, s)) for found in (_routers(scene), _servers(scene)))
    there = {s.pod for s in scene.routers}, {s.pod for s in scene.servers}
    known, asked = ({k: v for k, v in _before(r).items() if k.partition("@")[0] in pods} for pods in there)
    found = {**routers, **_fitting(servers, asked)}
    return changed(r, memory={**r.memory, "counted": {**known, **asked, **found}}) if found else r


def _before(r: Rollout) -> Mapping[str, Any]:
    return r.memory.get("counted") or {}


def _unbased(r: Rollout, source: Counted) -> bool:
    """Is it older than the step, and not known what it had counted by then?"""
    pod, since, _ = source
    began, started = time(r.memory.get("began")), time(since)
    return f"{pod}@{since}" not in _before(r) and bool(began and started and started <= began)


def _kept(sources: Iterable[Counted]) -> dict[str, Any]:
    return {f"{pod}@{started}": {arm: _wire(counted) for arm, counted in totals.items()} for pod, started, totals in sources}


def _fitting(found: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Those servers that there is room for beside the known ones, the first first. Half of it is each arm's: one that could not be asked
    at first does not go without."""
    left, fitting = defaultdict[str, int](lambda: SERVERS_BYTES // 2), dict[str, Any]()
    for name, counted in chain(known.items(), found.items()):
        size, (arm,) = len(msgspec.json.encode({name: counted})), counted
        if name in known or size <= left[arm]:
            fitting[name] = counted
            left[arm] -= size
    return {name: counted for name, counted in fitting.items() if name not in known}


def counted(scene: Scene, r: Rollout) -> tuple[ArmTotals, ArmTotals]:
    """(canary, stable) sums since the step began; a router or server that started since then counts from zero. One that there was no
    room for does not count."""
    before, structure = _before(r), scene.structure
    canary, stable = ArmTotals(), ArmTotals()
    for source in sources(scene):
        if _unbased(r, source):
            continue
        pod, since, counters = source
        old = before.get(f"{pod}@{since}") or {}
        for arm, totals in counters.items():
            part = subtract(totals, _read(old.get(arm)))
            if structure.canary and arm == structure.canary.arm:
                canary = add(canary, part)
            elif arm == structure.stable.arm:
                stable = add(stable, part)
    return canary, stable


def _wire(totals: ArmTotals) -> list[Any]:
    """What `_read` reads: the servers' counters only where there are any, of a histogram only bounds that add something."""
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
    below = (0.0, *(count for _, count in buckets))
    return [
        ["Inf" if math.isinf(bound) else bound, int(count)] for (bound, count), less in zip(buckets, below, strict=False) if count > less
    ]


def _buckets(stored: list[Any]) -> Buckets:
    return tuple((float(bound), float(count)) for bound, count in stored)
