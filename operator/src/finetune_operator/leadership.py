"""One writer at a time: a Lease of our own elector. `may_write` is asked before every write.

Invariant: a process may write only until `renewed + LEASE_SECONDS - MARGIN` by its own monotonic clock, and nobody takes the
Lease before LEASE_SECONDS have passed since the last renewal that it saw: an ex-leader that was frozen finds itself too late.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from finetune_operator import errors, logs
from finetune_operator.clock import Clock
from finetune_operator.cluster import Cluster
from finetune_operator.kinds import LEASE

log = logging.getLogger(__name__)
LEASE_SECONDS: Final = 15
RENEW_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0  # after a renewal that failed
MARGIN_SECONDS: Final = 3.0
Object = Mapping[str, Any]


class Elector:
    """Acquires, renews and releases the Lease. `cluster` must not ask this elector for leave to write."""

    def __init__(self, cluster: Cluster, clock: Clock, namespace: str, name: str, identity: str) -> None:
        self._cluster = cluster
        self._clock = clock
        self._namespace, self._name, self._identity = namespace, name, identity
        self._deadline = float("-inf")
        self._seen: tuple[Any, float] | None = None  # (what the Lease said, when that was first seen)
        self._held: Object | None = None  # as this process wrote it last; whatever somebody else wrote since is a conflict

    @property
    def leading(self) -> bool:
        """May this process write now?"""
        return self._clock.monotonic() < self._deadline

    def may_write(self) -> None:
        """LeadershipLost when the Lease's deadline has passed."""
        if not self.leading:
            raise errors.LeadershipLost(f"{self._identity} does not hold Lease {self._namespace}/{self._name} any more")

    async def acquire(self) -> None:
        """Wait until this process leads."""
        while not await self._try():
            await asyncio.sleep(RENEW_SECONDS / 2)
        log.info("leading", extra=logs.of(lease=f"{self._namespace}/{self._name}", identity=self._identity))

    async def keep(self) -> None:
        """Renew until leadership is lost: raises LeadershipLost."""
        while True:
            fresh = self._deadline - self._clock.monotonic() > LEASE_SECONDS - MARGIN_SECONDS - RENEW_SECONDS
            await asyncio.sleep(RENEW_SECONDS if fresh else RETRY_SECONDS)
            self.may_write()  # what was frozen past its deadline must not go on with the work that it had begun
            await self._try()
            self.may_write()

    async def release(self) -> None:
        """Give the Lease up, so that a successor need not wait."""
        if not self.leading:
            return
        self._deadline = float("-inf")
        lease = await self._cluster.get(LEASE, self._namespace, self._name)
        if lease and lease["spec"].get("holderIdentity") == self._identity:
            spec = {**lease["spec"], "holderIdentity": "", "renewTime": _stamp(self._clock.now()), "leaseDurationSeconds": 1}
            await self._cluster.replace(LEASE, {**lease, "spec": spec})

    async def _try(self) -> bool:
        """One attempt to acquire or renew; a failing API server is no answer, and the deadline goes on running."""
        asked = self._clock.monotonic()
        try:
            lease = self._held or await self._cluster.get(LEASE, self._namespace, self._name)
            if lease is None:
                self._held = await self._cluster.create(LEASE, self._lease(None))
            elif self._free(lease, asked):
                self._held = await self._cluster.replace(LEASE, self._lease(lease))
            else:
                return False
        except (errors.AlreadyExists, errors.Conflict, errors.NotFound):
            self._held = None
            return False
        except errors.ClusterError as error:
            log.warning("lease", extra=logs.of(error=str(error)))
            return self.leading
        self._deadline = asked + LEASE_SECONDS - MARGIN_SECONDS
        return True

    def _free(self, lease: Object, now: float) -> bool:
        """Ours, given up, or not renewed for its whole duration while we watched."""
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        said = (holder, spec.get("renewTime"))
        if self._seen is None or self._seen[0] != said:
            self._seen = (said, now)
            return False
        return now - self._seen[1] >= float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    def _lease(self, current: Object | None) -> dict[str, Any]:
        now = _stamp(self._clock.now())
        before = dict((current or {}).get("spec") or {})
        ours = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "leaseTransitions": int(before.get("leaseTransitions", 0)) + (0 if ours or current is None else 1),
        }
        metadata = (current or {}).get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
