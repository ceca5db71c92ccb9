"""What the numbers say should be done next: one sentence each, from what was measured, never from taste.

The thresholds are rules of thumb: fewer than about a hundred examples rarely teach more than form, and a bootstrap of fewer than about
fifty rows says little of a share near 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.evaluate.comparison import LOSS, Compared, Pair, changed, reasons, turned

FEW_EXAMPLES = 100
FEW_TEST_ROWS = 50
WIDE = 0.2  # of a score's interval, from end to end
FORGOTTEN = 10  # percent that the perplexity of general text may rise unmentioned, where the gate names no limit
CLEAR, SEVERAL = 0.3, 3  # share of the wrong answers that have one reason, and how many they are at least


@dataclass(frozen=True)
class Facts:
    """What is looked at. `training` is the result in the artifact's revision.json, `rows` the data manifest's counts."""

    gated: Compared
    pairs: Sequence[Pair]
    rows: dict[str, Any]
    training: dict[str, Any]
    validations: Sequence[Sequence[float]]
    forgetting: Mapping[str, Any] | None = None
    max_forgetting_percent: float | None = None


def advise(facts: Facts) -> list[str]:
    """Everything that applies, what weighs most first."""
    rules = (_worse, _no_gain, _broken, _forgot, _overfit, _still_falling, _one_reason, _few_examples, _few_test_rows)
    return [text for rule in rules for text in rule(facts)]


def _worse(f: Facts) -> Iterator[str]:
    difference = f.gated.difference
    if difference and difference["n"] and difference["high"] < 0:
        yield (
            "The tuned model is worse, beyond chance: look at the rows that got worse below before anything else. A lower "
            "learning rate, fewer epochs, or data that do not contradict what the model knows are the usual cures."
        )


def _no_gain(f: Facts) -> Iterator[str]:
    difference = f.gated.difference
    if difference and difference["n"] and difference["low"] <= 0 <= difference["high"]:
        yield (
            "No difference is proven: the interval of the difference holds 0. "
            f"With {difference['n']} test rows only larger gains can be seen; more test rows narrow it, better or more training rows move "
            "it. If the answers need facts that change, retrieval fits better than tuning."
        )


def _broken(f: Facts) -> Iterator[str]:
    worse = len(changed(f.pairs, better=False))
    if f.gated.metric != LOSS and turned(f.pairs)["now wrong"]:
        count = turned(f.pairs)["now wrong"]
        yield f"{count} of {len(f.pairs)} rows were right before and are wrong now: see whether they have something in common."
    elif f.gated.metric == LOSS and worse * 4 > len(f.pairs):
        yield f"The loss of {worse} of {len(f.pairs)} rows rose: the gain on the others is paid for by these."


def _forgot(f: Facts) -> Iterator[str]:
    found = f.forgetting or {}
    borne = FORGOTTEN if f.max_forgetting_percent is None else f.max_forgetting_percent
    if found.get("low", 0) > borne:
        yield (
            f"General text surprises the tuned model more: its perplexity rose by {found['percent']:.1f} %, beyond chance by more than "
            f"{borne:g} %. Rows of general data beside yours (data.mix), a lower learning rate or fewer epochs keep more of what it knew."
        )


def _overfit(f: Facts) -> Iterator[str]:
    best, last = f.training.get("bestStep"), f.training.get("step")
    if best and last and len(f.validations) > 1 and f.validations[-1][1] > 1.02 * min(loss for _, loss in f.validations):
        yield (
            f"The validation loss was lowest at step {best} of {last} and rose afterwards: the weights of that step are the ones kept. "
            "Fewer epochs reach them sooner; more, or more various, data push the turn further out."
        )


def _still_falling(f: Facts) -> Iterator[str]:
    losses = [loss for _, loss in f.validations]
    if len(losses) > 2 and not f.training.get("stoppedEarly") and losses[-1] == min(losses) and losses[-1] < 0.98 * losses[-2]:
        yield "The validation loss was still falling at the end: more epochs would probably help."


def _one_reason(f: Facts) -> Iterator[str]:
    found = reasons(f.pairs) if f.gated.metric != LOSS else []
    wrong = sum(count for _, count in found)
    if len(found) > 1 and found[0][1] >= max(SEVERAL, CLEAR * wrong):
        reason, count = found[0]
        yield f"{count} of {wrong} wrong answers have the same reason ({reason}): training rows that show how it is done right aim at it."


def _few_examples(f: Facts) -> Iterator[str]:
    train = f.rows.get("train")
    if train is not None and train < FEW_EXAMPLES:
        yield (
            f"There are {train} training rows. Below {FEW_EXAMPLES} good ones tuning mostly teaches form: a longer prompt with examples "
            "may do as well."
        )


def _few_test_rows(f: Facts) -> Iterator[str]:
    score, n = f.gated.after, f.gated.after["n"]
    wide = f.gated.metric != LOSS and score["n"] and score["high"] - score["low"] > WIDE
    if n and (n < FEW_TEST_ROWS or wide):
        width = f" (its interval is {100 * (score['high'] - score['low']):.0f} points wide)" if wide else ""
        yield f"The score rests on {n} test rows{width}: bring a larger data.test, or a larger share in data.split.test."
