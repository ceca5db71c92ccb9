"""Are the things that the spec names there? Asked before a stage's Job is made, for a pod that waits says it badly.

Secrets are not asked for (the operator has no right to read them): a missing one shows in the container's waiting reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from finetune_operator import conditions, kinds
from finetune_operator.api.spec import Spec
from finetune_operator.build.sources import Source, of_stage
from finetune_operator.clock import Clock
from finetune_operator.cluster import Cluster
from finetune_operator.workloads.run import Waiting

BY_ITSELF: Final = "It goes on by itself once that is there."
REMEMBERED_SECONDS: Final = 300.0


class StorageClasses:
    """The cluster's StorageClasses: what was there a few minutes ago is taken to be there, what was not is asked for again."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._names: frozenset[str] = frozenset()
        self._until = float("-inf")
        self._asking = asyncio.Lock()

    async def has(self, name: str) -> bool:
        """Is there one of that name? Empty: a default one."""
        async with self._asking:  # of many FineTunes at once, one asks
            if name not in self._names or self._clock.monotonic() > self._until:
                found = await self._cluster.list(kinds.STORAGE_CLASS)
                self._until = self._clock.monotonic() + REMEMBERED_SECONDS
                self._names = frozenset([*(c["metadata"]["name"] for c in found), *("" for c in found if _is_default(c))])
            return name in self._names


def _is_default(storage_class: Mapping[str, Any]) -> bool:
    annotations = storage_class["metadata"].get("annotations") or {}
    return bool(annotations.get("storageclass.kubernetes.io/is-default-class") == "true")


async def missing(cluster: Cluster, classes: StorageClasses, namespace: str, spec: Spec, stage: str) -> Waiting | None:
    """The first thing that a stage needs and that is not there."""
    if stage == "fetch" and (found := await _storage(classes, spec)):
        return found
    for source in of_stage(spec, stage):
        if found := await _source(cluster, namespace, source):
            return found
    return None


async def _storage(classes: StorageClasses, spec: Spec) -> Waiting | None:
    name = spec.storage.storage_class_name or ""
    if await classes.has(name):
        return None
    if name:
        return Waiting(conditions.STORAGE_CLASS_MISSING, f"storage.storageClassName: StorageClass {name} does not exist. {BY_ITSELF}")
    text = (
        f"storage.storageClassName is not set and the cluster has no default StorageClass. Name one, or make one the default. {BY_ITSELF}"
    )
    return Waiting(conditions.STORAGE_CLASS_MISSING, text)


async def _source(cluster: Cluster, namespace: str, source: Source) -> Waiting | None:
    if source.scheme == "configmap":
        found = await cluster.get(kinds.CONFIGMAP, namespace, source.name)
        if found is None:
            return _gone(source, f"ConfigMap {source.name} does not exist in namespace {namespace}")
        keys = [*(found.get("data") or {}), *(found.get("binaryData") or {})]
        if source.path not in keys:
            return _gone(source, f"ConfigMap {source.name} has no key {source.path} (it has: {', '.join(sorted(keys)) or 'none'})")
    if source.scheme == "pvc" and await cluster.get(kinds.PVC, namespace, source.name) is None:
        return _gone(source, f"PersistentVolumeClaim {source.name} does not exist in namespace {namespace}")
    return None


def _gone(source: Source, what: str) -> Waiting:
    return Waiting(conditions.SOURCE_MISSING, f"{source.uri}: {what}. {BY_ITSELF}")
