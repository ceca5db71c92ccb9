"""A fresh control plane for one run, the bench's namespace in it, and the operator as a process with the chart's rights."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Mapping
from typing import Any, Final

from finetune_operator import kinds

from devcluster.controlplane import ControlPlane
from tests.bench.control_plane import audit
from tests.bench.control_plane.adapters import NAMESPACE, SOURCE
from tests.bench.control_plane.api import Api, ApiError
from tests.integration import engine
from tests.integration.kubelet import storage_class

OPERATOR: Final = "operator"
GRACE_SECONDS: Final = 30.0
NAMESPACES: Final = "/api/v1/namespaces"
# Where the control plane differs from a usual one. The Job controller's own limit (20 requests a second) would be what is measured.
# There is no scheduler, so a claim waits for its first consumer for ever, and would be told so in an Event every 15 s. No kubelet says
# that the node of `machine` lives.
FLAGS: Final = {
    "kube-apiserver": ("--audit-log-maxsize=100000",),
    "controller-manager": (
        "--kube-api-qps=1000", "--kube-api-burst=2000", "--pvclaimbinder-sync-period=1h", "--node-monitor-grace-period=1h",
    ),
}  # fmt: skip


def control_plane() -> ControlPlane:
    """etcd without fsync, API server and controllers; no node and no scheduler: pods stay Pending."""
    return ControlPlane(scheduler=False, audit_policy=audit.POLICY, flags=FLAGS)


async def furnish(api: Api) -> None:
    """What every FineTune needs: the namespace with its ServiceAccount, a default StorageClass, the source that the specs name."""
    await api.call("POST", NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    storage = {**storage_class("standard", default=True), "volumeBindingMode": "WaitForFirstConsumer"}
    await api.call("POST", kinds.STORAGE_CLASS.path(), storage)
    source: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SOURCE}, "data": {"train.jsonl": "{}"}}
    await api.call("POST", kinds.CONFIGMAP.path(NAMESPACE), source)
    for _ in range(300):
        try:
            await api.call("GET", f"{NAMESPACES}/{NAMESPACE}/serviceaccounts/default")
        except ApiError:
            await asyncio.sleep(0.1)
        else:
            return
    raise TimeoutError("the namespace got no ServiceAccount")


class Operator(engine.Operator):
    """The operator, in the control plane's group of processes; its byte code is kept, as in its image."""

    def __init__(self, plane: ControlPlane, settings: Mapping[str, str]) -> None:
        super().__init__(plane, plane.home / "logs", OPERATOR)
        self._plane = plane
        del self._environment["PYTHONDONTWRITEBYTECODE"]
        self.settings = dict(settings)  # FINETUNE_…, of the next start
        self.started = 0

    def start(self) -> None:
        self._process = self._plane.spawn(OPERATOR, self._command, {**self._environment, **self.settings})
        self.started += 1

    async def end(self) -> None:
        """SIGTERM, and SIGKILL when a pod's grace is over, as a kubelet does."""
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            await self.signal(signal.SIGKILL)

    async def working(self) -> None:
        """Wait until it leads, with its caches filled, since it was last started."""
        await engine.until(lambda: self.log.read_text().count('"event": "filled"') == self.started, what="leading")
