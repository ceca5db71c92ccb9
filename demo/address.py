"""The users' address, as this machine reaches it: the Service's ClusterIP on the built-in node, else port-forwards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from demo.kube import DemoError, Kubectl, child, reader

TRAFFIC_PORT = 10000  # the routers' port for users
PROBES, PROBE_SECONDS, PROBE_PAUSE = 3, 2, 0.5
FORWARD_SECONDS = 20
FORWARDING = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+)")


def cluster_ip(kubectl: Kubectl, namespace: str, name: str) -> str | None:
    """http://… of the users' Service inside the cluster, or None while there is none."""
    service = kubectl.get("-n", namespace, "service", name)
    if service is None:
        return None
    port = service["spec"]["ports"][0]["port"]
    return f"http://{service['spec']['clusterIP']}" + ("" if port == 80 else f":{port}")


@asynccontextmanager
async def reachable(kubectl: Kubectl, session: aiohttp.ClientSession, namespace: str, name: str) -> AsyncIterator[list[str]]:
    """Base addresses that work from here while the block lasts: the Service's, or one port-forward per router."""
    direct = await asyncio.to_thread(cluster_ip, kubectl, namespace, name)
    if direct is None:
        raise DemoError(f"Service {namespace}/{name}, the users' address, is not there")
    if await _connects(session, direct):
        yield [direct]
        return
    async with AsyncExitStack() as stack:
        pods = await asyncio.to_thread(router_pods, kubectl, namespace, name)
        yield [await stack.enter_async_context(_forward(kubectl, namespace, pod)) for pod in pods]


def router_pods(kubectl: Kubectl, namespace: str, name: str) -> list[str]:
    """Names of the running router pods."""
    selector = f"finetune.dev/name={name},finetune.dev/component=router"
    found = kubectl.get("-n", namespace, "pods", "-l", selector, "--field-selector", "status.phase=Running")
    names = [pod["metadata"]["name"] for pod in (found or {}).get("items", [])]
    if not names:
        raise DemoError(f"no router pod of {namespace}/{name} is running")
    return names


async def _connects(session: aiohttp.ClientSession, base: str) -> bool:
    """Whether a router answers there soon; without x-finetune-arm it is somebody else."""
    for _ in range(PROBES):
        try:
            async with session.get(f"{base}/v1/models", timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as response:
                if "x-finetune-arm" in response.headers:
                    return True
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(PROBE_PAUSE)
    return False


@asynccontextmanager
async def _forward(kubectl: Kubectl, namespace: str, pod: str) -> AsyncIterator[str]:
    command = [*kubectl.command, "-n", namespace, "port-forward", f"pod/{pod}", f":{TRAFFIC_PORT}"]
    async with child(command, kubectl.env) as process:
        line = await asyncio.wait_for(reader(process).readline(), FORWARD_SECONDS)
        found = FORWARDING.search(line)
        if not found:
            raise DemoError(f"kubectl port-forward to {pod} did not start: {line.decode().strip()}")
        yield f"http://127.0.0.1:{int(found[1])}"
