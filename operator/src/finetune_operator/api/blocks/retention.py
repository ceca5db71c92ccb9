"""`spec.retention`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.types import Duration, SpecModel


class Retention(SpecModel):
    """How long what is done with is kept."""

    jobs: Annotated[Duration, LIVE] = Field(
        default="24h",
        description="Jobs that ended, with their pods and logs, made from now on; at least 1h, so that their results are read.",
    )
    checkpoints: Annotated[int, LIVE] = Field(
        default=0,
        ge=0,
        le=20,
        description="Attempts of a revision whose checkpoints stay, newest first, once its artifact is there; until then all do.",
    )
    revisions: Annotated[int, LIVE] = Field(
        default=5,
        ge=1,
        le=9,
        description="Artifacts kept, newest first, with their data and evaluations; besides those what is live, what was live before it and "
        "what the spec asks for. A revision that was removed is trained again when the spec asks for it.",
    )
