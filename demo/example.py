"""The example in the cluster: its namespace made anew, its ConfigMaps made from files, its FineTune applied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.cluster import REPOSITORY, step
from demo.kube import Kubectl

FOLDER = REPOSITORY / "examples" / "text-to-sql"
FILES = {"shop-questions": ("train.jsonl", "questions.jsonl"), "shop-schema": ("schema.sql", "schema.sql")}


@dataclass(frozen=True)
class Example:
    """What the demo needs to know of the FineTune it applied."""

    name: str
    namespace: str
    model: str
    weights: tuple[int, ...]
    replicas: int

    @property
    def target(self) -> tuple[str, ...]:
        """kubectl's words that name it."""
        return ("-n", self.namespace, "finetune", self.name)


def load(folder: Path = FOLDER) -> Example:
    """The example as its manifest says."""
    manifest = yaml.safe_load((folder / "finetune.yaml").read_text())
    metadata, spec = manifest["metadata"], manifest["spec"]
    return Example(
        name=metadata["name"],
        namespace=metadata["namespace"],
        model=spec["serving"].get("modelName", metadata["name"]),
        weights=tuple(step["weight"] for step in spec["rollout"]["steps"]),
        replicas=spec["serving"].get("replicas", 1),
    )


def config_map(name: str, namespace: str, key: str, text: str) -> dict[str, Any]:
    """A ConfigMap that holds one file."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: text},
    }


def manifests(namespace: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All of the example: namespace, ConfigMaps, FineTune."""
    maps = [config_map(name, namespace, key, (folder / file).read_text()) for name, (key, file) in FILES.items()]
    space: dict[str, Any] = yaml.safe_load((folder / "namespace.yaml").read_text())
    return [space, *maps, yaml.safe_load((folder / "finetune.yaml").read_text())]


def apply(kubectl: Kubectl, example: Example) -> None:
    """Remove what an earlier demo left, then apply the example afresh."""
    if kubectl.get("namespace", example.namespace):
        with step(f"removing namespace {example.namespace} of an earlier demo"):
            kubectl.remove_namespace(example.namespace)
    with step(f"applying {FOLDER.relative_to(REPOSITORY)}"):
        for manifest in manifests(example.namespace):
            kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))


def system(folder: Path = FOLDER) -> dict[str, str]:
    """The system message of the data set's rows: the schema in short."""
    first = json.loads((folder / "questions.jsonl").read_text().splitlines()[0])
    message: dict[str, str] = first["messages"][0]
    return message
