"""Order statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: the smallest value that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(round(share * len(values), 9)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": max(values)}
