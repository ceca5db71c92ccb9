"""`spec.evaluation`: scores, and the gate that asks for them."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from finetune_operator.api.blocks.data import DataSource
from finetune_operator.api.blocks.resources import Resources, of_container
from finetune_operator.api.fields import LIVE, REEVALUATE
from finetune_operator.api.rule import Node, Rule, some_time
from finetune_operator.api.types import Decimal, Duration, SpecModel


class SqlExecution(SpecModel):
    """Answers are SQL: executed on SQLite, results compared."""

    schema_source: Annotated[DataSource, REEVALUATE] = Field(
        alias="schema", description="configmap://name/key of a script that makes and fills the tables."
    )


class JsonSchema(SpecModel):
    """Answers are JSON, valid against a schema."""

    schema_source: Annotated[DataSource | None, REEVALUATE] = Field(
        default=None,
        alias="schema",
        description="configmap://name/key of a JSON schema for all answers; a row's own, in its field json_schema, comes first.",
    )


@lru_cache(maxsize=256)
def _unusable(pattern: str) -> str | None:
    """Why Python cannot compile a pattern; None: it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that a later Python may read otherwise
            re.compile(pattern)
    except RecursionError:
        return "it nests too deep"
    except (re.error, OverflowError) as error:
        return str(error)
    return None


def _compiles(pattern: str) -> str:
    if (why := _unusable(pattern)) is not None:
        raise ValueError(f"is no regular expression of Python ({why})")
    return pattern


class Regex(SpecModel):
    """A part of the answer counts: what a pattern finds in it is compared with what it finds in the reference."""

    pattern: Annotated[str, AfterValidator(_compiles), REEVALUATE] = Field(
        min_length=1,
        max_length=1000,
        description="In the syntax of Python's re. Its first match, or that one's first group if the pattern has groups, is compared without "
        "white space at its ends; it must find something in each reference.",
    )


Argument = Annotated[str, Field(max_length=4096)]


class Custom(SpecModel):
    """Answers are scored by an image of your own, which finds them in /metric/in/rows.jsonl and leaves /metric/out/scores.jsonl."""

    image: Annotated[str, REEVALUATE] = Field(
        min_length=1, max_length=512, description="Best by its digest: both models must be judged by the same one."
    )
    command: Annotated[list[Argument] | None, REEVALUATE] = Field(
        default=None, max_length=64, description="Default: the image's entrypoint."
    )
    args: Annotated[list[Argument] | None, REEVALUATE] = Field(default=None, max_length=64, description="Default: the image's.")
    timeout: Annotated[Duration, LIVE] = Field(
        default="10m", description="Of the scoring of all answers of one model; deadlines.scoring bounds the whole evaluation."
    )
    resources: Annotated[Resources | None, LIVE] = Field(
        default=None, description="Of its container; cpu 100m and memory 256Mi are requested where neither a request nor a limit is given."
    )


class Metric(SpecModel):
    """One way to score an answer, 0…1."""

    type: Annotated[
        Literal["ExactMatch", "Contains", "Regex", "TokenF1", "RougeL", "SqlExecution", "JsonSchema", "JsonEqual", "Custom"], REEVALUATE
    ] = Field(
        description="ExactMatch: the answer is the reference. Contains: the reference stands in it. Regex: a pattern finds the same in both. "
        "TokenF1: words in common, in any order. RougeL: words in common, in their order. SqlExecution: both are SQL that gives the same rows. "
        "JsonSchema: it is JSON and valid against a schema. JsonEqual: both are the same JSON. "
        "Custom: an image of your own says so."
    )
    sql_execution: SqlExecution | None = None
    regex: Regex | None = None
    json_schema: JsonSchema | None = None
    custom: Custom | None = None


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


class FewShot(SpecModel):
    """What a prompt alone would do: the base model is asked some of the test rows once more, with solved training rows before each. It is advice,
    and stops nothing."""

    examples: Annotated[int, LIVE] = Field(
        default=4, ge=0, le=16, description="Before each question, where so many fit into training.maxSequenceLength; 0: it is not done."
    )
    rows: Annotated[int, LIVE] = Field(
        default=16, ge=1, le=100_000, description="Of the test split, chosen by content hash; more make its interval narrower."
    )


class Evaluation(SpecModel):
    """Scores on the sealed test split; without metrics the loss is compared, in bits per byte of the answers (or Texts)."""

    metrics: list[Metric] | None = Field(default=None, max_length=8, description="The first one is gated.")
    max_new_tokens: Annotated[int, REEVALUATE] = Field(default=128, ge=1, le=65536, description="Of an answer to a test row.")
    skip_training_if_baseline_at_least: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="No training (phase NotNeeded) where the base model, or the revision that is live, already scores this much by the first "
        "metric; default: it is always trained. docs/evaluation.md suggests a policy.",
    )
    few_shot: FewShot | None = Field(default=None, description="Default: 4 examples, 16 rows.")
    gate: Gate | None = None


def _types_differ(evaluation: Node) -> bool:
    types = [metric["type"] for metric in evaluation.get("metrics", ())]
    return len(set(types)) == len(types)


RULES: Final = (
    Rule(
        "spec.evaluation", "metrics",
        "!has(self.metrics) || self.metrics.all(a, self.metrics.exists_one(b, b.type == a.type))",
        "two have the same type, by which scores are told apart; leave one out",
        _types_differ,
    ),
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
    Rule(
        "spec.evaluation.metrics[]", "regex",
        "(self.type == 'Regex') == has(self.regex)",
        "belongs to type Regex, which needs it: write the pattern there",
        lambda metric: (metric["type"] == "Regex") == ("regex" in metric),
    ),
    Rule(
        "spec.evaluation.metrics[]", "jsonSchema",
        "self.type == 'JsonSchema' || !has(self.jsonSchema)",
        "belongs to type JsonSchema; set that type, or leave it out",
        lambda metric: metric["type"] == "JsonSchema" or "jsonSchema" not in metric,
    ),
    Rule(
        "spec.evaluation.metrics[]", "custom",
        "(self.type == 'Custom') == has(self.custom)",
        "belongs to type Custom, which needs it: name the image there",
        lambda metric: (metric["type"] == "Custom") == ("custom" in metric),
    ),
    some_time("spec.evaluation.metrics[].custom", "timeout"),
    *of_container("spec.evaluation.metrics[].custom.resources"),
)  # fmt: skip
