"""What traffic shows while users move: Pass, Fail, Insufficient or Error, each with its evidence in words.

Fail means worse than the limit and worse than stable, beyond chance: by tests that may be asked at every look (`sequential`).
No data is never a pass and never a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_operator.api.spec import Guards
from finetune_operator.decide.sequential import fewest_above, surely_above
from finetune_operator.traffic import ArmTotals, Buckets

Verdict = Literal["Pass", "Fail", "Insufficient", "Error"]
COMPARABLE: Final = 10  # requests from which a share or a quantile says anything: an overwhelming failure is seen so early


@dataclass(frozen=True)
class Finding:
    """A guard's answer and why."""

    guard: str
    verdict: Verdict
    evidence: str


def judge(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> list[Finding]:
    """All guards that are asked for, from the sums since the step began."""
    percent = guards.max_error_regression_percent
    regression = [] if percent is None else [error_regression(percent, guards.min_requests, canary, stable)]
    return [errors(guards, canary, stable), *regression, latency(guards, canary, stable)]


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
    if _above(limit, canary):
        if stable.requests < COMPARABLE or _worse(canary, stable):
            return Finding("errors", "Fail", text)
        if _above(limit, stable):
            return Finding("errors", "Error", f"{text}: both arms fail")
        return Finding("errors", "Insufficient", f"{text}: above the limit, not yet surely worse than stable")
    if canary.requests < guards.min_requests:
        return Finding("errors", "Insufficient", f"{text}, at least {guards.min_requests} canary requests are wanted")
    if canary.errors > limit * canary.requests:
        return Finding("errors", "Insufficient", f"{text}: above the limit, not yet beyond chance")
    return Finding("errors", "Pass", text)


def error_regression(percent: int, min_requests: int, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The share of failed inference requests against stable's, however low both are: `percent` more of it are allowed."""
    guard, factor = "error regression", 1 + percent / 100
    text = (
        f"{guard}: canary {_share(canary)} of {canary.requests} requests, stable {_share(stable)} of {stable.requests}, limit +{percent} %"
    )
    if canary.requests < min_requests:
        return Finding(guard, "Insufficient", f"{text}, at least {min_requests} canary requests are wanted")
    if min(canary.requests, stable.requests) < COMPARABLE:
        return Finding(guard, "Insufficient" if min_requests else "Pass", f"{text}: {COMPARABLE} of each are compared")
    if _worse(canary, stable, factor):
        return Finding(guard, "Fail", text)
    if canary.errors * stable.requests > factor * stable.errors * canary.requests:
        return Finding(guard, "Insufficient", f"{text}: above the limit, not yet beyond chance")
    return Finding(guard, "Pass", text)


def latency(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The median and the 95th percentile of the time to the end of an answer, against stable's.

    Fail needs both: that the median is slower beyond chance, and that the 95th percentile as it was counted is slower as well.
    """
    seen, known = _count(canary.latency), _count(stable.latency)
    if canary.requests < guards.min_requests:
        return Finding("latency", "Insufficient", f"latency: {canary.requests} of {guards.min_requests} canary requests seen")
    if min(seen, known) < COMPARABLE:
        text = f"latency: canary {seen:.0f}, stable {known:.0f} answers timed, {COMPARABLE} of each are compared"
        return Finding("latency", "Insufficient" if guards.min_requests else "Pass", text)
    factor = 1 + guards.max_latency_regression_percent / 100
    figures = {q: (quantile(canary.latency, q), quantile(stable.latency, q)) for q in (0.5, 0.95)}
    text = "latency: " + ", ".join(f"p{q * 100:.0f} canary {c:.0f} ms, stable {s:.0f} ms" for q, (c, s) in figures.items())
    worse = all(c > factor * s for c, s in figures.values()) and _median_at_least(canary.latency) > factor * _median_at_most(stable.latency)
    limit = f", limit +{guards.max_latency_regression_percent} % on both"
    return Finding("latency", "Fail" if worse else "Pass", text + limit)


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


def _above(limit: float, totals: ArmTotals) -> bool:
    return totals.requests >= COMPARABLE and surely_above(totals.errors, totals.requests, limit)


def _worse(canary: ArmTotals, stable: ArmTotals, factor: float = 1.0) -> bool:
    """Is the canary's error share above `factor` times stable's beyond chance? Of all errors it then has more than its part."""
    part = factor * canary.requests / (factor * canary.requests + stable.requests)
    return surely_above(canary.errors, canary.errors + stable.errors, part)


def _median_at_least(buckets: Buckets) -> float:
    """What the median surely is at least; 0 where too few were timed to say."""
    n = int(_count(buckets))
    return quantile(buckets, max(0.0, 1 - fewest_above(n, 0.5) / n))


def _median_at_most(buckets: Buckets) -> float:
    """What the median surely is at most; of too few to say the slowest."""
    n = int(_count(buckets))
    return quantile(buckets, min(1.0, fewest_above(n, 0.5) / n))


def _share(totals: ArmTotals) -> str:
    return f"{100 * totals.errors / totals.requests:.1f} %" if totals.requests else "none"


def _count(buckets: Buckets) -> float:
    return buckets[-1][1] if buckets else 0.0
