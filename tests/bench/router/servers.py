"""What is measured: two routers with the operator's own documents, a name server, and an Envoy that plays every model server.

The model server answers by itself, at once, with a short chat completion: what a call through a router takes longer than a direct
one is the router's share alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from finetune_operator import names
from finetune_operator.build.router import REPLICAS
from finetune_operator.traffic import Backend as Arm

from devcluster.loopback import free_ports
from tests.bench.control_plane import processes
from tests.router import dns
from tests.router.harness import Envoy, Router, name_of

STABLE, CANARY = Arm("aaa11111", "bot-aaa11111", "rev-old"), Arm("bbb22222", "bot-bbb22222", "rev-new")
PODS: Final = {STABLE.arm: "127.0.1.1", CANARY.arm: "127.0.2.1"}
_TYPE: Final = "type.googleapis.com/envoy"
_COMPLETION: Final = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bot",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "SELECT count(*) FROM orders;"}}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28},
}  # fmt: skip


@dataclass(frozen=True)
class Servers:
    """Running routers, and where the arms' pods listen."""

    routers: tuple[Router, ...]
    models: Envoy
    port: int

    def router_seconds(self) -> float:
        """CPU seconds that the routers have used so far."""
        return sum(processes.cpu_seconds(router.pid) for router in self.routers)

    def cpu_seconds(self) -> float:
        """What all servers have used so far."""
        return self.router_seconds() + processes.cpu_seconds(self.models.pid)

    def pod(self, arm: str) -> tuple[str, int]:
        return PODS[arm], self.port

    def traffic(self, router: Router) -> tuple[str, int]:
        return "127.0.0.1", router.ports[names.TRAFFIC_PORT]


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Servers]:
    """Everything but the routers' first documents and processes; ends what it and its user started."""
    zone, transport = await dns.serve()
    port = free_ports(1, "0.0.0.0")[0]
    for arm in (STABLE, CANARY):
        zone.records[name_of(arm)] = [PODS[arm.arm]]
    models = Envoy(folder / "models.log")
    routers = tuple(Router(folder / f"router-{n}", port, zone.port) for n in range(REPLICAS))
    try:
        await models.run(["envoy", "--config-yaml", json.dumps(_models(port)), "--disable-hot-restart", "--concurrency", "1", "--log-level",
                          "warning"], lambda: _listens(port))  # fmt: skip
        yield Servers(routers, models, port)
    finally:
        for router in routers:
            await router.close()
        await models.kill()
        transport.close()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _models(port: int) -> dict[str, Any]:
    """Every pod of every arm on one port: it names the address that it was called at."""
    says = {"header": {"key": "x-pod", "value": "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"}}
    answer = {"status": 200, "body": {"inline_string": json.dumps(_COMPLETION)}}
    route = {"match": {"prefix": "/"}, "direct_response": answer, "response_headers_to_add": [says]}
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "models",
        "route_config": {"virtual_hosts": [{"name": "models", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}}
        ],
    }
    listener = {
        "name": "models",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener]}}
