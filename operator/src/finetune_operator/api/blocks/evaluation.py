"""`spec.evaluation`: scores, and the gate that asks for them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.blocks.data import DataSource
from finetune_operator.api.fields import LIVE, REEVALUATE
from finetune_operator.api.rule import Rule
from finetune_operator.api.types import Decimal, SpecModel


class SqlExecution(SpecModel):
    """Answers are SQL: executed on SQLite, results compared."""

    schema_source: Annotated[DataSource, REEVALUATE] = Field(
        alias="schema", description="configmap://name/key of a script that makes and fills the tables."
    )


class Metric(SpecModel):
    """One way to score an answer, 0…1."""

    type: Annotated[Literal["ExactMatch", "SqlExecution"], REEVALUATE]
    sql_execution: SqlExecution | None = None


class Gate(SpecModel):
    """What the tuned model must reach before any user is moved."""

    min_score: Annotated[Decimal | None, LIVE] = Field(
        default=None, description="Of the score itself: 0…1 with a metric, minus bits per byte (below 0) without."
    )
    min_improvement: Annotated[Decimal | None, LIVE] = Field(
        default=None, description="Over the base model, of the interval's lower bound; default: above 0."
    )
    min_improvement_over_live: Annotated[Decimal | None, LIVE] = Field(
        default=None, description="Over the live revision; default: not provably worse."
    )
    max_forgetting_percent: Annotated[int | None, LIVE] = Field(
        default=None,
        ge=0,
        le=100,
        description="How much the perplexity of general text may rise over the base model's, of the interval's lower bound; default: any.",
    )
    max_serving_divergence: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="How far the model as served may be from the model as trained: KL of the next token on test answers, its mean in nats; "
        "of a FineTune without serving, as the server that answers its evaluation has it; default: any.",
    )


class Evaluation(SpecModel):
    """Scores on the sealed test split; without metrics the loss is compared, in bits per byte of the answers (or Texts)."""

    metrics: list[Metric] | None = Field(default=None, max_length=8, description="The first one is gated.")
    max_new_tokens: Annotated[int, REEVALUATE] = Field(default=128, ge=1, le=65536)
    skip_training_if_baseline_at_least: Annotated[Decimal | None, LIVE] = None
    gate: Gate | None = None


RULES: Final = (
    Rule(
        "spec.evaluation.gate", "maxServingDivergence",
        "!has(self.maxServingDivergence) || double(self.maxServingDivergence) >= 0.0",
        'must not be below 0; rounding to bfloat16 alone took 0.0043 of a model of 135M weights: see what yours has before you limit it',
        lambda gate: float(gate.get("maxServingDivergence", 0)) >= 0,
    ),
    Rule(
        "spec.evaluation.metrics[]", "sqlExecution",
        "(self.type == 'SqlExecution') == has(self.sqlExecution)",
        "belongs to type SqlExecution, which needs it: name the schema there",
        lambda metric: (metric["type"] == "SqlExecution") == ("sqlExecution" in metric),
    ),
)  # fmt: skip
