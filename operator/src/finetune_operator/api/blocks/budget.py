"""`spec.budget`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.types import Decimal, Duration, SpecModel, Word


class Budget(SpecModel):
    """What training may cost, all attempts of all revisions together. What is spent stops it with a checkpoint; a larger one resumes."""

    max_cost: Annotated[Decimal | None, LIVE] = Field(default=None, description="By the hourly price of the accelerator's profile.")
    currency: Annotated[Word | None, LIVE] = Field(default=None, description="Of the profiles' prices; shown, not converted.")
    max_duration: Annotated[Duration | None, LIVE] = Field(default=None, description="Time in which gangs ran.")
