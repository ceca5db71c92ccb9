"""A request from outside, through a real Ingress controller and a real Gateway (Traefik is both), to the Service of the routers.

Nobody routes Services here: their addresses are loopback ones, and what answers at the address of a FineTune's Service stands in for
its routers.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from finetune_operator import kinds

from devcluster import loopback
from devcluster.controlplane import ControlPlane
from tests.integration import gatewayapi
from tests.integration.engine import Operator, Space, install, until
from tests.integration.kubelet import Admin, Kubelet
from tests.integration.test_exposure import HOST, ROLLOUT, allow, is_exposed

TRAEFIK = Path(sys.executable).with_name("traefik")
SERVICES = "127.96.0.0/16"  # all of 127 is this machine: a process here can listen at a Service's address
CHUNK_SECONDS = 0.4
Object = dict[str, Any]
INGRESS_CLASS = {
    "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "traefik"},
    "spec": {"controller": "traefik.io/ingress-controller"},
}  # fmt: skip
GATEWAY_CLASS = {
    "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "traefik"},
    "spec": {"controllerName": "traefik.io/gateway-controller"},
}  # fmt: skip


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(flags={"kube-apiserver": [f"--service-cluster-ip-range={SERVICES}"]}) as started:
        install(started)
        allow(started, "ingress", "httpRoute")
        started.kubectl("apply", "--server-side", "-f", str(gatewayapi.crds()))
        started.kubectl("wait", "--for=condition=Established", "--all", "crd", "--timeout=60s")
        started.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([INGRESS_CLASS, GATEWAY_CLASS]))
        yield started


@pytest.fixture(scope="module")
def door(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Traefik that watches the control plane."""
    folder = tmp_path_factory.mktemp("traefik")
    (port,) = loopback.free_ports(1)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [TRAEFIK, *arguments(port)],
            env={"KUBECONFIG": str(plane.kubeconfig)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    yield port
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    print((folder / "log").read_text()[-4000:])


def arguments(port: int) -> list[str]:
    """It calls Services by their addresses, and tells Ingresses an address of its own."""
    return [
        "--providers.kubernetesingress.nativelbbydefault=true", "--providers.kubernetesgateway.nativelbbydefault=true",
        "--providers.kubernetesingress.strictprefixmatching=true", "--providers.kubernetesingress.ingressendpoint.ip=192.0.2.1",
        f"--entrypoints.web.address=127.0.0.1:{port}", "--global.checknewversion=false", "--global.sendanonymoususage=false",
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def routers(address: str) -> AsyncIterator[None]:
    """What answers at a Service's address: what it was asked, and a stream in two parts."""

    async def said(request: web.Request) -> web.Response:
        return web.json_response({"path": request.path, "host": request.host, "user": request.headers.get("x-user-id", "")})

    async def streamed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(CHUNK_SECONDS)
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", streamed), web.get("/{path:.*}", said)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, 80).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def operator(plane: ControlPlane, admin: Admin, tmp_path: Path) -> AsyncIterator[Operator]:
    async with Kubelet(admin), Operator(plane, tmp_path, "gateways") as started:
        await started.leading()
        yield started


async def ask(door: int, path: str, host: str = "bot.example.com") -> tuple[int, Object]:
    headers = {"Host": host, "x-user-id": "alice"}
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{door}{path}", headers=headers) as answer:
        return answer.status, await answer.json() if answer.status == 200 else {}


async def served(space: Space, door: int) -> None:
    """Path /v1 of the host reaches the routers, as it was sent and as it is answered; nothing else does."""
    service = await space.admin.get(kinds.SERVICE, space.name, "bot")
    assert service is not None
    async with routers(service["spec"]["clusterIP"]):

        async def open_() -> bool:
            return (await ask(door, "/v1/models"))[0] == 200

        await until(open_, what="the way in")
        assert await ask(door, "/v1/models") == (200, {"path": "/v1/models", "host": "bot.example.com", "user": "alice"})
        for path, host in (("/metrics", "bot.example.com"), ("/v1x", "bot.example.com"), ("/v1/models", "other.example.com")):
            assert (await ask(door, path, host))[0] == 404
        assert await between_the_parts(door) > CHUNK_SECONDS / 2, "a stream is passed on as it comes"


async def between_the_parts(door: int) -> float:
    """Seconds between the first and the second part of a streamed answer."""
    times = []
    url, headers = f"http://127.0.0.1:{door}/v1/chat/completions", {"Host": "bot.example.com"}
    async with aiohttp.ClientSession() as session, session.post(url, headers=headers) as answer:
        async for _ in answer.content.iter_any():
            times.append(time.monotonic())
    return times[-1] - times[0]


async def closed(door: int) -> None:
    async def gone() -> bool:
        return (await ask(door, "/v1/models"))[0] == 404

    await until(gone, what="the end of the way in")


async def test_by_an_ingress(admin: Admin, operator: Operator, door: int) -> None:
    space = await Space.new(admin, "by-ingress")
    await space.make(serving={"expose": {"ingress": {**HOST, "className": "traefik"}}}, rollout=ROLLOUT)
    status = await space.wait(is_exposed("True", "Addressed"))
    assert status["url"] == "http://bot.example.com/v1"
    await served(space, door)
    await space.edit(serving={"expose": None})
    await closed(door)


async def test_by_the_gateway_api(plane: ControlPlane, admin: Admin, operator: Operator, door: int) -> None:
    space = await Space.new(admin, "by-gateway")
    plane.kubectl("create", "namespace", "gateways")
    plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(gateway(door, "Same")))
    route = {"parentRefs": [{"name": "public", "namespace": "gateways"}], "hostnames": ["bot.example.com"]}
    await space.make(serving={"expose": {"httpRoute": route}}, rollout=ROLLOUT)
    status = await space.wait(is_exposed("False", "NotAllowedByListeners"))
    assert "Gateway gateways/public does not take HTTPRoute bot" in next(
        c["message"] for c in status["conditions"] if c["type"] == "Exposed"
    )
    plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(gateway(door, "All")))
    status = await space.wait(is_exposed("True", "Accepted"))
    assert status["url"] == "http://bot.example.com/v1"
    await served(space, door)
    await space.edit(serving={"expose": None})
    await closed(door)


def gateway(port: int, namespaces: str) -> Object:
    listener = {"name": "web", "protocol": "HTTP", "port": port, "allowedRoutes": {"namespaces": {"from": namespaces}}}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "public", "namespace": "gateways"},
        "spec": {"gatewayClassName": "traefik", "listeners": [listener]},
    }  # fmt: skip
