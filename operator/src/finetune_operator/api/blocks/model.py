"""`spec.model`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.fields import LIVE, RETRAIN
from finetune_operator.api.types import OBJECT, Name, SpecModel, Word

ModelSource = Annotated[str, Field(max_length=1024, pattern=rf"^(image:///|pvc://{OBJECT}/|hf://|https://|s3://|oci://).+$")]


class Model(SpecModel):
    """The base model."""

    source: Annotated[ModelSource, RETRAIN] = Field(
        description="image:///path in the trainer image, pvc://claim/path, hf://owner/name, or https://… of a tar archive."
    )
    revision: Annotated[Word | None, RETRAIN] = Field(
        default=None, description="Commit or tag, for hf://; the archive's sha256, for https://."
    )
    secret_name: Annotated[Name | None, LIVE] = Field(
        default=None, description="Secret whose key `token` opens the source; the pod that fetches the model alone gets it."
    )
