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
from finetune_trainer.evaluate import charts, comparison, examples, prompted, scoring
from finetune_trainer.evaluate.comparison import IN_PART, LOSS, Compared, Pair
from finetune_trainer.evaluate.report import PAGE, manifest, named
from finetune_trainer.evaluate.rows import ScoredRow, TestRow
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.pages import hours, number, section

GOOD = 0.8  # of answers that are right: what docs/evaluation.md suggests as the limit


@dataclass(frozen=True)
class Before:
    """Everything that is told. `gated` are metric and score (`after`), `alone` each row as both sides of a pair, `prepared` the manifest of
    the data (empty where it cannot be read), `answering` how fast the answers came (None: none was asked for), `few_shot` what examples in
    the prompt did, or why that is not known (None: nobody asked)."""

    finetune: str
    revision: str
    asked: BeforeConfig
    gated: Compared
    alone: Sequence[Pair]
    prepared: Mapping[str, Any]
    answering: Answering | None
    few_shot: Mapping[str, Any] | None = None

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
    config: RunConfig, asked: BeforeConfig, test: Sequence[TestRow], scored: Sequence[ScoredRow], answering: Answering | None,
    few_shot: Mapping[str, Any] | None = None,
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
        few_shot=few_shot,
    )


def advise(b: Before) -> list[Advice]:
    """Everything that applies, what weighs most first."""
    return [item for rule in (_needless, _good, _few_shot, _tries) for item in rule(b)]


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


def _few_shot(b: Before) -> Iterator[Advice]:
    """What a prompt alone does, where that was measured: does it reach what is asked for?"""
    found = prompted.figures(b.few_shot)
    if found is None:
        return
    metric, score = b.gated.metric, found["score"]
    count, without = prompted.solved(found["examples"]), charts.value(metric, found["alone"])
    reached, tokens = _reached(b, found), f"{number(found['tokens'])} tokens a request"
    if reached:
        yield Advice(
            "FewShotEnough",
            f"A prompt with {count} already scores {charts.value(metric, score)} on {score['n']} test rows ({without} without), which "
            f"reaches {reached}: training may not be needed.",
            f"Put such rows into the prompt, for about {tokens}. It is trained all the same: spec.suspend stops that.",
        )
    else:
        yield Advice(
            "FewShotTried",
            f"A prompt with {count} was tried: {charts.value(metric, score)} on {score['n']} test rows, {without} without "
            f"({prompted.gain(metric, found)}).",
            f"Where that is enough, such a prompt takes about {tokens} and no training.",
        )


def _reached(b: Before, found: Mapping[str, Any]) -> str:
    """What of the spec a prompt with examples reaches, in words; empty where it reaches nothing, or nothing is asked for. As the gate does
    it looks at the score itself, and at the lower end of the difference."""
    metric, asked, score = b.gated.metric, b.asked, found["score"]["score"]
    if asked.enough is not None and score >= asked.enough:
        return f"the {charts.bare(metric, asked.enough)} of evaluation.skipTrainingIfBaselineAtLeast"
    limits = {
        f"the {charts.bare(metric, asked.min_score or 0)} of evaluation.gate.minScore": (asked.min_score, score),
        f"the {charts.bare(metric, asked.min_improvement or 0, points=True)} of gate.minImprovement": (
            asked.min_improvement, found["paired"]["low"],
        ),
    }  # fmt: skip
    named = {words: reached >= limit for words, (limit, reached) in limits.items() if limit is not None}
    return " and ".join(named) if all(named.values()) else ""


def _tries(b: Before) -> Iterator[Advice]:
    """What it would take to find out whether a larger model does as well."""
    if b.answering is not None and not b.needless and b.asked.reference == "base":
        train = float((b.prepared.get("estimate") or {}).get("seconds") or 0)
        expected = f", where training is expected to take {hours(train)}" if train else ""
        yield Advice(
            "TryWithoutTraining",
            f"To score a base model of twice the weights takes about {hours(2 * b.answering.seconds)} of this model server{expected}.",
            "It is a FineTune without serving, with another model.source (a better prompt: with another system message in the rows of "
            'data.test), and evaluation.skipTrainingIfBaselineAtLeast "0", by which it is scored and not trained.',
        )


def write(folder: Path, told: Before) -> None:
    """The page, into the folder of the evaluation."""
    (folder / PAGE).write_text(render(told))


def render(b: Before) -> str:
    """The page."""
    mine = advise(b)
    earlier = [item for item in read(b.prepared.get("advice")) if item.code not in {said.code for said in mine}]
    body = (
        pages.tiles(_tiles(b)),
        section("Is training needed?", f"<p>{escape(_verdict(b))}</p>"),
        section("What to think of before it trains", listed([*mine, *earlier])),
        section("Its score on the sealed test split", _score(b)),
        compare.table(compare.read(b.prepared.get("methods")), b.prepared.get("estimate") or {}, str(b.prepared.get("accelerator") or "")),
        section("Why answers are wrong", examples.reasons(f"of {b.who}", b.alone)),
        examples.section("Rows that it does not answer rightly", comparison.still_wrong(b.alone), (b.who,)),
    )
    return pages.document(f"Revision {b.revision}, before training", f"for {b.finetune}", "".join(body))


def _tiles(b: Before) -> list[tuple[str, str]]:
    metric, score, found = b.gated.metric, b.gated.after, prompted.figures(b.few_shot)
    shown = [(f"with {prompted.solved(found['examples'])} in the prompt", charts.value(metric, found["score"]))] if found else []
    return [(f"{metric}, {b.who}", charts.value(metric, score)), *shown, ("test rows", number(score["n"]))]


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
    drawn = charts.scores(Compared(b.gated.metric, b.gated.after, {}, None), b.who, None, prompted.bar(b.few_shot))
    note = f"{comparison.meaning([b.gated.metric])} {prompted.sentence(b.gated.metric, b.few_shot)}"
    return f'{drawn}<p class="quiet small">{escape(note)}</p>'
