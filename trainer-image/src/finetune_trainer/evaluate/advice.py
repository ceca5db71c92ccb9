"""What the scores of a tuned model say should be done next, from what was measured, never from taste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.advice import FEW_TEST_ROWS, Advice, few_test_rows
from finetune_trainer.evaluate.comparison import LOSS, Compared, Pair, changed, reasons, turned

WIDE = 0.2  # of a score's interval, from end to end
FORGOTTEN = 10  # percent that the perplexity of general text may rise unmentioned, where the gate names no limit
CLEAR, SEVERAL = 0.3, 3  # share of the wrong answers that have one reason, and how many they are at least


@dataclass(frozen=True)
class Facts:
    """What is looked at. `training` is the result in the artifact's revision.json."""

    gated: Compared
    pairs: Sequence[Pair]
    training: dict[str, Any]
    validations: Sequence[Sequence[float]]
    forgetting: Mapping[str, Any] | None = None
    max_forgetting_percent: float | None = None


def advise(facts: Facts) -> list[Advice]:
    """Everything that applies, what weighs most first."""
    rules = (_worse, _no_gain, _broken, _forgot, _overfit, _still_falling, _one_reason, _few_test_rows)
    return [item for rule in rules for item in rule(facts)]


def _worse(f: Facts) -> Iterator[Advice]:
    difference = f.gated.difference
    if difference and difference["n"] and difference["high"] < 0:
        yield Advice(
            "Worse",
            "The tuned model is worse, beyond chance.",
            "Look at the rows that got worse before anything else: a lower learning rate, fewer epochs, or data that do not contradict "
            "what the model knows are the usual cures.",
        )


def _no_gain(f: Facts) -> Iterator[Advice]:
    difference = f.gated.difference
    if difference and difference["n"] and difference["low"] <= 0 <= difference["high"]:
        yield Advice(
            "NoGainProven",
            f"No difference is proven: the interval of the difference holds 0, and with {difference['n']} test rows only larger gains can "
            "be seen.",
            "More test rows narrow it, better or more training rows move it; if the answers need facts that change, retrieval fits better "
            "than tuning.",
        )


def _broken(f: Facts) -> Iterator[Advice]:
    worse = len(changed(f.pairs, better=False))
    if f.gated.metric != LOSS and turned(f.pairs)["now wrong"]:
        count = turned(f.pairs)["now wrong"]
        yield Advice(
            "RowsBroken",
            f"{count} of {len(f.pairs)} rows were right before and are wrong now.",
            "See whether they have something in common.",
        )
    elif f.gated.metric == LOSS and worse * 4 > len(f.pairs):
        yield Advice(
            "RowsBroken",
            f"The loss of {worse} of {len(f.pairs)} rows rose: the gain on the others is paid for by these.",
            "See whether they have something in common.",
        )


def _forgot(f: Facts) -> Iterator[Advice]:
    found = f.forgetting or {}
    borne = FORGOTTEN if f.max_forgetting_percent is None else f.max_forgetting_percent
    if found.get("low", 0) > borne:
        yield Advice(
            "Forgot",
            f"General text surprises the tuned model more: its perplexity rose by {found['percent']:.1f} %, beyond chance by more than "
            f"{borne:g} %.",
            "Rows of general data beside yours (data.mix), a lower learning rate or fewer epochs keep more of what it knew.",
        )


def _overfit(f: Facts) -> Iterator[Advice]:
    best, last = f.training.get("bestStep"), f.training.get("step")
    if best and last and len(f.validations) > 1 and f.validations[-1][1] > 1.02 * min(loss for _, loss in f.validations):
        yield Advice(
            "Overfits",
            f"The validation loss was lowest at step {best} of {last} and rose afterwards: the weights of that step are the ones kept.",
            "Fewer epochs reach them sooner; more, or more various, data push the turn further out.",
        )


def _still_falling(f: Facts) -> Iterator[Advice]:
    losses = [loss for _, loss in f.validations]
    if len(losses) > 2 and not f.training.get("stoppedEarly") and losses[-1] == min(losses) and losses[-1] < 0.98 * losses[-2]:
        yield Advice("StillLearning", "The validation loss was still falling at the end.", "More epochs would probably help.")


def _one_reason(f: Facts) -> Iterator[Advice]:
    found = reasons(f.pairs) if f.gated.metric != LOSS else []
    wrong = sum(count for _, count in found)
    if len(found) > 1 and found[0][1] >= max(SEVERAL, CLEAR * wrong):
        reason, count = found[0]
        yield Advice(
            "OneReason",
            f"{count} of {wrong} wrong answers have the same reason ({reason}).",
            "Training rows that show how it is done right aim at it.",
        )


def _few_test_rows(f: Facts) -> Iterator[Advice]:
    score, n = f.gated.after, f.gated.after["n"]
    wide = f.gated.metric != LOSS and score["n"] and score["high"] - score["low"] > WIDE
    if n and (n < FEW_TEST_ROWS or wide):
        width = f" (its interval is {100 * (score['high'] - score['low']):.0f} points wide)" if wide else ""
        yield few_test_rows(f"The score rests on {n} test rows{width}.")
