"""`spec.storage`: the work volume."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.fields import IMMUTABLE, LIVE
from finetune_operator.api.rule import Rule, comparable
from finetune_operator.api.types import Name, Quantity, SpecModel


class Storage(SpecModel):
    """The work volume: models, data, checkpoints, artifacts."""

    size: Annotated[Quantity, LIVE] = Field(default="50Gi")
    storage_class_name: Annotated[Name | None, IMMUTABLE] = Field(default=None, description="Default: the cluster's.")
    access_mode: Annotated[Literal["ReadWriteOnce", "ReadWriteMany"], IMMUTABLE] = Field(default="ReadWriteOnce")
    retain: Annotated[bool, LIVE] = Field(default=True, description="Keep the volume when the FineTune is deleted.")


CHANGES: Final = (
    Rule(
        "spec.storage", "storageClassName",
        "has(self.storageClassName) == has(oldSelf.storageClassName) && "
        "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        "cannot change once the volume is made; make a new FineTune",
        None,
    ),
    Rule(
        "spec.storage.accessMode", "",
        "self == oldSelf",
        "cannot change once the volume is made; make a new FineTune",
        None,
    ),
    Rule(
        "spec.storage.size", "",
        f"!({comparable('self', 'oldSelf')}) || quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0",
        "a volume can grow but never shrink; keep the old size or make a new FineTune",
        None,
    ),
)  # fmt: skip
