"""`finetune-trainer evaluate`: score what an endpoint serves (or, for Loss, a model in this process) and commit it.

Invariant: rows of a folder that counts are never scored again. What the probe has measured anew since, result, page and card tell alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer import advice, layout
from finetune_trainer.config import DataConfig, EvaluationConfig, RunConfig, need
from finetune_trainer.evaluate import answers, ask, before, fewshot, probe, report, rows, scoring, throughput
from finetune_trainer.evaluate.client import Reply
from finetune_trainer.evaluate.fewshot import Alone, FewShot
from finetune_trainer.evaluate.rows import ScoredRow, TestRow
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.exits import JsonObject
from finetune_trainer.progress import Progress, serving


@dataclass(frozen=True)
class Found:
    """What was measured: the rows that were asked, how many were left out, their scores, how fast the answers came and what examples in the
    prompt would do (None: it was not asked)."""

    test: Sequence[TestRow]
    excluded: int
    scored: Sequence[ScoredRow]
    answering: Answering | None = None
    few_shot: FewShot | None = None


def main(config: RunConfig) -> JsonObject:
    """The termination message of docs/contracts.md."""
    evaluation, data = need(config.evaluation, "evaluation"), need(config.data, "data")
    with serving(progress := Progress("evaluate")):
        progress.update(folder=str(evaluation.path))
        known = rows.finished(evaluation.path)
        if known is None:
            known = _evaluate(config, evaluation, data, progress)
        elif {name: known[name] for name in ("forgetting", "fidelity") if name in known} != _told(*_probed(evaluation)):
            test, excluded = rows.without_trained_on(rows.test_rows(data.path), evaluation.exclude_trained_on)
            known = _commit(config, evaluation, Found(test, excluded, rows.read(evaluation.path), throughput.read(known)))
        progress.update(state="done", percent=100, etaSeconds=0)
        return known


def _evaluate(config: RunConfig, evaluation: EvaluationConfig, data: DataConfig, progress: Progress) -> JsonObject:
    test, excluded = rows.without_trained_on(rows.test_rows(data.path), evaluation.exclude_trained_on)
    progress.update(state="checking", totalSteps=len(test))
    scorers = scoring.scorers(evaluation.metrics)
    scoring.check(scorers, test)
    replies: Mapping[str, Reply] = {}
    scored: list[ScoredRow] = [ScoredRow(row.id, None, {}) for row in test]
    if scorers:
        replies = ask.answered(config, test, progress, after=fewshot.planned(evaluation, len(test))).replies
        progress.update(state="scoring")
        scored = scoring.score(scorers, test, replies)
    if any(metric.type == "Loss" for metric in evaluation.metrics):
        scored = scoring.with_loss(config, evaluation, test, scored, progress)
    answering = throughput.measured(replies.values(), evaluation.concurrency, evaluation.server)
    few_shot = fewshot.measure(config, Alone(test, scored, replies), scorers, progress)
    result = _commit(config, evaluation, Found(test, excluded, scored, answering, few_shot))
    for suffix in ("", fewshot.SUFFIX):
        answers.forget(ask.kept_as(evaluation, suffix))
    return result


def _commit(config: RunConfig, evaluation: EvaluationConfig, found: Found) -> JsonObject:
    """Write the folder: rows, result, page and card, with what the probe has found by now."""
    reference = rows.read(evaluation.reference) if evaluation.reference else None
    probed = _probed(evaluation)
    result = {**_result(evaluation, found.scored, reference, found.excluded), **_told(*probed)}
    if found.answering is not None:
        result["answering"] = found.answering.told()
    if found.few_shot is not None:
        result["fewShot"] = found.few_shot.told
    told = alone = None
    if evaluation.report:
        told = report.gather(
            config, evaluation.report, found.test, found.scored, reference or [], found.excluded, *probed, found.answering,
            _examples_of(evaluation.reference),
        )  # fmt: skip
        result["advice"] = advice.told(told.advice)
    if evaluation.before:
        few_shot = found.few_shot.told if found.few_shot else None
        alone = before.gather(config, evaluation.before, found.test, found.scored, found.answering, few_shot)
        result["advice"] = advice.told(before.advise(alone))
    with layout.transaction(evaluation.path) as work:
        rows.write(work.folder / rows.ROWS, found.scored)
        if found.few_shot is not None and found.few_shot.rows:
            rows.write(work.folder / fewshot.ROWS, found.few_shot.rows)
        layout.write_json(work.folder / rows.RESULT, result)
        if told is not None:
            report.write(work.folder, told)
        if alone is not None:
            before.write(work.folder, alone)
        work.facts.update(evaluation=evaluation.name, revision=config.finetune.revision)
    return result


def _examples_of(reference: Path | None) -> JsonObject | None:
    """What examples in its prompt did for the reference, as its own evaluation says; None of one that did not look."""
    try:
        return json.loads((reference / rows.RESULT).read_text()).get("fewShot") if reference else None
    except layout.MISSING:
        return None


def _result(evaluation: EvaluationConfig, scored: Sequence[ScoredRow], reference: Sequence[ScoredRow] | None, excluded: int) -> JsonObject:
    """The result document."""
    names = [metric.type for metric in evaluation.metrics]
    paired = None
    if reference is not None:
        known = {row.id: row.scores[names[0]] for row in reference if names[0] in row.scores}
        paired = scoring.paired(names[0], scored, known, evaluation.confidence_percent)
    return {
        "stage": "evaluate",
        "name": evaluation.name,
        "metrics": {name: scoring.interval(name, scored, evaluation.confidence_percent) for name in names},
        "paired": paired,
        "excluded": excluded,
        "path": str(evaluation.path),
    }


def _probed(evaluation: EvaluationConfig) -> tuple[JsonObject | None, JsonObject | None]:
    """What the probe found of what was forgotten, and of what is served; None where it was not asked."""
    forgetting, fidelity = evaluation.forgetting, evaluation.fidelity
    return probe.told(forgetting) if forgetting else None, probe.told(fidelity) if fidelity else None


def _told(forgetting: JsonObject | None, fidelity: JsonObject | None) -> JsonObject:
    """What of it belongs in the result: not the figures of each kind of text."""
    found: JsonObject = {} if fidelity is None else {"fidelity": fidelity}
    if forgetting is not None:
        found["forgetting"] = {name: value for name, value in forgetting.items() if name != "kinds"}
    return found
