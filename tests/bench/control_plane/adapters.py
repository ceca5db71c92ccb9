"""What is made N times, and which children are waited for: FineTunes, and bare Jobs as the floor.

A FineTune's first Job is its fetch, one pod, so the floor is an Indexed Job with one pod.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator import kinds, names

from tests.unit.operator.helpers import make_spec

Object = dict[str, Any]
NAMESPACE: Final = "bench"
SOURCE: Final = "data"


@dataclass(frozen=True)
class Child:
    """A kind of child, one for each object; `owner` names the object in its metadata."""

    kind: str
    path: str
    owner: Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Adapter:
    """How an object of that name looks, where it is posted, and what comes of it."""

    name: str
    collection: str
    make: Callable[[str], Object]
    children: tuple[Child, ...]
    needs_operator: bool


def _label(key: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda metadata: metadata.get("labels", {}).get(key)


def _job(name: str) -> Object:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.invalid/none:1", "command": ["true"]}]}
    spec = {"completions": 1, "parallelism": 1, "completionMode": "Indexed", "backoffLimit": 0, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def _finetune(name: str) -> Object:
    spec = make_spec(serving=None, rollout=None, data={"train": {"source": f"configmap://{SOURCE}/train.jsonl"}})
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


JOBS: Final = Adapter(
    "floor", kinds.JOB.path(NAMESPACE), _job,
    (
        Child("Job", kinds.JOB.path(NAMESPACE), lambda metadata: metadata["name"]),
        Child("Pod", kinds.POD.path(NAMESPACE), _label("batch.kubernetes.io/job-name")),
    ),
    needs_operator=False,
)  # fmt: skip
FINETUNES: Final = Adapter(
    "FineTunes", kinds.FINETUNE.path(NAMESPACE), _finetune,
    (
        Child("Job", kinds.JOB.path(NAMESPACE), _label(names.NAME)),
        Child("Pod", kinds.POD.path(NAMESPACE), _label(names.NAME)),
    ),
    needs_operator=True,
)  # fmt: skip
