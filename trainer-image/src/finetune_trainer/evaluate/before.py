"""A reference that is scored before any training: is training needed at all, what might do instead, and the page that shows why.

Invariant: the page stands alone, whatever came with data or answers is escaped; whether training is skipped is the operator's to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from finetune_trainer import compare, layout, pages
from finetune_trainer.advice import Advice, listed, read
from finetune_trainer.config import BeforeConfig, RunConfig, need
from finetune_trainer.evaluate import charts, comparison, examples, scoring
from finetune_trainer.evaluate.comparison import IN_PART, LOSS, Compared, Pair
from finetune_trainer.evaluate.report import PAGE, manifest, named
from finetune_trainer.evaluate.rows import ScoredRow, TestRow
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.pages import hours, number, section

GOOD = 0.8  # of answers that are right: what docs/evaluation.md suggests as the limit
EXAMPLES = 5  # rows that a prompt would hold


@dataclass(frozen=True)
class Before:
    """Everything that is told. `gated` are metric and score (`after`), `alone` each row as both sides of a pair, `prepared` the manifest of
    the data (empty where it cannot be read), `answering` how fast the answers came (None: none was asked for)."""

    finetune: str
    revision: str
    asked: BeforeConfig
    gated: Compared
    alone: Sequence[Pair]
    prepared: Mapping[str, Any]
    answering: Answering | None

    @property
    def who(self) -> str:
        """Whose scores they are."""
        return named(self.asked.reference)

    @property
    def score(self) -> float:
        """By the metric that is gated."""
        return float(self.gated.after["score"])

    @property
    def needless(self) -> bool:
        """Is it as good as what is asked for?"""
        return self.asked.enough is not None and self.score >= self.asked.enough


def gather(
    config: RunConfig, asked: BeforeConfig, test: Sequence[TestRow], scored: Sequence[ScoredRow], answering: Answering | None
) -> Before:  # fmt: skip
    """What is told of a reference, from its scores and from what prepare left."""
    evaluation, data = need(config.evaluation, "evaluation"), need(config.data, "data")
    metric = evaluation.metrics[0].type
    score = scoring.interval(metric, scored, evaluation.confidence_percent)
    return Before(
        finetune=f"{config.finetune.namespace}/{config.finetune.name}",
        revision=config.finetune.revision,
        asked=asked,
        gated=Compared(metric, None, score, None),
        alone=comparison.pairs(metric, test, scored, scored),
        prepared=manifest(data.path, layout.DATA_MANIFEST),
        answering=answering,
    )


def advise(b: Before) -> list[Advice]:
    """Everything that applies, what weighs most first."""
    return [item for rule in (_needless, _good, _tries) for item in rule(b)]


def _needless(b: Before) -> Iterator[Advice]:
    if b.needless:
        yield Advice(
            "NotNeeded",
            f"Training is not needed: {b.who} scores {charts.value(b.gated.metric, b.gated.after)}, at least the "
            f"{charts.bare(b.gated.metric, b.asked.enough or 0)} of evaluation.skipTrainingIfBaselineAtLeast.",
            "Use it as it is; where more is needed after all, raise that limit and gate.minScore.",
        )


def _good(b: Before) -> Iterator[Advice]:
    """The suggested policy, where the FineTune has none and 1 means right."""
    if b.asked.enough is None and b.gated.metric not in (LOSS, *IN_PART) and b.score >= GOOD:
        yield Advice(
            "AlreadyGood",
            f"{b.who.capitalize()} already scores {charts.value(b.gated.metric, b.gated.after)}: from {100 * GOOD:.0f} % on a better "
            "prompt, examples in it or retrieval are usually cheaper than training.",
            'If that is enough, set evaluation.skipTrainingIfBaselineAtLeast, for example "0.8".',
        )


def _tries(b: Before) -> Iterator[Advice]:
    """What it would take to find out whether something else does as well."""
    cost = tries(b)
    if cost and not b.needless and b.asked.reference == "base":
        train = float((b.prepared.get("estimate") or {}).get("seconds") or 0)
        expected = f", where training is expected to take {hours(train)}" if train else ""
        yield Advice(
            "TryWithoutTraining",
            f"To score a prompt with {EXAMPLES} of the training rows in it takes about {hours(cost[0])} of this model server, and a base "
            f"model of twice the weights about {hours(cost[1])}{expected}.",
            "Each is a FineTune without serving: the rows as a system message in data.test, or another model.source, and "
            'evaluation.skipTrainingIfBaselineAtLeast "0", by which it is scored and not trained.',
        )


def tries(b: Before) -> tuple[float, float] | None:
    """Seconds to score a prompt with examples, and a base twice as large, from how long these answers took; None where none was asked for
    or the rows' lengths are not known. All tokens are taken to cost alike, so of a long prompt it is the most."""
    rows, tokens = (b.prepared.get(name) or {} for name in ("rows", "tokens"))
    if b.answering is None or not rows.get("train") or not tokens.get("train"):
        return None
    a = b.answering
    prompts = a.rows * EXAMPLES * tokens["train"] / rows["train"]
    known = a.input_tokens + a.output_tokens
    return a.seconds * (known + prompts) / known, 2 * a.seconds


def write(folder: Path, told: Before) -> None:
    """The page, into the folder of the evaluation."""
    (folder / PAGE).write_text(render(told))


def render(b: Before) -> str:
    """The page."""
    mine, metric, score = advise(b), b.gated.metric, b.gated.after
    earlier = [item for item in read(b.prepared.get("advice")) if item.code not in {said.code for said in mine}]
    body = (
        pages.tiles([(f"{metric}, {b.who}", charts.value(metric, score)), ("test rows", number(score["n"]))]),
        section("Is training needed?", f"<p>{escape(_verdict(b))}</p>"),
        section("What to think of before it trains", listed([*mine, *earlier])),
        section("Its score on the sealed test split", _score(b)),
        compare.table(compare.read(b.prepared.get("methods")), b.prepared.get("estimate") or {}, str(b.prepared.get("accelerator") or "")),
        section("Why answers are wrong", examples.reasons(f"of {b.who}", b.alone)),
        examples.section("Rows that it does not answer rightly", comparison.still_wrong(b.alone), (b.who,)),
    )
    return pages.document(f"Revision {b.revision}, before training", f"for {b.finetune}", "".join(body))


def _verdict(b: Before) -> str:
    """What the limit says, in words."""
    score, limit = charts.value(b.gated.metric, b.gated.after), b.asked.enough
    if limit is None:
        return f"No limit is set (evaluation.skipTrainingIfBaselineAtLeast), so it is trained whatever {b.who} scores."
    asked = f"the {charts.bare(b.gated.metric, limit)} of evaluation.skipTrainingIfBaselineAtLeast"
    if b.needless:
        return f"No: {b.who} scores {score}, which reaches {asked}. The limit looks at the score, not at its interval."
    return f"It is tried: {b.who} scores {score}, less than {asked}."


def _score(b: Before) -> str:
    drawn = charts.scores(Compared(b.gated.metric, b.gated.after, {}, None), b.who, None)
    return f'{drawn}<p class="quiet small">{escape(comparison.meaning([b.gated.metric]))}</p>'
