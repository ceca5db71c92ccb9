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
Z: Final = 2.326  # one-sided 99 %: a guard looks many times, and must not roll back by chance
EARLY_REQUESTS: Final = 20  # an overwhelming failure is seen from this many requests


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
    low, _ = wilson(canary.errors, canary.requests)
    stable_low, _ = wilson(stable.errors, stable.requests)
    if canary.requests >= EARLY_REQUESTS and low > limit:
        if stable.requests and stable_low > limit and not _worse(canary, stable):
            return Finding("errors", "Error", f"{text}: both arms fail")
        return Finding("errors", "Fail", text)
    if canary.requests < guards.min_requests:
        return Finding("errors", "Insufficient", f"{text}, at least {guards.min_requests} canary requests are wanted")
    rate = canary.errors / canary.requests if canary.requests else 0.0
    if rate > limit and (stable.requests == 0 or _worse(canary, stable)):
        return Finding("errors", "Fail", text)
    return Finding("errors", "Pass" if rate <= limit else "Error", text)


def latency(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The median and the 95th percentile of the time to the end of an answer, against stable's."""
    if canary.requests < guards.min_requests or _count(canary.latency) == 0:
        text = f"latency: {canary.requests} of {guards.min_requests} canary requests seen"
        return Finding("latency", "Insufficient" if guards.min_requests else "Pass", text)
    if _count(stable.latency) < EARLY_REQUESTS:
        return Finding(
            "latency", "Pass", f"latency: canary p50 {quantile(canary.latency, 0.5):.0f} ms; stable has too little traffic to compare"
        )
    factor = 1 + guards.max_latency_regression_percent / 100
    figures = {q: (quantile(canary.latency, q), quantile(stable.latency, q)) for q in (0.5, 0.95)}
    text = "latency: " + ", ".join(f"p{q * 100:.0f} canary {c:.0f} ms, stable {s:.0f} ms" for q, (c, s) in figures.items())
    worse = all(c > s * factor for c, s in figures.values())
    limit = f", limit +{guards.max_latency_regression_percent} % on both"
    return Finding("latency", "Fail" if worse else "Pass", text + limit)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval for a share, at `Z`. (0, 1) without data. Source: E. B. Wilson, JASA 22 (1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
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
    """What was counted in between."""
    old: Mapping[float, float] = dict(before.latency)
    latency = tuple((bound, count - old.get(bound, 0.0)) for bound, count in now.latency)
    return ArmTotals(now.requests - before.requests, now.errors - before.errors, latency, now.healthy)


def add(a: ArmTotals, b: ArmTotals) -> ArmTotals:
    """The sum over two routers."""
    left, right = dict(a.latency), dict(b.latency)
    latency = tuple((bound, left.get(bound, 0.0) + right.get(bound, 0.0)) for bound in sorted({*left, *right}))
    return ArmTotals(a.requests + b.requests, a.errors + b.errors, latency, a.healthy + b.healthy)


def _worse(canary: ArmTotals, stable: ArmTotals) -> bool:
    """Is the canary's error share above stable's beyond chance? Two-proportion z-test with pooled variance."""
    if not canary.requests or not stable.requests:
        return canary.errors > 0
    p = (canary.errors + stable.errors) / (canary.requests + stable.requests)
    spread = math.sqrt(p * (1 - p) * (1 / canary.requests + 1 / stable.requests))
    difference = canary.errors / canary.requests - stable.errors / stable.requests
    return difference > Z * spread if spread > 0 else difference > 0


def _share(totals: ArmTotals) -> str:
    return f"{100 * totals.errors / totals.requests:.1f} %" if totals.requests else "none"


def _count(buckets: Buckets) -> float:
    return buckets[-1][1] if buckets else 0.0
