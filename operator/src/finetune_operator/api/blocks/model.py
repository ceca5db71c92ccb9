"""`spec.model`."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.fields import LIVE, RETRAIN
from finetune_operator.api.rule import Node, Rule
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


def _archive_has_digest(model: Node) -> bool:
    digest = re.match(r"^(sha256:)?[0-9a-fA-F]{64}$", model.get("revision", ""))
    return not model["source"].startswith("https://") or digest is not None


RULES: Final = (
    Rule(
        "spec.model", "revision",
        "!self.source.startsWith('https://') || (has(self.revision) && self.revision.matches('^(sha256:)?[0-9a-fA-F]{64}$'))",
        "an https:// model is an archive whose sha256 must be given here",
        _archive_has_digest,
    ),
)  # fmt: skip
