"""From replies to scores, and from scores to what the result says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_trainer.config import EvaluationConfig, MetricConfig, RunConfig
from finetune_trainer.evaluate import contains, custom, jsons, overlap, sql
from finetune_trainer.evaluate.client import Reply
from finetune_trainer.evaluate.exact import exact_match
from finetune_trainer.evaluate.pattern import Pattern
from finetune_trainer.evaluate.rows import ScoredRow, TestRow
from finetune_trainer.evaluate.running import Meter
from finetune_trainer.evaluate.statistics import bootstrap, paired_differences
from finetune_trainer.exits import JsonObject, UserError
from finetune_trainer.progress import Progress

DIGITS = 6


@dataclass(frozen=True)
class Scorer:
    """One metric: the score of an answer to a row, and a check of the row's reference that raises UserError."""

    name: str
    score: Callable[[str, TestRow], tuple[float, str]]
    check: Callable[[TestRow], None]


# What needs nothing but answer and reference, and can score any of them.
OfTexts = Callable[[str, str], tuple[float, str]]
OF_TEXTS: Final[Mapping[str, OfTexts]] = {
    "ExactMatch": lambda answer, reference: (exact_match(answer, reference), ""),
    "TokenF1": overlap.token_f1,
    "RougeL": overlap.rouge_l,
}


def scorers(metrics: Sequence[MetricConfig]) -> list[Scorer]:
    """The metrics that look at answers, ready to score. Raises UserError (schema)."""
    return [_scorer(metric) for metric in metrics if metric.type != "Loss"]


def check(every: Sequence[Scorer], test: Sequence[TestRow]) -> None:
    """Check all references before a question is asked. Raises UserError that names the row."""
    texts = sum(row.plain for row in test)
    if every and texts:
        raise UserError(
            "MetricNeedsAnswers",
            f"evaluation.metrics: {every[0].name} scores answers, and {texts:,} of {len(test):,} test rows are plain text, which has none",
            "Remove evaluation.metrics: texts are scored by their loss. Or name questions with answers as data.test.",
        )
    for scorer in every:
        for row in test:
            scorer.check(row)


def score(every: Sequence[Scorer], test: Sequence[TestRow], replies: Mapping[str, Reply]) -> list[ScoredRow]:
    """Every row's scores; a row that the server refused scores 0. Raises UserError if it refused them all."""
    require_answers(test, replies)
    return [_score(every, row, replies[row.id]) for row in test]


def require_answers(test: Sequence[TestRow], replies: Mapping[str, Reply]) -> None:
    """Raises UserError if the server refused every row."""
    if all(replies[row.id].answer is None for row in test):
        raise UserError("EveryRowRefused", f"the server refused every row; the first: {replies[test[0].id].error}")


def with_loss(
    config: RunConfig, evaluation: EvaluationConfig, test: Sequence[TestRow], scored: Sequence[ScoredRow], progress: Progress
) -> list[ScoredRow]:  # fmt: skip
    """`scored` with the metric Loss, computed in this process."""
    from finetune_trainer.evaluate.loss import loss_dtype, loss_rows  # torch is not needed otherwise
    from finetune_trainer.serve.loading import load

    progress.update(state="loading")
    loaded = load(config.model.path, evaluation.adapter_path, dtype=loss_dtype())
    progress.update(state="scoring")
    meter = Meter(progress, len(test))
    losses = loss_rows(loaded, test, meter.advance)
    return [ScoredRow(row.id, row.answer, {**row.scores, **loss.scores}, row.notes) for row, loss in zip(scored, losses, strict=True)]


def interval(metric: str, scored: Sequence[ScoredRow], confidence_percent: float) -> JsonObject:
    """`{score, low, high, n}` of one metric."""
    found = bootstrap([row.scores[metric] for row in scored], confidence_percent)
    if found is None:
        return {"score": None, "low": None, "high": None, "n": 0}
    return {"score": _rounded(found.mean), "low": _rounded(found.low), "high": _rounded(found.high), "n": found.n}


def paired(metric: str, scored: Sequence[ScoredRow], reference: Mapping[str, float], confidence_percent: float) -> JsonObject:
    """`{metric, difference, low, high, n}` over the rows that the reference has too."""
    differences = paired_differences({row.id: row.scores[metric] for row in scored}, dict(reference))
    found = bootstrap(differences, confidence_percent)
    if found is None:
        return {"metric": metric, "difference": None, "low": None, "high": None, "n": 0}
    return {
        "metric": metric, "difference": _rounded(found.mean), "low": _rounded(found.low), "high": _rounded(found.high),
        "n": found.n,
    }  # fmt: skip


def _scorer(metric: MetricConfig) -> Scorer:
    if metric.type == "JsonSchema":
        schemas = jsons.Schemas(metric.json_schema.schema_mount if metric.json_schema else None)
        return Scorer(metric.type, schemas.score, schemas.check_row)
    if metric.type == "Custom" and metric.custom is not None:
        return Scorer(metric.type, custom.Scores(metric.custom.folder).score, lambda row: None)
    score, check = _of_texts(metric)
    return Scorer(metric.type, lambda answer, row: score(answer, row.reference), lambda row: check(row.id, row.reference))


def _of_texts(metric: MetricConfig) -> tuple[OfTexts, Callable[[str, str], None]]:
    """The score of (answer, reference), and the check of (row, reference)."""
    if metric.type == "SqlExecution" and metric.sql_execution is not None:
        database = sql.open_schema(metric.sql_execution.schema_mount)

        def run(answer: str, reference: str) -> tuple[float, str]:
            verdict = sql.score(database, answer, reference)
            return verdict.score, verdict.note

        return run, lambda row, reference: sql.check_reference(database, row, reference)
    if metric.type == "Regex" and metric.regex is not None:
        pattern = Pattern(metric.regex.pattern)
        return pattern.score, pattern.check_reference
    if metric.type == "Contains":
        return contains.contains, contains.check_reference
    if metric.type == "JsonEqual":
        return jsons.equal, jsons.check_reference
    return OF_TEXTS[metric.type], lambda row, reference: None


def _score(every: Sequence[Scorer], row: TestRow, reply: Reply) -> ScoredRow:
    if reply.answer is None:
        return ScoredRow(row.id, None, {scorer.name: 0.0 for scorer in every}, {"server": reply.error})
    outcomes = {scorer.name: scorer.score(reply.answer, row) for scorer in every}
    notes = {name: note for name, (_, note) in outcomes.items() if note}
    return ScoredRow(row.id, reply.answer, {name: value for name, (value, _) in outcomes.items()}, notes)


def _rounded(value: float) -> float:
    return round(value, DIGITS)
