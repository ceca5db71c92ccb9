"""The base model with solved training rows in its prompt, against itself without: what a prompt alone would do, before any training.

All rows have the same examples before them, as a prompt in use would, and are rows of the test split that were asked without before: the
two are paired. Invariant: whatever keeps it from measuring, but the volume and SIGTERM, is written down as the reason: it is advice, and
no evaluation fails of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

from finetune_trainer import layout
from finetune_trainer.config import BeforeConfig, EvaluationConfig, FewShotConfig, RunConfig, need
from finetune_trainer.data import solved
from finetune_trainer.data.quality import position
from finetune_trainer.data.solved import Solved
from finetune_trainer.evaluate import ask, scoring
from finetune_trainer.evaluate.client import Reply
from finetune_trainer.evaluate.prompted import UNMEASURED
from finetune_trainer.evaluate.rows import Message, ScoredRow, TestRow
from finetune_trainer.evaluate.scoring import Scorer
from finetune_trainer.exits import Interrupted, JsonObject, TrainerError
from finetune_trainer.progress import Progress

ROWS = "few-shot.jsonl"  # beside the evaluation's own
SUFFIX = "-few-shot"  # of the name under which its answers are kept while they come


@dataclass(frozen=True)
class Alone:
    """The evaluation without examples: its rows, their scores and the server's replies."""

    test: Sequence[TestRow]
    scored: Sequence[ScoredRow]
    replies: Mapping[str, Reply]


@dataclass(frozen=True)
class FewShot:
    """What was found, as the result says it (docs/contracts.md), and the rows' answers with their scores by the metric that is gated."""

    told: JsonObject
    rows: Sequence[ScoredRow] = ()


@dataclass(frozen=True)
class Prompts:
    """The rows with their examples before them."""

    rows: Sequence[TestRow]
    examples: Sequence[Solved]


def measure(config: RunConfig, alone: Alone, scorers: Sequence[Scorer], progress: Progress) -> FewShot | None:
    """What examples in the prompt would do; None where nobody asks. Raises Interrupted, or OSError where the volume fails."""
    evaluation = need(config.evaluation, "evaluation")
    before = evaluation.before
    if before is None or before.few_shot is None:
        return None
    found = _needless(before, scorers, alone.scored) or _prompts(config, before.few_shot, alone)
    if isinstance(found, str):
        return FewShot({UNMEASURED: found})
    try:
        replies = ask.answered(config, found.rows, progress, suffix=SUFFIX, before=len(alone.test)).replies
        if refused := [reply.error for reply in replies.values() if reply.answer is None]:
            why = f"the server refused {len(refused)} of {len(found.rows)} questions with them, and answered these without: {refused[0]}"
            return FewShot({UNMEASURED: why})
        scored = scoring.score(scorers[:1], found.rows, replies)
    except Interrupted:
        raise
    except TrainerError as error:
        return FewShot({UNMEASURED: error.message})
    return FewShot(
        {"examples": len(found.examples), "tokens": _added(replies, alone.replies), **_figures(evaluation, scored, alone)}, scored
    )


def planned(evaluation: EvaluationConfig, rows: int) -> int:
    """Of so many test rows, how many may be asked with examples, too."""
    asked = evaluation.before.few_shot if evaluation.before else None
    return min(asked.rows, rows) if asked else 0


def prompted(row: TestRow, examples: Sequence[Solved]) -> TestRow:
    """The same question with solved ones before it, as earlier turns. The system turn is the row's own: an example's that is another stands
    before that example's question, since templates admit none later."""
    own = solved.system(row.messages)
    place = 1 if own else 0
    turns = [turn for example in examples for turn in _turns(example, own)]
    return replace(row, messages=(*row.messages[:place], *turns, *row.messages[place:]))


def _turns(example: Solved, own: str) -> Sequence[Message]:
    """An example without a system turn."""
    said = solved.system(example.messages)
    first, *rest = example.messages[1:] if said else example.messages
    return [first if said in ("", own) else {**first, "content": f"{said}\n\n{first['content']}"}, *rest]


