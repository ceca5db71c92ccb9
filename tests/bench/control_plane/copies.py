"""A FineTune and its children again, under other names: what takes a whole life to come about is there at once. Pure.

The names of both have the same length and stand in nothing else, so that every object is as large as the one that it is a copy of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from finetune_operator import kinds
from finetune_operator.kinds import Kind

Object = dict[str, Any]
OWNERS_FIRST: Final = (
    kinds.FINETUNE, kinds.JOB, kinds.POD, kinds.CONTROLLER_REVISION, kinds.PVC, kinds.CONFIGMAP, kinds.SERVICE, kinds.PDB, kinds.DEPLOYMENT,
)  # fmt: skip
WITH_STATUS: Final = (kinds.FINETUNE, kinds.JOB, kinds.POD)  # that the operator reads
OF_THE_SERVER: Final = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "generateName")
OF_A_JOB: Final = ("controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name")


def renamed(obj: Mapping[str, Any], words: Mapping[str, str]) -> Object:
    """The object with those words replaced wherever they stand: names, and uids of owners."""
    text = json.dumps(obj)
    for old, new in words.items():
        text = text.replace(old, new)
    made: Object = json.loads(text)
    return made


def postable(kind: Kind, obj: Mapping[str, Any]) -> Object:
    """What can be made again: without what the API server sets."""
    meta = {key: value for key, value in obj["metadata"].items() if key not in OF_THE_SERVER}
    made: Object = {**obj, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}
    made.pop("status", None)
    if kind is kinds.JOB:
        template = obj["spec"]["template"]
        labels = {key: value for key, value in template["metadata"].get("labels", {}).items() if key not in OF_A_JOB}
        kept = {key: value for key, value in obj["spec"].items() if key not in ("selector", "manualSelector")}
        made["spec"] = {**kept, "template": {**template, "metadata": {**template["metadata"], "labels": labels}}}
    if kind is kinds.POD:  # the API server has written into these what it refuses to read
        made["spec"] = {key: value for key, value in obj["spec"].items() if key != "topologySpreadConstraints"}
    if kind is kinds.SERVICE and obj["spec"].get("clusterIP") != "None":
        made["spec"] = {key: value for key, value in obj["spec"].items() if key not in ("clusterIP", "clusterIPs")}
    return made


def numbered(prefix: str, count: int, first: int = 0) -> Sequence[str]:
    """Names of one length."""
    return [f"{prefix}{number:05d}" for number in range(first, first + count)]
