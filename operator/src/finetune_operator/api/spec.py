"""`FineTune.spec`: the one source of truth. The CRD, the reference page and the field classes are generated from here.
Its blocks are in `blocks`, one a file.

Field classes (what an edit does) are markers on the leaves: Retrain makes a new revision, Reevaluate scores again,
Redeploy makes a new arm (and so a canary), Live changes in place, Immutable is refused by the API server.
What the schema has but no code yet does is listed in `rules.NOT_YET` and refused, never silently ignored.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_operator.api.blocks.budget import Budget
from finetune_operator.api.blocks.compute import Compute
from finetune_operator.api.blocks.data import Data
from finetune_operator.api.blocks.deadlines import Deadlines
from finetune_operator.api.blocks.economics import Economics
from finetune_operator.api.blocks.evaluation import Custom, Evaluation
from finetune_operator.api.blocks.method import Method
from finetune_operator.api.blocks.model import Model
from finetune_operator.api.blocks.pods import Pods
from finetune_operator.api.blocks.provider import Provider
from finetune_operator.api.blocks.retention import Retention
from finetune_operator.api.blocks.retries import Retries
from finetune_operator.api.blocks.rollout import Rollout
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.api.blocks.storage import Storage
from finetune_operator.api.blocks.training import Training
from finetune_operator.api.fields import LIVE, RETRAIN
from finetune_operator.api.types import SpecModel, Word


class Spec(SpecModel):
    """From a base model and a data set to a tuned model that serves."""

    model: Model
    data: Data
    method: Method
    training: Training | None = None
    compute: Compute = Compute()
    storage: Storage = Storage()
    retries: Retries = Retries()
    deadlines: Deadlines = Deadlines()
    evaluation: Evaluation | None = None
    serving: Serving | None = None
    rollout: Rollout = Rollout()
    pods: Pods | None = None
    budget: Budget | None = None
    economics: Economics | None = None
    retention: Retention = Retention()
    provider: Provider | None = None
    retrain: Annotated[Word | None, RETRAIN] = Field(default=None, description="A new value trains again on purpose.")
    suspend: Annotated[bool, LIVE] = Field(default=False, description="Stop training (a checkpoint is kept) and hold the rollout.")

    @property
    def own_metric(self) -> Custom | None:
        """The metric that an image of the user's scores; None: there is none."""
        metrics = (self.evaluation.metrics if self.evaluation else None) or ()
        return next((metric.custom for metric in metrics if metric.custom), None)

    @property
    def gradient_checkpointing(self) -> str:
        """Auto, Always or Never."""
        return (self.training and self.training.gradient_checkpointing) or "Auto"
