"""Simulated traffic of one canary, counted as the routers count it: sums since each step began, at every look."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from finetune_operator.build.router import LATENCY_BOUNDS
from finetune_operator.decide.rollout.scene import POLL_SECONDS
from finetune_operator.traffic import ArmTotals
from numpy.typing import NDArray

BOUNDS = (*LATENCY_BOUNDS, math.inf)
MEDIAN_MS, SIGMA = 800.0, 0.6  # answers' times: log-normal, half of them within 530 and 1,200 ms
USER_REQUESTS = 20  # of each user in the whole rollout, where users differ

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Arm:
    """Shares and times of one arm's answers. `trouble`: the error rate during TROUBLE, which comes from outside."""

    errors: float = 0.01
    slower: float = 1.0
    trouble: float | None = None


@dataclass(frozen=True)
class Step:
    """`share` of the users on the canary for `seconds`."""

    share: float
    seconds: float


STEPS = (Step(0.1, 300), Step(0.5, 300), Step(1.0, 300))
TROUBLE = (60.0, 240.0)  # seconds since the rollout began


@dataclass(frozen=True)
class Traffic:
    """What meets the two arms: `rate` requests a second in all; `spread` is the correlation of one user's failures (0: none).

    A step that could not be judged goes on for up to `patience` times its time.
    """

    canary: Arm = Arm()
    stable: Arm = Arm()
    rate: float = 200.0
    steps: tuple[Step, ...] = STEPS
    look: float = POLL_SECONDS
    spread: float = 0.0
    patience: int = 1


@dataclass(frozen=True)
class Series:
    """One arm in one step: cumulative counts, the row of a look; `latency` has a column for each bucket of the histogram."""

    requests: Counts
    errors: Counts
    latency: Counts

    def totals(self, look: int) -> ArmTotals:
        """What the operator has read at that look."""
        cumulative = tuple(zip(BOUNDS, self.latency[look].tolist(), strict=True))
        return ArmTotals(int(self.requests[look]), int(self.errors[look]), cumulative, 1)

    def between(self, first: int, last: int) -> ArmTotals:
        """What came after look `first` (-1: the beginning) until look `last`."""
        before = (self.requests[first], self.errors[first], self.latency[first]) if first >= 0 else (0, 0, np.zeros_like(self.latency[0]))
        cumulative = tuple(zip(BOUNDS, (self.latency[last] - before[2]).tolist(), strict=True))
        return ArmTotals(int(self.requests[last] - before[0]), int(self.errors[last] - before[1]), cumulative, 1)


@dataclass(frozen=True)
class Span:
    """A step as it was counted: `looks` of them until its time was over, and on to the end of patience."""

    step: Step
    look: float
    looks: int
    canary: Series
    stable: Series


def spans(traffic: Traffic, rng: np.random.Generator) -> Iterator[Span]:
    """The steps of one rollout, each when it is asked for."""
    users, began = _users(traffic, rng), 0.0
    for step in traffic.steps:
        first = round(step.share * len(users))
        rates = [float(part.mean()) if len(part) else 0.0 for part in (users[:first], users[first:])]
        arms = [replace(arm, errors=arm.errors * factor) for arm, factor in zip((traffic.canary, traffic.stable), rates, strict=True)]
        shares = (step.share, 1 - step.share)
        canary, stable = (_series(traffic, arm, share * traffic.rate, step, began, rng) for arm, share in zip(arms, shares, strict=True))
        yield Span(step, traffic.look, round(step.seconds / traffic.look), canary, stable)
        began += step.seconds


def _users(traffic: Traffic, rng: np.random.Generator) -> NDArray[np.float64]:
    """How much more or less often than the average each user's requests fail, in the order of their hashes."""
    count = max(1, round(traffic.rate * sum(step.seconds for step in traffic.steps) / USER_REQUESTS))
    if not traffic.spread:
        return np.ones(count)
    concentration = 1 / traffic.spread - 1
    share = traffic.stable.errors
    return rng.beta(share * concentration, (1 - share) * concentration, count) / share


def _series(traffic: Traffic, arm: Arm, rate: float, step: Step, began: float, rng: np.random.Generator) -> Series:
    looks = traffic.patience * round(step.seconds / traffic.look)
    buckets = rng.poisson(rate * traffic.look * _shares(arm.slower), (looks, len(BOUNDS)))
    requests = buckets.sum(axis=1)
    moments = began + traffic.look * (np.arange(looks) + 1)
    troubled = (moments > TROUBLE[0]) & (moments <= TROUBLE[1])
    errors = np.where(troubled, arm.trouble if arm.trouble is not None else arm.errors, arm.errors)
    failed = rng.binomial(requests, np.minimum(1.0, errors))
    return Series(requests.cumsum(), failed.cumsum(), buckets.cumsum(axis=1).cumsum(axis=0))


def _shares(slower: float) -> NDArray[np.float64]:
    """Share of the answers in each bucket of the routers' histogram."""
    below = [0.5 * (1 + math.erf(math.log(bound / (slower * MEDIAN_MS)) / (SIGMA * math.sqrt(2)))) for bound in LATENCY_BOUNDS]
    return np.diff([0.0, *below, 1.0])
