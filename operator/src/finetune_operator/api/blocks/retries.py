"""`spec.retries`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.types import SpecModel


class Retries(SpecModel):
    """Failed tries that are borne, by class; disruptions are never charged."""

    error: Annotated[int, LIVE] = Field(default=2, ge=0, le=100)
    out_of_memory: Annotated[int, LIVE] = Field(default=2, ge=0, le=100)
    infrastructure: Annotated[int, LIVE] = Field(default=10, ge=0, le=1000)
