"""A second look at rows whose loss or gradients came out not finite: which of them it is, in words and with what to do.

Invariant: all ranks look together, at as many rows each, since a pass may need all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.train.distributed import Ranks

LOWER = "Lower training.learningRate."


@dataclass(frozen=True)
class Finding:
    """What the look found, and the fix."""

    message: str
    fix: str


@torch.no_grad()
def find(model: Any, loss: Callable[[int], torch.Tensor], rows: Sequence[int], ranks: Ranks, beat: Callable[[], None]) -> list[int]:
    """Those of `rows` whose `loss` alone is not finite; each rank computes its share of them, without gradients and dropout."""
    bad = torch.zeros(len(rows), device=ranks.device)
    trains = model.training
    model.eval()
    for first in range(0, len(rows), ranks.world_size):
        place = min(first + ranks.rank, len(rows) - 1)  # the last row once more where ranks have nothing left
        bad[place] += (~torch.isfinite(loss(rows[place]))).float()
        beat()
    model.train(trains)
    counts = ranks.sum(bad).tolist()
    return [row for row, count in zip(rows, counts, strict=True) if count]


def explain(bad: Sequence[int], count: int, learnt: bool, named: Callable[[Sequence[int]], str]) -> Finding:
    """What it means that of `count` rows these are `bad`, once something was `learnt` or not; `named` says which rows they are."""
    if not bad:
        return Finding("each row's loss alone is finite: the gradients overflow", LOWER)
    if len(bad) == count > 1:
        fix = (
            LOWER
            if learnt
            else "Weights of the base model are not finite, or too large for training.precision: use another model, or FP32."
        )
        return Finding(f"no row has a finite loss, {named(bad)} among them", fix)
    words = "have losses that are" if len(bad) > 1 else "has a loss that is"
    return Finding(f"{named(bad)} {words} not finite", "Look at these rows: correct them or take them out.")
