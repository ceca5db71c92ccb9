"""What traffic shows while users move: Pass, Fail, Insufficient or Error, each with its evidence in words.

Fail means worse than the limit and worse than stable, beyond chance: by tests that may be asked at every look (`sequential`).
No data is never a pass and never a failure.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, Literal

from finetune_operator.api.blocks.guards import Guards
from finetune_operator.decide.sequential import ALPHA, fewest_above, surely_above
from finetune_operator.traffic import ArmTotals, Buckets

Verdict = Literal["Pass", "Fail", "Insufficient", "Error"]
# That a canary is above the limit may be less sure where it is surely worse than stable as well: that alone keeps equal arms from harm.
LIMIT_ALPHA: Final = 0.01
COMPARABLE: Final = 10  # requests from which a share or a quantile says anything: an overwhelming failure is seen so early


@dataclass(frozen=True)
class Finding:
    """A guard's answer and why."""

    guard: str
    verdict: Verdict
    evidence: str


def judge(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> list[Finding]:
    """All guards that are asked for, from the sums since the step began."""
    asked = (
        (guards.max_error_regression_percent, error_regression),
        (guards.max_time_to_first_token_regression_percent, first_token),
        (guards.max_time_per_output_token_regression_percent, output_token),
        (guards.max_unusable_regression_percent, unusable),
    )
    regressions = [guard(percent, guards.min_requests, canary, stable) for percent, guard in asked if percent is not None]
    return [errors(guards, canary, stable), latency(guards, canary, stable), *regressions]


def asks_servers(guards: Guards) -> bool:
    """Is any guard asked for that the arms' servers tell about?"""
    theirs = (
        guards.max_time_to_first_token_regression_percent,
        guards.max_time_per_output_token_regression_percent,
        guards.max_unusable_regression_percent,
    )
    return any(percent is not None for percent in theirs)


def overall(findings: list[Finding]) -> Verdict:
    """The worst of them: Fail before Error before Insufficient before Pass."""
    order: tuple[Verdict, ...] = ("Fail", "Error", "Insufficient", "Pass")
    return min((f.verdict for f in findings), key=order.index, default="Pass")


def errors(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The share of failed inference requests, against the limit and against stable."""
    limit, failed, known = guards.max_error_rate_percent / 100, *(_Share(arm.errors, arm.requests) for arm in (canary, stable))
    text = f"errors: canary {failed} requests, stable {known}, limit {guards.max_error_rate_percent} %"
    compared = stable.requests >= COMPARABLE
    if _above(limit, failed, LIMIT_ALPHA if compared else ALPHA):
        if not compared or _surely_more(failed, known, 1.0):
            return Finding("errors", "Fail", text)
        if _above(limit, known, LIMIT_ALPHA):
            return Finding("errors", "Error", f"{text}: both arms fail")
        return Finding("errors", "Insufficient", f"{text}: above the limit, not yet surely worse than stable")
    if canary.requests < guards.min_requests:
        return Finding("errors", "Insufficient", f"{text}, at least {guards.min_requests} canary requests are wanted")
    if canary.errors > limit * canary.requests:
        return Finding("errors", "Insufficient", f"{text}: above the limit, not yet beyond chance")
    return Finding("errors", "Pass", text)


def latency(guards: Guards, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The time to the end of an answer, by the routers."""
    return _slower("latency", guards.max_latency_regression_percent, guards.min_requests, canary, canary.latency, stable.latency)


def error_regression(percent: int, wanted: int, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The share of failed inference requests against stable's, however low both are: `percent` more of it are allowed."""
    failed, known = (_Share(arm.errors, arm.requests) for arm in (canary, stable))
    return _more("error regression", "requests", percent, wanted, failed, known)


def first_token(percent: int, wanted: int, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The time to the first token, by the arms' servers."""
    name = "time to first token"
    if not (canary.first_token and stable.first_token):
        return _untold(name, canary.first_token)
    return _slower(name, percent, wanted, canary, canary.first_token, stable.first_token)


def output_token(percent: int, wanted: int, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The time per output token, by the arms' servers."""
    name = "time per output token"
    if not (canary.output_token and stable.output_token):
        return _untold(name, canary.output_token)
    return _slower(name, percent, wanted, canary, canary.output_token, stable.output_token)


def unusable(percent: int, wanted: int, canary: ArmTotals, stable: ArmTotals) -> Finding:
    """The share of answers that are empty or cut off at their longest, by the arms' servers, against stable's."""
    if not (canary.first_token and stable.first_token):
        return _untold("unusable answers", canary.first_token)
    bad, known = (_Share(min(arm.unusable, arm.answers), arm.answers) for arm in (canary, stable))
    return _more("unusable answers", "answers", percent, wanted, bad, known)


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
    """What was counted in between. Counters that went back began anew: the router, or the server, was restarted.

    What failed was a request, whether or not the counter of answers knows of it (a connection that is broken off has no answer).
    """
    counters = [(arm.requests, arm.errors, arm.answers, arm.unusable) for arm in (now, before)]
    if any(later < earlier for later, earlier in zip(*counters, strict=True)):
        return now
    errors = now.errors - before.errors
    return ArmTotals(
        max(errors, now.requests - before.requests),
        errors,
        _fewer(now.latency, before.latency),
        now.healthy,
        _fewer(now.first_token, before.first_token),
        _fewer(now.output_token, before.output_token),
        now.answers - before.answers,
        now.unusable - before.unusable,
    )


def add(a: ArmTotals, b: ArmTotals) -> ArmTotals:
    """The sum over two routers, or two servers."""
    return ArmTotals(
        a.requests + b.requests,
        a.errors + b.errors,
        _together(a.latency, b.latency),
        a.healthy + b.healthy,
        _together(a.first_token, b.first_token),
        _together(a.output_token, b.output_token),
        a.answers + b.answers,
        a.unusable + b.unusable,
    )


@dataclass(frozen=True)
class _Share:
    """`hits` of `n`."""

    hits: int
    n: int

    def __str__(self) -> str:
        return f"{100 * self.hits / self.n:.1f} % of {self.n}" if self.n else "none of 0"


def _more(guard: str, what: str, percent: int, wanted: int, canary: _Share, stable: _Share) -> Finding:
    """Is the canary's share more than `percent` above stable's, beyond chance?"""
    text, factor = f"{guard}: canary {canary} {what}, stable {stable}, limit +{percent} %", 1 + percent / 100
    if canary.n < wanted:
        return Finding(guard, "Insufficient", f"{text}, at least {wanted} of the canary are wanted")
    if min(canary.n, stable.n) < COMPARABLE:
        return Finding(guard, "Insufficient" if wanted else "Pass", f"{text}: {COMPARABLE} of each are compared")
    if _surely_more(canary, stable, factor):
        return Finding(guard, "Fail", text)
    if canary.hits * stable.n > factor * stable.hits * canary.n:
        return Finding(guard, "Insufficient", f"{text}: above the limit, not yet beyond chance")
    return Finding(guard, "Pass", text)


def _slower(guard: str, percent: int, wanted: int, arm: ArmTotals, canary: Buckets, stable: Buckets) -> Finding:
    """Are the canary's median and 95th percentile more than `percent` above stable's?

    Fail needs both: that the median is beyond chance, and that the 95th percentile as it was counted is as well.
    """
    seen, known = _count(canary), _count(stable)
    if arm.requests < wanted:
        return Finding(guard, "Insufficient", f"{guard}: {arm.requests} of {wanted} canary requests seen")
    if min(seen, known) < COMPARABLE:
        text = f"{guard}: canary {seen:.0f}, stable {known:.0f} answers timed, {COMPARABLE} of each are compared"
        return Finding(guard, "Insufficient" if wanted else "Pass", text)
    factor = 1 + percent / 100
    figures = {q: (quantile(canary, q), quantile(stable, q)) for q in (0.5, 0.95)}
    text = f"{guard}: " + ", ".join(f"p{q * 100:.0f} canary {c:.0f} ms, stable {s:.0f} ms" for q, (c, s) in figures.items())
    worse = all(c > factor * s for c, s in figures.values()) and _median_at_least(canary) > factor * _median_at_most(stable)
    return Finding(guard, "Fail" if worse else "Pass", f"{text}, limit +{percent} % on both")


def _untold(guard: str, canary: Buckets) -> Finding:
    arm = "stable" if canary else "the canary"
    return Finding(guard, "Error", f"{guard}: no server of {arm} tells it")


def _surely_more(canary: _Share, stable: _Share, factor: float) -> bool:
    """Is the canary's share above `factor` times stable's beyond chance? Of all hits it then has more than its part."""
    part = factor * canary.n / (factor * canary.n + stable.n)
    return surely_above(canary.hits, canary.hits + stable.hits, part)


def _above(limit: float, share: _Share, alpha: float) -> bool:
    return share.n >= COMPARABLE and surely_above(share.hits, share.n, limit, alpha)


def _median_at_least(buckets: Buckets) -> float:
    """What the median surely is at least; 0 where too few were timed to say."""
    n = int(_count(buckets))
    return quantile(buckets, max(0.0, 1 - fewest_above(n, 0.5) / n))


def _median_at_most(buckets: Buckets) -> float:
    """What the median surely is at most; of too few to say the slowest."""
    n = int(_count(buckets))
    return quantile(buckets, min(1.0, fewest_above(n, 0.5) / n))


def _fewer(now: Buckets, before: Buckets) -> Buckets:
    return tuple((bound, max(0.0, count - _at(before, bound))) for bound, count in now)


def _at(buckets: Buckets, bound: float) -> float:
    """How many were at most that, where only bounds that add something are told."""
    below = bisect_right(buckets, bound, key=lambda bucket: bucket[0])
    return buckets[below - 1][1] if below else 0.0


def _together(a: Buckets, b: Buckets) -> Buckets:
    left, right = dict(a), dict(b)
    return tuple((bound, left.get(bound, 0.0) + right.get(bound, 0.0)) for bound in sorted({*left, *right}))


def _count(buckets: Buckets) -> float:
    return buckets[-1][1] if buckets else 0.0
