"""`spec.deadlines`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.rule import some_time
from finetune_operator.api.types import Duration, SpecModel


class Deadlines(SpecModel):
    """How long is waited for a Job's pods, and how long a stage may take. What is later ends with its reason, and is tried again within
    `retries` unless no retry mends it; what it had done by then is gone on from. A ConfigMap, a claim or a StorageClass that is not there yet
    is waited for for ever, for no pod is made before."""

    admission: Annotated[Duration | None, LIVE] = Field(
        default=None, description="Until a queue admits a Job; then the FineTune stops. Default: for ever, as queues may take days."
    )
    schedule: Annotated[Duration | None, LIVE] = Field(
        default=None,
        description="Until a pod has a machine, or the API server lets it be made; then an infrastructure failure. Default: for ever, as a "
        "cluster may be full for days: `Ready` says what is lacking, and what has no machine costs none.",
    )
    start: Annotated[Duration, LIVE] = Field(
        default="2h",  # more than a clock makes of nothing that is an hour off for a while
        description="Until a pod that has a machine has its image, volumes and Secrets; then an infrastructure failure, or the end where "
        "what it lacks is for the user to mend.",
    )
    fetch: Annotated[Duration, LIVE] = Field(
        default="24h",
        description="To fetch the model, since its pod came to its machine; the next try goes on from it. Where `schedule` is set, a Job "
        "that runs already ends itself at the latest after `schedule`, `start` and this as they were when it was made.",
    )
    prepare: Annotated[Duration, LIVE] = Field(default="24h", description="To prepare the data, likewise.")
    scoring: Annotated[Duration, LIVE] = Field(default="6h", description="To score a model on the test split, likewise.")


WAITS: Final = ("admission", "schedule", "start")
STAGES: Final = ("fetch", "prepare", "scoring")
RULES: Final = tuple(some_time("spec.deadlines", name) for name in (*WAITS, *STAGES))


def of_stage(stage: str) -> str:
    """The field that bounds a stage: its own, or `scoring`."""
    return stage if stage in STAGES else "scoring"
