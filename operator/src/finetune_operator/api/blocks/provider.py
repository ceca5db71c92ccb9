"""`spec.provider`: reserved."""

from __future__ import annotations

from typing import Annotated, Literal

from finetune_operator.api.fields import RETRAIN
from finetune_operator.api.types import SpecModel


class Provider(SpecModel):
    """A hosted trainer, reserved."""

    type: Annotated[Literal["OpenAI", "Bedrock", "Vertex", "Cohere"], RETRAIN]
