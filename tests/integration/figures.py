"""A metrics server whose figures are the test's: what an autoscaler reads of pods' CPU, on a real API server."""

from __future__ import annotations

import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import web
from finetune_operator import kinds, names

from devcluster.controlplane import ControlPlane
from tests import aggregated
from tests.integration.kubelet import Admin

NAMESPACE: Final = "figures"
SERVICE: Final = "metrics-server"
API: Final = "v1beta1.metrics.k8s.io"
PATH: Final = "/apis/metrics.k8s.io/v1beta1"


def certificates(folder: Path) -> None:
    """Whom the API server, begun with `aggregated.flags`, is to trust."""
    aggregated.certificates(folder, SERVICE, NAMESPACE)


class Figures:
    """`load`: thousandths of a CPU that the users of each arm take, which its pods share."""

    def __init__(self, plane: ControlPlane, admin: Admin, folder: Path) -> None:
        self.load: Mapping[str, int] = {}
        self._plane, self._admin, self._folder = plane, admin, folder

    @contextlib.asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Answer the API server while the block lasts."""
        app = web.Application()
        app.add_routes([web.get(PATH, self._group), web.get(f"{PATH}/namespaces/{{namespace}}/pods", self._pods)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._folder / "serving.crt", self._folder / "serving.key")
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        made = yaml.safe_dump_all(aggregated.registration(self._folder, API, SERVICE, NAMESPACE, port))
        self._plane.kubectl("apply", "-f", "-", stdin=made)
        try:
            yield
        finally:
            self._plane.kubectl("delete", "apiservice", API)
            await runner.cleanup()

    async def _group(self, _: web.Request) -> web.Response:
        return web.json_response({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1", "resources": []})

    async def _pods(self, request: web.Request) -> web.Response:
        found = await self._admin.list(kinds.POD, request.match_info["namespace"], request.query.get("labelSelector", ""))
        arms = {pod["metadata"]["name"]: pod["metadata"]["labels"].get(names.ARM, "") for pod in found}
        shared, now = Counter(arms.values()), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        items: list[dict[str, Any]] = [
            {
                "metadata": {"name": name, "namespace": request.match_info["namespace"]}, "timestamp": now, "window": "1s",
                "containers": [{"name": "server", "usage": {"cpu": f"{self.load.get(arm, 0) * 1000 // shared[arm]}u"}}],
            }
            for name, arm in arms.items()
        ]  # fmt: skip
        return web.json_response({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items})
