"""Users through rollouts, many pushes under traffic, and calls side by side."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from finetune_operator.api.fields import digest
from finetune_operator.traffic import Source, Structure

from tests.bench.control_plane.processes import machine_seconds
from tests.bench.control_plane.progress import Progress
from tests.bench.router.caller import COLD, side_by_side
from tests.bench.router.client import Answer, Connection, request_of
from tests.bench.router.figures import Found, Push, Rollback, Visit, elsewhere, reshuffled
from tests.bench.router.servers import CANARY, PODS, STABLE, Servers
from tests.router.harness import UID, Router, token

STEPS: Final = (10, 50, 100)
SWEEPS: Final = len(STEPS) + 2  # of a rollout: before it, at each step, after it was taken back
SWEEPERS: Final = 16  # connections on which all users are asked
CALLERS: Final = (1, 4)  # at once, where latency is measured
PER_SECOND: Final = 500  # requests while weights are pushed
BETWEEN_PUSHES: Final = 0.02  # seconds
PATIENCE: Final = 10.0  # seconds until a push that no router confirms ends the run


class Bench:
    """One run; what it sees is in `found`."""

    def __init__(self, servers: Servers, users: int, source: Source, told: Progress) -> None:
        self.servers, self.told, self.source = servers, told, source
        self.users = [f"user-{n}" for n in range(users)]
        self.found = Found(users)

    async def lives(self, count: int) -> tuple[Structure, dict[int, frozenset[str]]]:
        """Whole rollouts, each between arms of another salt; the last one's structure, and who is on the canary at each weight."""
        of_weight: dict[int, frozenset[str]] = {}
        for number in range(count):
            structure = self._structure(f"live-{number}", "life")
            await self._serve(structure)
            before = self.servers.router_seconds(), self.found.requests
            of_weight = await self._life(structure, number * SWEEPS, count * SWEEPS)
            spent, made = self.servers.router_seconds() - before[0], self.found.requests - before[1]
            self.found.router_us.append(1e6 * spent / made)
        return structure, of_weight

    async def _life(self, structure: Structure, sweep: int, of: int) -> dict[int, frozenset[str]]:
        """0 → 10 → 50 → 100 → 0; between the pushes every user asks every router, and while they are told users go on asking."""
        visits: list[Visit] = []
        of_weight: dict[int, frozenset[str]] = {}
        async with self._traffic(visits):
            for number, weight in enumerate((0, *STEPS)):
                if weight:
                    await self._push(structure, weight)
                at = len(visits)
                await self._sweep(visits, sweep + number, of)
                of_weight[weight] = frozenset(v.user for v in visits[at:] if v.on_canary)
            decided = time.perf_counter()
            await self._push(structure, 0)
            rollback = Rollback(decided, time.perf_counter())
            await self._sweep(visits, sweep + SWEEPS - 1, of)
        self.found.shares += [(weight, len(users)) for weight, users in of_weight.items()]
        self.found.reshuffled += len(reshuffled(visits, rollback))
        return of_weight

    async def pushes(self, structure: Structure, of_weight: dict[int, frozenset[str]], rounds: int) -> Structure:
        """The same salt in another rollout, its weights pushed over and over; what the routers then serve."""
        structure = self._structure(structure.salt, "pushes", salt=structure.salt)
        await self._serve(structure)
        visits: list[Visit] = []
        wrong: set[str] = set()
        async with self._traffic(visits):
            for number in range(rounds):
                for weight in (*STEPS, 0):
                    await self._push(structure, weight)
                    since = time.perf_counter()
                    await asyncio.sleep(BETWEEN_PUSHES)
                    wrong |= elsewhere(visits, of_weight[weight], since, time.perf_counter())
                    visits.clear()
                self.told.tell(number + 1, rounds)
        self.found.reshuffled += len(wrong)
        return structure

    async def latency(self, structure: Structure, pairs: int) -> None:
        """Direct calls and calls through a router in turn, at 50 %, by one caller and by several at once."""
        await self._push(structure, 50)
        requests = [request_of(user, self.source) for user in self.users]
        direct, routers = self.servers.pod(STABLE.arm), [self.servers.traffic(router) for router in self.servers.routers]
        before = self._others(), time.perf_counter()
        for callers in CALLERS:
            self.told.step(f"latency, {callers} at once")
            made, failed = await asyncio.to_thread(side_by_side, direct, routers, requests, pairs, callers)
            self.found.pairs[callers] = made
            self.found.failed += failed
            self.found.requests += 2 * (len(made) + COLD * callers)
        self.found.others_cores = (self._others() - before[0]) / (time.perf_counter() - before[1])

    def _others(self) -> float:
        """CPU seconds that the machine has been busy with what is not this run; callers count once they have ended."""
        return machine_seconds() - self.servers.cpu_seconds() - sum(os.times()[:4])

    async def _serve(self, structure: Structure) -> None:
        """The document, as the kubelet writes it, until every router says so; the routers are started with the first."""
        starting = not self.servers.routers[0].started
        began = time.perf_counter()
        for router in self.servers.routers:
            router.write(structure, 0)
            if starting:
                await router.start()
        await asyncio.gather(*(router.serves(structure, 0) for router in self.servers.routers))
        if not starting:
            self.found.structures.append(time.perf_counter() - began)

    async def _push(self, structure: Structure, weight: int) -> None:
        """As the operator does: a token for all, one push to each at once; then each is asked until it says that it is in force."""
        began = time.perf_counter()
        signed = token()
        seconds = await asyncio.gather(*(self._told(router, signed, structure, weight, began) for router in self.servers.routers))
        self.found.pushes.append(Push(weight, tuple(seconds)))

    async def _told(self, router: Router, signed: str, structure: Structure, weight: int, began: float) -> float:
        await router.client.push("127.0.0.1", signed, structure, weight)
        while True:
            state = await router.client.router_state(router.pod(), signed)
            if (state.version, state.weight) == (structure.version, weight):
                return time.perf_counter() - began
            if time.perf_counter() - began > PATIENCE:
                raise TimeoutError(f"a router does not say {weight} %: {state}")

    async def _sweep(self, visits: list[Visit], number: int, of: int) -> None:
        """Every user asks every router; it is sweep `number` of so many."""
        turns = iter(enumerate(itertools.product(self.users, range(len(self.servers.routers)))))
        size = len(self.users) * len(self.servers.routers)

        async def ask() -> None:
            connections = [Connection(self.servers.traffic(router)) for router in self.servers.routers]
            for turn, (user, router) in turns:
                visits.append(self._visit(user, await connections[router].ask(request_of(user, self.source))))
                self.told.tell(number * size + turn, of * size)
            for connection in connections:
                connection.close()

        await asyncio.gather(*(ask() for _ in range(SWEEPERS)))

    @asynccontextmanager
    async def _traffic(self, visits: list[Visit]) -> AsyncIterator[None]:
        """Users, one after the other and by every router in turn, at a steady pace."""
        ended = asyncio.Event()
        connections = [Connection(self.servers.traffic(router)) for router in self.servers.routers]

        async def go_on(connection: Connection, users: Sequence[str]) -> None:
            began = time.perf_counter()
            for number, user in enumerate(itertools.cycle(users)):
                if ended.is_set():
                    return
                visits.append(self._visit(user, await connection.ask(request_of(user, self.source))))
                await asyncio.sleep(max(0.0, began + (number + 1) * len(connections) / PER_SECOND - time.perf_counter()))

        going = [asyncio.create_task(go_on(c, self.users[n :: len(connections)])) for n, c in enumerate(connections)]
        try:
            yield
        finally:
            ended.set()
            await asyncio.gather(*going)
            for connection in connections:
                connection.close()

    def _visit(self, user: str, answer: Answer) -> Visit:
        """Failed: not a 200, or by another arm's pod than the router says."""
        self.found.requests += 1
        self.found.failed += answer.head.status != 200 or PODS.get(answer.head.arm) != answer.head.pod
        return Visit(user, answer.head.arm == CANARY.arm, answer.began, answer.ended)

    def _structure(self, live: str, rollout: str, salt: str = "") -> Structure:
        """Salted as the operator salts: by the FineTune's uid and the live arm."""
        return Structure(STABLE, CANARY, salt or digest({"uid": UID, "live": live}, 16), (self.source,), rollout)
