"""Kubernetes Events, best effort: told after the status is written, never twice the same within ten minutes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from finetune_operator import errors, logs, names
from finetune_operator.clock import Clock
from finetune_operator.cluster import Cluster
from finetune_operator.kinds import EVENT

log = logging.getLogger(__name__)
QUIET_SECONDS: Final = 600.0


class Events:
    """Emits Events about FineTunes."""

    def __init__(self, cluster: Cluster, clock: Clock, identity: str) -> None:
        self._cluster, self._clock, self._identity = cluster, clock, identity
        self._told: dict[tuple[str, str, str], float] = {}

    async def emit(self, finetune: Mapping[str, Any], type_: str, reason: str, message: str) -> None:
        """Tell it; a failing API server is logged and forgotten."""
        meta, now = finetune["metadata"], self._clock.monotonic()
        key = (meta["uid"], reason, message)
        if now - self._told.get(key, float("-inf")) < QUIET_SECONDS:
            return
        self._told = {k: t for k, t in self._told.items() if now - t < QUIET_SECONDS} | {key: now}
        try:
            await self._cluster.create(EVENT, self._event(meta, type_, reason, message))
        except (errors.ClusterError, errors.LeadershipLost) as error:
            log.warning("event", extra=logs.of(reason=reason, error=str(error)))

    def _event(self, meta: Mapping[str, Any], type_: str, reason: str, message: str) -> dict[str, Any]:
        now = self._clock.now()
        tail = hashlib.sha256(f"{meta['uid']}/{reason}/{message}/{now.timestamp()}".encode()).hexdigest()[:16]
        stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{tail}", "namespace": meta["namespace"]},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "type": type_,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self._identity,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
