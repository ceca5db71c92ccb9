"""How many optimizer steps a run has and how large they are: shared by prepare (which reports) and train (which runs)."""

from __future__ import annotations

import math

MIN_STEPS_PER_EPOCH = 50
MAX_TOKENS_PER_STEP = 32_768


def tokens_per_step(tokens: int, rows: int, wanted: int | None) -> int:
    """`wanted`, or at least 50 steps an epoch where there are rows for that, at most 32,768 tokens."""
    if wanted is not None:
        return wanted
    mean = math.ceil(tokens / max(1, rows))
    return max(mean, min(MAX_TOKENS_PER_STEP, tokens // MIN_STEPS_PER_EPOCH), 1)


def steps_per_epoch(tokens: int, rows: int, step_tokens: int) -> int:
    """Optimizer steps of one pass over the data: never more than there are rows."""
    return max(1, min(rows, round(tokens / step_tokens)))


def total_steps(per_epoch: int, epochs: float) -> int:
    """Steps of the whole run."""
    return max(1, math.ceil(per_epoch * epochs))
