"""Sources (`configmap://name/key`, `pvc://claim/path`, …): how each reaches a pod."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_operator import names
from finetune_operator.api.spec import Spec
from finetune_operator.build.pods import Manifest


@dataclass(frozen=True)
class Source:
    """A source, taken apart: `name` is a ConfigMap or a claim where the scheme has one."""

    slot: str
    uri: str
    scheme: str
    name: str
    path: str
    secret: str | None = None

    @property
    def mount(self) -> str | None:
        """Where the pod finds the file, or None for what the trainer fetches itself."""
        if self.scheme == "configmap":
            return f"{names.SOURCES_DIR}/{self.slot}/{self.path.rsplit('/', 1)[-1]}"
        if self.scheme == "pvc":
            return f"{names.SOURCES_DIR}/{self.slot}/{self.path}"
        return None

    @property
    def secret_mount(self) -> str | None:
        """Where the pod finds the keys of the Secret that opens the source."""
        return f"{names.SECRETS_DIR}/{self.slot}" if self.secret else None


def parse(slot: str, uri: str, secret: str | None = None) -> Source:
    """`slot` names the use: model, train, validation, test, mix-0, schema-0, …"""
    scheme, _, rest = uri.partition("://")
    if scheme in ("configmap", "pvc"):
        name, _, path = rest.partition("/")
        return Source(slot, uri, scheme, name, path, secret)
    return Source(slot, uri, scheme, "", rest, secret)


def of_model(spec: Spec) -> Source:
    """The base model's source."""
    return parse("model", spec.model.source)


def of_data(spec: Spec) -> Iterator[Source]:
    """The data sets that prepare reads."""
    for slot in ("train", "validation", "test"):
        if (given := getattr(spec.data, slot)) is not None:
            yield parse(slot, given.source, given.secret_name)
    for index, mix in enumerate(spec.data.mix or ()):
        yield parse(f"mix-{index}", mix.source, mix.secret_name)


def of_metrics(spec: Spec) -> Iterator[Source]:
    """What the metrics read, one slot per metric that needs something."""
    for index, metric in enumerate((spec.evaluation.metrics if spec.evaluation else None) or ()):
        for block in (metric.sql_execution, metric.json_schema):
            if block is not None and block.schema_source is not None:
                yield parse(f"schema-{index}", block.schema_source)


def of_stage(spec: Spec, stage: str) -> list[Source]:
    """The sources that a stage's pods read."""
    if stage == "fetch":
        return [of_model(spec)]
    if stage == "prepare":
        return list(of_data(spec))
    if stage in names.SCORING:
        return list(of_metrics(spec))
    return []


def volumes(sources: list[Source]) -> tuple[list[Manifest], list[Manifest]]:
    """(volumes, volumeMounts) of the sources that are mounted, and of the Secrets that open others."""
    made: list[Manifest] = []
    mounts: list[Manifest] = []
    for source in sources:
        if source.secret is not None:
            made.append({"name": f"secret-{source.slot}", "secret": {"secretName": source.secret}})
            mounts.append({"name": f"secret-{source.slot}", "mountPath": source.secret_mount, "readOnly": True})
        if source.mount is None:
            continue
        volume = f"source-{source.slot}"
        if source.scheme == "configmap":
            item = {"key": source.path, "path": source.path.rsplit("/", 1)[-1]}
            made.append({"name": volume, "configMap": {"name": source.name, "items": [item]}})
        else:
            made.append({"name": volume, "persistentVolumeClaim": {"claimName": source.name, "readOnly": True}})
        mounts.append({"name": volume, "mountPath": f"{names.SOURCES_DIR}/{source.slot}", "readOnly": True})
    return made, mounts
