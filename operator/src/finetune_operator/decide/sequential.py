"""A test that may be looked at after every request: it errs with probability alpha at most over all looks together.

The likelihood ratio of a Beta mixture against one share is a martingale where that share holds (a supermartingale, on its upper
side, where the truth lies below), so it ever reaches 1/alpha with probability alpha at most (Ville's inequality). Sources: H. Robbins,
Annals of Mathematical Statistics 41 (1970); for errors counted in two arms, M. Lindon and A. Malek, NeurIPS (2022), arXiv:2011.03567;
for quantiles, S. R. Howard and A. Ramdas, Bernoulli 28 (2022), arXiv:1906.09712.
"""

from __future__ import annotations

import math
from typing import Final

# Of one question in one span of counting. A rollout of three steps has six spans (each while its routers are told, and while it is held), a
# guard of times asks two questions: of an arm that is as good as stable, errors and latency take back less than 2 of 100 rollouts.
ALPHA: Final = 0.001


def surely_above(hits: float, n: float, share: float, alpha: float = ALPHA) -> bool:
    """Are `hits` of `n` more than `share` (0…1) explains, however often this was asked before?"""
    if hits <= share * n:
        return False
    return share <= 0.0 or _log_ratio(hits, n, share) >= -math.log(alpha)


def fewest_above(n: int, share: float) -> int:
    """The fewest hits of `n` that are surely above `share`; n + 1 where not even n are."""
    low, high = math.floor(share * n), n + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if surely_above(middle, n, share) else (middle, high)
    return high


def _log_ratio(hits: float, n: float, share: float) -> float:
    """Logarithm of the mixture's likelihood over that of `share`. The mixture's mean is `share`, its weight that of one rare event."""
    rare = min(share, 1 - share)
    a, b = share / rare, (1 - share) / rare
    mixture = _log_beta(a + hits, b + n - hits) - _log_beta(a, b)
    return mixture - hits * math.log(share) - (n - hits) * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
