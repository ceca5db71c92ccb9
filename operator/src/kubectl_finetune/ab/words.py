"""Figures of a comparison as people read them, the same on a terminal and on a page. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from kubectl_finetune.ab.compare import Comparison, Joined, Metric, Unit
from kubectl_finetune.ab.statistics import Effect

SURE: Final = 0.05
ROUND: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # half axes
NAMED: Final = 3  # users that are named
SIGNS: Final = {"share": " %", "milliseconds": " ms", "number": ""}
WHY: Final = (
    "Chance does not do that: something chose who is seen, and whatever differs between the arms may come from it. Look for requests that "
    "one arm loses before they are logged, a part of the log that is missing, identities that change, bots."
)


def headline(c: Comparison) -> str:
    """What is compared."""
    split = f"{c.split:g} % of the users on revision {c.canary.revision}, the others on {c.stable.revision}"
    return f"A/B test, rollout {c.rollout}: {split}"


def extent(c: Comparison) -> str:
    """When, and how much."""
    users, requests = c.stable.users + c.canary.users - len(c.both), c.stable.requests + c.canary.requests
    return f"{c.began:%Y-%m-%d %H:%M} to {c.ended:%Y-%m-%d %H:%M} UTC  ·  {users:,} users  ·  {requests:,} requests"


def split(c: Comparison) -> str:
    """Who is on the canary, and how likely that is."""
    canary = c.canary.users - len(c.both)
    users = canary + c.stable.users - len(c.both)
    met = f"{100 * canary / max(1, users):.1f} % where {c.split:g} % should be"
    return f"{canary:,} of {users:,} users are on the canary, {met} ({chance(c.mismatch)})"


def left_out(c: Comparison) -> str:
    """Users of neither arm; empty where there are none."""
    more = ", …" if len(c.both) > NAMED else ""
    return f"{len(c.both):,} users who were seen on both arms: {', '.join(c.both[:NAMED])}{more}" if c.both else ""


def joined(c: Comparison, j: Joined) -> str:
    """How the outcomes met the log."""
    users = (c.stable.users - len(c.both), c.canary.users - len(c.both))
    shares = ", ".join(f"{role} {part(n, of)}" for role, n, of in zip(("stable", "canary"), j.with_outcome, users, strict=True))
    return f"{j.rows:,} rows met the log; users with one: {shares}"


def doubts(j: Joined) -> Iterator[str]:
    """What of the outcomes is left out, or not to be trusted."""
    if j.unknown:
        rows = ", ".join(str(n) for n in j.first_unknown) + (", …" if j.unknown > len(j.first_unknown) else "")
        yield f"{j.unknown:,} rows are of nobody in the log (row {rows}): left out"
    if j.p < 0.001:
        yield (
            f"The arms differ in how many users have an outcome at all ({chance(j.p)}): what is compared may be who answers, not what they "
            "answer."
        )


def verdict(m: Metric, *, outcome: bool) -> str:
    """The first metric in a sentence."""
    if m.effect is None:
        return f"{m.name}: nothing is said of it ({m.note})."
    e = m.effect
    relative = f" ({e.lift:+.1%} of stable's)".replace("%", " %") if e.lift is not None else ""
    seen = f"So many users show a difference of {difference(e.detectable, m.unit)[1:]}{unit(m.unit)} in four of five tests."
    if e.p < SURE:
        way, size = "higher" if e.difference > 0 else "lower", difference(e.difference, m.unit)[1:]
        return f"{m.name}: {way} on the canary by {size}{unit(m.unit)}{relative}, beyond chance ({chance(e.p)}). {seen}"
    what = "" if outcome else " With --outcomes, what the users made of it is compared."
    return f"{m.name}: no difference beyond chance ({chance(e.p)}). {seen}{what}"


def interval(e: Effect, of: Unit) -> str:
    """The difference and its interval."""
    middle, low, high = (difference(x, of, e.high - e.difference) for x in (e.difference, e.low, e.high))
    return f"{middle} [{low}, {high}]{unit(of)}"


def value(x: float, of: Unit) -> str:
    """A mean with its unit."""
    return f"{_digits(_scaled(x, of), _scaled(x, of))}{SIGNS[of]}"


def difference(x: float, of: Unit, width: float | None = None) -> str:
    """A difference with its sign, in points of a share; as exact as half its interval's `width` is with three digits."""
    return f"{'−' if x < 0 else '+'}{_digits(abs(_scaled(x, of)), _scaled(x if width is None else width, of))}"


def unit(of: Unit) -> str:
    """What a difference is in."""
    return " points" if of == "share" else SIGNS[of]


def part(hits: int, of: int) -> str:
    """A share in percent."""
    return f"{100 * hits / of:.2f} %" if of else "–"


def time(ms: float | None) -> str:
    """Milliseconds, or seconds where there are many."""
    if ms is None:
        return "–"
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1000:,.1f} s"


def probability(p: float) -> str:
    """A p-value alone."""
    return f"{p:.2g}" if p >= 0.0001 else "<0.0001"


def chance(p: float) -> str:
    """A p-value in a sentence."""
    return f"p {probability(p)}" if p < 0.0001 else f"p = {probability(p)}"


def scale(metrics: Sequence[Metric], *, outcome: bool) -> float:
    """Half the width of the axis of relative effects, as a share: a round number that holds half of the intervals, and the outcome's."""
    widths = [max(abs(m.effect.lift_low or 0), abs(m.effect.lift_high or 0)) for m in metrics if m.effect]
    if not widths:
        return 0.0
    wanted = max(sorted(widths)[len(widths) // 2], widths[0] if outcome and metrics[0].effect else 0.0)
    return next((x for x in ROUND if x >= wanted), ROUND[-1]) if wanted else 0.0


def _scaled(x: float, of: Unit) -> float:
    return 100 * x if of == "share" else x


def _digits(x: float, size: float) -> str:
    """With as many places as three digits of `size` have."""
    places = 2 - math.floor(math.log10(abs(size))) if size else 0
    return f"{x:,.{min(max(places, 0), 5)}f}"
