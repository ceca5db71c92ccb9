from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from finetune_operator.traffic import Backend as Arm

from devcluster import loopback
from tests.router import dns, harness
from tests.router.backend import Backend

ADDRESSES = {"old": ["127.0.1.1", "127.0.1.2"], "new": ["127.0.2.1", "127.0.2.2"]}
OLD, NEW = Arm("aaa11111", "bot-aaa11111", "rev-old"), Arm("bbb22222", "bot-bbb22222", "rev-new")


class World:
    """Two arms of two pods each behind a name server, and the routers that a test starts."""

    old, new = OLD, NEW

    def __init__(self, folder: Path, zone: dns.Zone, port: int, pods: dict[str, list[Backend]]) -> None:
        self.folder, self.zone, self.port, self.pods = folder, zone, port, pods
        self.routers: list[harness.Router] = []

    def resolve(self, arm: Arm, pods: list[Backend] | None) -> None:
        """What the arm's name means from now on; None: it does not exist."""
        name = harness.name_of(arm)
        self.zone.records.pop(name, None)
        if pods is not None:
            self.zone.records[name] = [p.address for p in pods]

    def router(self) -> harness.Router:
        """A router that is not started yet."""
        self.routers.append(harness.Router(self.folder / f"router-{len(self.routers)}", self.port, self.zone.port))
        return self.routers[-1]

    async def started(
        self, structure: harness.Structure, weight: int = 0, connection_seconds: int | None = None, drain_seconds: int | None = None
    ) -> harness.Router:
        """A router that serves the structure."""
        router = self.router()
        router.connection_seconds, router.drain_seconds = connection_seconds, drain_seconds
        router.write(structure, weight)
        return await router.start()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    zone, transport = await dns.serve()
    port = loopback.free_ports(1, "0.0.0.0")[0]
    pods = {arm: [await Backend(f"{arm}-{i}", a, port).start() for i, a in enumerate(addresses)] for arm, addresses in ADDRESSES.items()}
    made = World(tmp_path, zone, port, pods)
    made.resolve(OLD, pods["old"])
    made.resolve(NEW, pods["new"])
    yield made
    for router in made.routers:
        await router.close()
    for backend in [*pods["old"], *pods["new"]]:
        await backend.stop()
    transport.close()
