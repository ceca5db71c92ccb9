"""Two models on the same rows: what the report tells of them, as plain values.

Rows are paired by id. An answer is right whose score reaches `enough`: 1, or half of it where a metric tells parts, for hardly any free
text is another word by word. Of Loss, whose scores are minus bits per byte, nothing is right or wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.evaluate import scoring
from finetune_trainer.evaluate.rows import ScoredRow, TestRow

LOSS = "Loss"
IN_PART = ("TokenF1", "RougeL", "Custom")  # metrics that tell how much of an answer is right
HALF = 0.5
# What a score is, for people: a mean over rows.
MEANINGS: Final[Mapping[str, str]] = {
    "ExactMatch": "the share of answers that are the reference",
    "Contains": "the share of answers in which the reference stands",
    "Regex": "the share of answers in which the pattern finds what it finds in the reference",
    "TokenF1": "how many words an answer and the reference have in common, in any order",
    "RougeL": "how many words an answer and the reference have in common, in their order",
    "SqlExecution": "the share of queries that give the reference's rows",
    "JsonSchema": "the share of answers that are JSON and valid against the schema",
    "JsonEqual": "the share of answers that are the same JSON as the reference",
    "Custom": "what your own image says of the answers, from 0 to 1",
    LOSS: "bits per byte of the reference as the model finds it; a limit on it is given as minus that",
}
SHOWN = 10  # rows of a kind that are shown side by side
GROUPS = 8  # reasons of wrong answers that are told apart
REASON = 80  # characters of one


@dataclass(frozen=True)
class Pair:
    """One question with both answers and their scores by the gated metric; notes say why an answer is wrong."""

    row: TestRow
    before: ScoredRow
    after: ScoredRow
    metric: str

    @property
    def change(self) -> float:
        """How much better the tuned model is."""
        return self.after.scores[self.metric] - self.before.scores[self.metric]


@dataclass(frozen=True)
class Compared:
    """One metric: the reference's interval, the tuned model's, and that of the difference (None: not paired)."""

    metric: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]
    difference: Mapping[str, Any] | None


def metrics(names: Sequence[str], tuned: Sequence[ScoredRow], reference: Sequence[ScoredRow], confidence: float) -> list[Compared]:
    """Each metric of both, the gated one first; one that the reference was not scored by stands alone."""
    found = []
    ids = {row.id for row in tuned}
    for name in names:
        after = scoring.interval(name, tuned, confidence)
        known = [row for row in reference if row.id in ids and name in row.scores]
        if not known:
            found.append(Compared(name, None, after, None))
            continue
        pairing = scoring.paired(name, tuned, {row.id: row.scores[name] for row in known}, confidence)
        found.append(Compared(name, scoring.interval(name, known, confidence), after, pairing))
    return found


def pairs(metric: str, test: Sequence[TestRow], tuned: Sequence[ScoredRow], reference: Sequence[ScoredRow]) -> list[Pair]:
    """The questions that both answered, in the test split's order."""
    after = {row.id: row for row in tuned if metric in row.scores}
    before = {row.id: row for row in reference if metric in row.scores}
    return [Pair(row, before[row.id], after[row.id], metric) for row in test if row.id in before and row.id in after]


def changed(every: Sequence[Pair], *, better: bool) -> list[Pair]:
    """The rows that got better, or worse: those that changed most first."""
    sign = 1 if better else -1
    return sorted((pair for pair in every if sign * pair.change > 0), key=lambda pair: -sign * pair.change)


def still_wrong(every: Sequence[Pair]) -> list[Pair]:
    """The rows that neither model answers rightly (of Loss: none)."""
    return [pair for pair in every if pair.metric != LOSS and not any(_right(row, pair.metric) for row in (pair.before, pair.after))]


def meaning(names: Iterable[str]) -> str:
    """A sentence that says what these metrics' scores are."""
    return "; ".join(f"{name}: {MEANINGS[name]}" for name in names if name in MEANINGS) + "."


def enough(metric: str) -> float:
    """The score from which an answer counts as right."""
    return HALF if metric in IN_PART else 1.0


def turned(every: Sequence[Pair]) -> dict[str, int]:
    """How many rows each way."""
    counts = Counter((_right(pair.before, pair.metric), _right(pair.after, pair.metric)) for pair in every)
    return {
        "right in both": counts[True, True], "now right": counts[False, True], "now wrong": counts[True, False],
        "wrong in both": counts[False, False],
    }  # fmt: skip


def reasons(every: Sequence[Pair]) -> list[tuple[str, int]]:
    """Why the tuned model's wrong answers are wrong, the most frequent first."""
    counts = Counter(_reason(pair.after, pair.metric) for pair in every if not _right(pair.after, pair.metric))
    return counts.most_common(GROUPS)


def _right(row: ScoredRow, metric: str) -> bool:
    return row.scores[metric] >= enough(metric)


def _reason(row: ScoredRow, metric: str) -> str:
    said: Mapping[str, str] = row.notes
    if "server" in said:
        return f"not answered: {said['server']}"[:REASON]
    if row.answer is not None and not row.answer.strip():
        return "an empty answer"
    return said.get(metric, "another answer than the reference's")[:REASON]
