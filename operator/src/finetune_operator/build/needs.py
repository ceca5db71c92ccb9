"""What a child mounts or leads to by name: children of the same FineTune, without which it would be somebody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_operator import names
from finetune_operator.build.upstreams import hosts
from finetune_operator.kinds import CONFIGMAP, CONTROLLER_REVISION, DEPLOYMENT, EXPOSURES, HPA, JOB, PVC, SERVICE, Kind


def needs(kind: Kind, child: Mapping[str, Any]) -> Iterator[tuple[Kind, str]]:
    """Kind and name of each. Sources that the user names are among them, too: they are children of nobody."""
    name = child["metadata"]["name"]
    if kind in (JOB, DEPLOYMENT):
        yield from _mounted(child["spec"]["template"]["spec"].get("volumes") or ())
    if kind is DEPLOYMENT and child["metadata"]["labels"].get(names.ARM):  # once it is ready, users are led to its Service
        yield from ((CONTROLLER_REVISION, name), (SERVICE, name))
    if kind is CONFIGMAP:
        yield from ((SERVICE, host) for host in hosts(json.loads(child["data"]["cds.json"])))
    if kind is HPA:
        yield DEPLOYMENT, name
    if kind in EXPOSURES:
        yield SERVICE, name


def _mounted(volumes: Any) -> Iterator[tuple[Kind, str]]:
    for volume in volumes:
        if "configMap" in volume:
            yield CONFIGMAP, volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield PVC, volume["persistentVolumeClaim"]["claimName"]
