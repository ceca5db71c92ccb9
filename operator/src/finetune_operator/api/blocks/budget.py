"""`spec.budget`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.rule import number, some_time
from finetune_operator.api.types import Decimal, Duration, SpecModel, Word


class Budget(SpecModel):
    """What training may cost, all attempts of all revisions together. What is spent stops it with a checkpoint; a larger one resumes."""

    max_cost: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="By the hourly price of the accelerator's profile, scoring counted, serving not: `status.cost.total`. Scoring itself "
        "is not stopped.",
    )
    currency: Annotated[Word | None, LIVE] = Field(default=None, description="Of the profiles' prices; shown, not converted.")
    max_duration: Annotated[Duration | None, LIVE] = Field(default=None, description="Time in which gangs ran.")


RULES: Final = (
    number("spec.budget", "maxCost", "double(self.maxCost) > 0.0", "must be above 0", lambda cost: cost > 0),
    some_time("spec.budget", "maxDuration"),
)  # fmt: skip
