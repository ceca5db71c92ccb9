"""`spec.storage`: the work volume."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_operator.api.fields import IMMUTABLE, LIVE
from finetune_operator.api.types import Name, Quantity, SpecModel


class Storage(SpecModel):
    """The work volume: models, data, checkpoints, artifacts."""

    size: Annotated[Quantity, LIVE] = Field(default="50Gi")
    storage_class_name: Annotated[Name | None, IMMUTABLE] = Field(default=None, description="Default: the cluster's.")
    access_mode: Annotated[Literal["ReadWriteOnce", "ReadWriteMany"], IMMUTABLE] = Field(default="ReadWriteOnce")
    retain: Annotated[bool, LIVE] = Field(default=True, description="Keep the volume when the FineTune is deleted.")
