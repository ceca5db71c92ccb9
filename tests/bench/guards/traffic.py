"""Simulated traffic of one canary, counted as the routers count it: sums since each step began, at every look."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from finetune_operator.build.router import LATENCY_BOUNDS
from finetune_operator.decide.rollout.scene import POLL_SECONDS
from finetune_operator.traffic import ArmTotals, Buckets
from numpy.typing import NDArray

MEDIAN_MS, SIGMA = 800.0, 0.6  # answers' times: log-normal, half of them within 530 and 1,200 ms
FIRST_MS, FIRST_SIGMA = 200.0, 0.6  # to the first token, by the servers
OUTPUT_MS, OUTPUT_SIGMA = 30.0, 0.3  # for each token after it: a machine's pace, steadier than what is asked of it
USER_REQUESTS = 20  # of each user in the whole rollout, where users differ

Counts = NDArray[np.int64]


def _eighths(first: float, decades: float) -> tuple[float, ...]:
    return tuple(first * 10 ** (i / 8) for i in range(round(8 * decades) + 1))


FIRST_BOUNDS, OUTPUT_BOUNDS = _eighths(10, 4), _eighths(1, 3.5)  # milliseconds, as the embedded server has them


@dataclass(frozen=True)
class Arm:
    """Shares and times of one arm's answers. `trouble`: the error rate during TROUBLE, which comes from outside; `unusable`: empty or cut
    off."""

    errors: float = 0.01
    slower: float = 1.0
    trouble: float | None = None
    unusable: float = 0.02


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

    A step that could not be judged goes on for up to `patience` times its time. `servers`: the arms' servers tell their own figures too.
    """

    canary: Arm = Arm()
    stable: Arm = Arm()
    rate: float = 200.0
    steps: tuple[Step, ...] = STEPS
    look: float = POLL_SECONDS
    spread: float = 0.0
    patience: int = 1
    servers: bool = False


@dataclass(frozen=True)
class Series:
    """One arm in one step: cumulative counts, the row of a look; times have a column for each bucket of their histogram. What the arm's
    servers tell is None where nobody asks them."""

    requests: Counts
    errors: Counts
    latency: Counts
    first_token: Counts | None = None
    output_token: Counts | None = None
    unusable: Counts | None = None

    def totals(self, look: int) -> ArmTotals:
        """What the operator has read at that look."""
        routers = ArmTotals(int(self.requests[look]), int(self.errors[look]), _buckets(LATENCY_BOUNDS, self.latency[look]), 1)
        if self.first_token is None or self.output_token is None or self.unusable is None:
            return routers
        return replace(
            routers,
            first_token=_buckets(FIRST_BOUNDS, self.first_token[look]),
            output_token=_buckets(OUTPUT_BOUNDS, self.output_token[look]),
            answers=int(self.requests[look]),
            unusable=int(self.unusable[look]),
        )

    def between(self, first: int, last: int) -> ArmTotals:
        """What the routers counted after look `first` (-1: the beginning) until look `last`."""
        before = (self.requests[first], self.errors[first], self.latency[first]) if first >= 0 else (0, 0, np.zeros_like(self.latency[0]))
        cumulative = _buckets(LATENCY_BOUNDS, self.latency[last] - before[2])
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
    buckets = rng.poisson(rate * traffic.look * _shares(LATENCY_BOUNDS, arm.slower * MEDIAN_MS, SIGMA), (looks, len(LATENCY_BOUNDS) + 1))
    requests = buckets.sum(axis=1)
    moments = began + traffic.look * (np.arange(looks) + 1)
    troubled = (moments > TROUBLE[0]) & (moments <= TROUBLE[1])
    errors = np.where(troubled, arm.trouble if arm.trouble is not None else arm.errors, arm.errors)
    failed = rng.binomial(requests, np.minimum(1.0, errors))
    routers = Series(requests.cumsum(), failed.cumsum(), _cumulative(buckets))
    if not traffic.servers:
        return routers
    first = rng.multinomial(requests, _shares(FIRST_BOUNDS, arm.slower * FIRST_MS, FIRST_SIGMA))
    output = rng.multinomial(requests, _shares(OUTPUT_BOUNDS, arm.slower * OUTPUT_MS, OUTPUT_SIGMA))
    unusable = rng.binomial(requests, arm.unusable).cumsum()
    return replace(routers, first_token=_cumulative(first), output_token=_cumulative(output), unusable=unusable)


def _cumulative(buckets: Counts) -> Counts:
    """Over the buckets and over the looks."""
    return buckets.cumsum(axis=1).cumsum(axis=0)


def _buckets(bounds: tuple[float, ...], counts: Counts) -> Buckets:
    return tuple(zip((*bounds, math.inf), counts.tolist(), strict=True))


def _shares(bounds: tuple[float, ...], median: float, sigma: float) -> NDArray[np.float64]:
    """Share of log-normal times in each bucket."""
    below = [0.5 * (1 + math.erf(math.log(bound / median) / (sigma * math.sqrt(2)))) for bound in bounds]
    return np.diff([0.0, *below, 1.0])
