"""A router's pod is deleted while it carries streams: with the seconds that pods have, in front of servers that stream."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from devcluster.loopback import free_ports
from tests.bench.router.figures import Drain
from tests.bench.router.servers import PODS, STABLE
from tests.router import dns
from tests.router.backend import Backend
from tests.router.harness import Router, name_of, structure
from tests.router.users import Service, User, asking, streaming

STREAMS: Final = 100
USERS: Final = 50
TOLD_SECONDS: Final = 1.0  # after which kube-proxy has learnt that a pod goes
WHOLE: Final = b"data: first\n\ndata: second\n\n"


async def measured(folder: Path, seconds: float) -> Drain:
    """Two routers, of which one goes; all streams end `seconds` after its deletion."""
    zone, transport = await dns.serve()
    zone.records[name_of(STABLE)] = [PODS[STABLE.arm]]
    port = free_ports(1, "0.0.0.0")[0]
    server = await Backend(STABLE.arm, PODS[STABLE.arm], port).start()
    routers = [Router(folder / f"drain-{n}", port, zone.port) for n in range(2)]
    try:
        for router in routers:
            router.write(structure(STABLE), 0)
            await router.start()
        return await _measured(server, *routers, seconds)
    finally:
        for router in routers:
            await router.close()
        await server.stop()
        transport.close()


async def _measured(server: Backend, leaving: Router, staying: Router, seconds: float) -> Drain:
    service = Service(leaving, staying)
    carried = [User(f"stream-{n}", Service(leaving)) for n in range(STREAMS)]
    async with asking(service, USERS) as users:
        streams = await streaming(carried)
        began = time.perf_counter()
        going = asyncio.create_task(leaving.deleted())
        await asyncio.sleep(TOLD_SECONDS)
        service.endpoints.remove(leaving)
        await asyncio.sleep(seconds - TOLD_SECONDS)
        server.gate.set()
        texts = await asyncio.gather(*streams)
        streamed = time.perf_counter() - began
        killed = not await going
        ended = time.perf_counter() - began
    met = [answer for user in users for answer in user.met]
    cut, failed = sum(text != WHOLE for text in texts), sum(answer != STABLE.arm for answer in met)
    return Drain(STREAMS, cut, len(met), failed, streamed, ended, killed)
