"""What traffic shows while users move: Pass, Fail, Insufficient or Error, each with its evidence in words.

Fail means worse than the limit and worse than stable, beyond chance. No data is never a pass and never a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_operator.api.spec import Guards
from finetune_operator.traffic import ArmTotals, Buckets

Verdict = Literal["Pass", "Fail", "Insufficient", "Error"]
# One-sided 99.9 % at each look. A guard looks every few seconds: in simulations a canary with half the errors that are allowed
# was rolled back in 1 of 100 rollouts, at 99 % in 3, and by the plain share in 16.
Z: Final = 3.09
COMPARABLE: Final = 10  # requests from which a share or a quantile says anything: an overwhelming failure is seen so early


@dataclass(frozen=True)
class Finding:
    """A guard's answer and why."""

    guard: str
    verdict: Verdict
    evidence: str


def judge(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> list[Finding]:
    """All guards, from the sums since the step began."""
    return [errors(guards, canary, stable), latency(guards, canary, stable)]


def overall(findings: list[Finding]) -> Verdict:
    """The worst of them: Fail before Error before Insufficient before Pass."""
    order: tuple[Verdict, ...] = ("Fail", "Error", "Insufficient", "Pass")
    return min((f.verdict for f in findings), key=order.index, default="Pass")


def errors(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The share of failed inference requests, against the limit and against stable."""
    limit = guards.max_error_rate_percent / 100
    text = (
        f"errors: canary {_share(canary)} of {canary.requests} requests, stable {_share(stable)} of {stable.requests}, "
        f"limit {guards.max_error_rate_percent} %"
    )
    if _surely_above(limit, canary):
        if stable.requests < COMPARABLE or _worse(canary, stable):
            return Finding("errors", "Fail", text)
        if _surely_above(limit, stable):
            return Finding("errors", "Error", f"{text}: both arms fail")
        return Finding("errors", "Insufficient", f"{text}: above the limit, not yet surely worse than stable")
    if canary.requests < guards.min_requests:
        return Finding("errors", "Insufficient", f"{text}, at least {guards.min_requests} canary requests are wanted")
    if canary.errors > limit * canary.requests:
        return Finding("errors", "Insufficient", f"{text}: above the limit, not yet beyond chance")
    return Finding("errors", "Pass", text)


def latency(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The median and the 95th percentile of the time to the end of an answer, against stable's."""
    seen, known = _count(canary.latency), _count(stable.latency)
    if canary.requests < guards.min_requests:
        return Finding("latency", "Insufficient", f"latency: {canary.requests} of {guards.min_requests} canary requests seen")
    if min(seen, known) < COMPARABLE:
        text = f"latency: canary {seen:.0f}, stable {known:.0f} answers timed, {COMPARABLE} of each are compared"
        return Finding("latency", "Insufficient" if guards.min_requests else "Pass", text)
    factor = 1 + guards.max_latency_regression_percent / 100
    figures = {q: (quantile(canary.latency, q), quantile(stable.latency, q)) for q in (0.5, 0.95)}
    text = "latency: " + ", ".join(f"p{q * 100:.0f} canary {c:.0f} ms, stable {s:.0f} ms" for q, (c, s) in figures.items())
    worse = all(_at_least(canary.latency, q) > factor * _at_most(stable.latency, q) for q in figures)
    limit = f", limit +{guards.max_latency_regression_percent} % on both"
    return Finding("latency", "Fail" if worse else "Pass", text + limit)


def wilson(successes: int, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval for a share. (0, 1) without data. Source: E. B. Wilson, JASA 22 (1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def quantile(buckets: Buckets, q: float) -> float:
    """The q-quantile in milliseconds, linear inside its bucket; the last finite bound when it lies beyond."""
    total = _count(buckets)
    wanted, below, previous = q * total, 0.0, 0.0
    for bound, cumulative in buckets:
        if cumulative >= wanted:
            if math.isinf(bound) or cumulative == below:
                return previous
            return previous + (bound - previous) * (wanted - below) / (cumulative - below)
        below, previous = cumulative, bound
    return previous


def subtract(now: ArmTotals, before: ArmTotals) -> ArmTotals:
    """What was counted in between. Counters that went back began anew: the router was restarted.

    What failed was a request, whether or not the counter of answers knows of it (a connection that is broken off has no answer).
    """
    if now.requests < before.requests or now.errors < before.errors:
        return now
    old: Mapping[float, float] = dict(before.latency)
    latency = tuple((bound, max(0.0, count - old.get(bound, 0.0))) for bound, count in now.latency)
    errors = now.errors - before.errors
    return ArmTotals(max(errors, now.requests - before.requests), errors, latency, now.healthy)


def add(a: ArmTotals, b: ArmTotals) -> ArmTotals:
    """The sum over two routers."""
    left, right = dict(a.latency), dict(b.latency)
    latency = tuple((bound, left.get(bound, 0.0) + right.get(bound, 0.0)) for bound in sorted({*left, *right}))
    return ArmTotals(a.requests + b.requests, a.errors + b.errors, latency, a.healthy + b.healthy)


def _surely_above(limit: float, totals: ArmTotals) -> bool:
    low, _ = wilson(totals.errors, totals.requests)
    return totals.requests >= COMPARABLE and low > limit


def _worse(canary: ArmTotals, stable: ArmTotals) -> bool:
    """Is the canary's error share above stable's beyond chance? Two-proportion z-test with pooled variance."""
    p = (canary.errors + stable.errors) / (canary.requests + stable.requests)
    spread = math.sqrt(p * (1 - p) * (1 / canary.requests + 1 / stable.requests))
    return canary.errors / canary.requests - stable.errors / stable.requests > Z * spread


def _at_least(buckets: Buckets, q: float) -> float:
    """What the q-quantile surely is at least: a lower one, by the spread of the share below it."""
    return quantile(buckets, max(0.0, q - Z * math.sqrt(q * (1 - q) / _count(buckets))))


def _at_most(buckets: Buckets, q: float) -> float:
    return quantile(buckets, min(1.0, q + Z * math.sqrt(q * (1 - q) / _count(buckets))))


def _share(totals: ArmTotals) -> str:
    return f"{100 * totals.errors / totals.requests:.1f} %" if totals.requests else "none"


def _count(buckets: Buckets) -> float:
    return buckets[-1][1] if buckets else 0.0
