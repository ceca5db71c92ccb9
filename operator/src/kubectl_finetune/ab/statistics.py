"""Two arms compared by their users. Pure.

The unit is the user: requests of one user are not independent of each other. So a metric is a ratio of sums over users (Σx/Σn, for
users with n observations that sum to x) with the variance of the delta method; with one observation each it is a mean. Sources: A. Deng,
U. Knoblich and J. Lu, KDD (2018), arXiv:1803.06336, for the ratio; A. Fabijan et al., KDD (2019), for the sample-ratio check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

CONFIDENCE: Final = 0.95
POWER: Final = 0.8
FEWEST_USERS: Final = 30  # of each arm: with fewer the normal approximation says too much
FEWEST_EVENTS: Final = 5  # hits, and misses, of a share in each arm
LARGEST: Final = 1e100  # size of a value: sums of squares stay finite
Z: Final = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
Z_POWER: Final = NormalDist().inv_cdf(POWER)


@dataclass(frozen=True)
class Arm:
    """A metric in one arm: its mean per observation, that mean's variance, and what it rests on."""

    mean: float
    variance: float
    users: int
    observations: float
    total: float


@dataclass(frozen=True)
class Effect:
    """Canary minus stable with its interval, the same as a share of stable's (None: it has none), the two-sided p-value, and the
    smallest difference that so many users show in four of five tests."""

    difference: float
    low: float
    high: float
    p: float
    detectable: float
    lift: float | None = None
    lift_low: float | None = None
    lift_high: float | None = None


def measured(users: Iterable[tuple[float, float]]) -> Arm | None:
    """The arm of users as (sum, number of observations); who has none does not count. None: nobody has any."""
    seen = [(x, n) for x, n in users if n > 0]
    if not seen:
        return None
    count, total, observations = len(seen), math.fsum(x for x, _ in seen), math.fsum(n for _, n in seen)
    mean = total / observations
    spread = math.fsum((x - mean * n) ** 2 for x, n in seen)
    variance = spread / (count - 1) * count / observations**2 if count > 1 else math.inf
    return Arm(mean, variance, count, observations, total)


def compared(stable: Arm, canary: Arm) -> Effect | None:
    """The effect; None where neither arm varies: there is nothing to say how sure it is."""
    variance = stable.variance + canary.variance
    if not 0 < variance < math.inf:
        return None
    error, difference = math.sqrt(variance), canary.mean - stable.mean
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    effect = (difference, difference - Z * error, difference + Z * error, p, (Z + Z_POWER) * error)
    if min(stable.mean, canary.mean) <= 0:
        return Effect(*effect)
    ratio = math.log(canary.mean / stable.mean)
    relative = math.sqrt(stable.variance / stable.mean**2 + canary.variance / canary.mean**2)
    return Effect(*effect, *(math.expm1(ratio + k * relative) for k in (0, -Z, Z)))


def too_few(stable: Arm | None, canary: Arm | None, *, share: bool) -> str:
    """Why nothing is said of these two; empty where something is. `share`: observations are 0 or 1."""
    for name, arm in (("stable", stable), ("canary", canary)):
        users = arm.users if arm else 0
        if arm is None or users < FEWEST_USERS:
            return f"{users} users of {name}: {FEWEST_USERS} of each are compared"
        if share and min(arm.total, arm.observations - arm.total) < FEWEST_EVENTS:
            return f"{_rare(arm)} in {name}: {FEWEST_EVENTS} of each kind are compared"
    return ""


def mismatch(canary: int, stable: int, percent: float) -> float:
    """The p-value of so many users in each arm, where `percent` of them should be the canary's: chi-square, one degree of freedom."""
    users, share = canary + stable, percent / 100
    if not users:
        return 1.0
    square = (canary - share * users) ** 2 / (users * share * (1 - share))
    return math.erfc(math.sqrt(square / 2))


def unlike(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """The p-value of two shares that are one and the same: chi-square of the two by two table."""
    n, hits = n_a + n_b, hits_a + hits_b
    if not (n_a and n_b) or hits in (0, n):
        return 1.0
    share = hits / n
    square = (hits_a / n_a - hits_b / n_b) ** 2 / (share * (1 - share) * (1 / n_a + 1 / n_b))
    return math.erfc(math.sqrt(square / 2))


def users_needed(deviation: float, difference: float, percent: float = 50) -> int:
    """Users in all, `percent` of them on the canary, that show such a difference in four of five tests. `deviation` is the standard
    deviation between users; of a share s it is √(s(1 − s))."""
    share = percent / 100
    return math.ceil((Z + Z_POWER) ** 2 * deviation**2 / difference**2 * (1 / share + 1 / (1 - share)))


def _rare(arm: Arm) -> str:
    return f"{arm.total:.0f} of {arm.observations:.0f}"