def _beside(example: Solved, test: Sequence[TestRow]) -> Solved:
    """With the tokens that it takes before these questions: without a system turn that all of them have, too."""
    shared = all(solved.system(row.messages) == solved.system(example.messages) for row in test)
    return replace(example, tokens=example.tokens - example.system) if shared else example


def _needless(before: BeforeConfig, scorers: Sequence[Scorer], scored: Sequence[ScoredRow]) -> str:
    """Why nothing would be learnt from it; empty where something would."""
    if not scorers:
        return "no metric of spec.evaluation asks for answers"
    if scorers[0].name == "Custom":
        return "an image of your own scores the answers, and has ended before these are asked for"
    if before.reference != "base":
        return f"revision {before.reference} was tuned for these questions, without examples before them"
    score = sum(row.scores[scorers[0].name] for row in scored) / len(scored)
    if before.enough is not None and score >= before.enough:
        return "the base model reaches evaluation.skipTrainingIfBaselineAtLeast without them"
    return ""


def _prompts(config: RunConfig, asked: FewShotConfig, alone: Alone) -> Prompts | str:
    """The rows that are asked with the examples that fit before each of them, or why there are none."""
    data, new_tokens = need(config.data, "data"), need(config.evaluation, "evaluation").max_new_tokens
    kept = solved.read(data.path)
    if kept is None:
        return "an older version prepared the data, and kept no examples"
    sealed, questions = {row.id for row in alone.test}, [row.messages for row in alone.test]
    known = [example for example in kept if example.id not in sealed and example.messages[:-1] not in questions]
    test = [row for row in alone.test if alone.replies[row.id].answer is not None and solved.asks(row.messages)]
    test = nsmallest(asked.rows, test, key=lambda row: position(row.id, data.split.seed))
    if not known or not test:
        return f"no {'test' if known else 'training'} row is a conversation that a question opens"
    lengths = [length for row in test if (length := alone.replies[row.id].input_tokens) is not None]
    if len(lengths) < len(test):
        return "the model server does not count tokens: what fits into its context is not known"
    context = _context(config.model.path)
    limit = asked.max_tokens if context is None else min(asked.max_tokens, context - new_tokens)
    examples = solved.fitting([_beside(example, test) for example in known], asked.examples, limit - max(lengths))
    if not examples:
        beside = f"beside a question of {max(lengths):,}"
        return f"no example fits into {limit:,} tokens (training.maxSequenceLength, or the model's context less an answer) {beside}"
    return Prompts([prompted(row, examples) for row in test], examples)


def _context(model: Path) -> int | None:
    """The longest sequence that a model folder's configuration names, in tokens; None where it names none."""
    try:
        config: dict[str, Any] = json.loads((model / "config.json").read_text())
    except layout.MISSING:
        return None
    found = (config.get("text_config") or config).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def _added(replies: Mapping[str, Reply], without: Mapping[str, Reply]) -> int:
    """Tokens that the examples add to a prompt, as the server counts them."""
    added = [reply.input_tokens - (without[row].input_tokens or 0) for row, reply in replies.items() if reply.input_tokens is not None]
    return round(sum(added) / max(1, len(added)))


def _figures(evaluation: EvaluationConfig, scored: Sequence[ScoredRow], alone: Alone) -> JsonObject:
    """The score with examples, that of the same rows without, and what lies between them."""
    metric, confidence = evaluation.metrics[0].type, evaluation.confidence_percent
    asked = {row.id for row in scored}
    same = [row for row in alone.scored if row.id in asked]
    return {
        "score": scoring.interval(metric, scored, confidence),
        "alone": scoring.interval(metric, same, confidence),
        "paired": scoring.paired(metric, scored, {row.id: row.scores[metric] for row in same}, confidence),
    }
