"""A comparison as a page of text: the arms, the split, and every metric with its interval drawn on one scale. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from kubectl_finetune.ab.compare import Comparison, Metric, Side, Unit
from kubectl_finetune.ab.statistics import Effect
from kubectl_finetune.view import BAD, BOLD, BUSY, QUIET, Paint, plain

SURE: Final = 0.05
ROUND: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # half axes
PLOT: Final = 33  # columns of the drawing, zero in the middle
NAMED: Final = 3  # users that are named
SIGNS: Final = {"share": " %", "milliseconds": " ms", "number": ""}


def page(title: str, c: Comparison, notes: Sequence[str] = (), paint: Paint = plain, *, shown: bool = True) -> list[str]:
    """The lines. Effects are left out unless `shown`."""
    blocks = (_head(title, c, paint), _arms(c, paint), _split(c, paint), _notes(notes, paint), _effects(c, paint) if shown else iter(()))
    lines: list[str] = []
    for block in blocks:
        made = list(block)
        lines += [*made, ""] if made else []
    return [line.rstrip() for line in lines[:-1]]


def _head(title: str, c: Comparison, paint: Paint) -> Iterator[str]:
    what = f"{c.split:g} % of the users on revision {c.canary.revision}, the others on {c.stable.revision}"
    yield f"{paint(title, BOLD)}  A/B test, rollout {c.rollout}: {what}"
    users, requests = c.stable.users + c.canary.users - len(c.both), c.stable.requests + c.canary.requests
    yield paint(f"{c.began:%Y-%m-%d %H:%M} to {c.ended:%Y-%m-%d %H:%M} UTC  ·  {users:,} users  ·  {requests:,} requests", QUIET)


def _arms(c: Comparison, paint: Paint) -> Iterator[str]:
    columns = (
        ("users", 9),
        ("requests", 11),
        ("errors", 9),
        ("given up", 10),
        ("median", 10),
        ("p95", 10),
        ("first byte", 12),
        ("tokens", 8),
    )
    yield paint(f"{'':<8}{'revision':<12}{''.join(f'{name:>{width}}' for name, width in columns)}", QUIET)
    yield _arm("stable", c.stable)
    yield _arm("canary", c.canary)


def _arm(role: str, side: Side) -> str:
    return (
        f"{role:<8}{side.revision:<12}{side.users:>9,}{side.requests:>11,}{_part(side.errors, side.requests):>9}"
        f"{_part(side.abandoned, side.requests):>10}{_time(side.median):>10}{_time(side.p95):>10}{_time(side.first_median):>12}"
        f"{'–' if side.tokens is None else f'{side.tokens:,.0f}':>8}"
    )


def _split(c: Comparison, paint: Paint) -> Iterator[str]:
    both = len(c.both)
    stable, canary = c.stable.users - both, c.canary.users - both
    met = f"{100 * canary / max(1, stable + canary):.1f} % where {c.split:g} % should be"
    text = f"{canary:,} of {stable + canary:,} users are on the canary, {met}"
    if c.split_is_met:
        yield f"Split     {text} ({_told(c.mismatch)})"
    else:
        yield paint(f"Split     SAMPLE RATIO MISMATCH: {text} ({_told(c.mismatch)}).", BAD)
        yield from _wrapped(
            "Chance does not do that: something chose who is seen, and whatever differs between the arms may come from it. Look for "
            "requests that one arm loses before they are logged, a part of the log that is missing, identities that change, bots.",
            paint,
            BAD,
        )
    if both:
        named = ", ".join(c.both[:NAMED]) + (", …" if both > NAMED else "")
        yield paint(f"Left out  {both:,} users who were seen on both arms: {named}", BUSY)
    if c.joined:
        j, users = c.joined, (stable, canary)
        shares = ", ".join(f"{role} {_part(n, of)}" for role, n, of in zip(("stable", "canary"), j.with_outcome, users, strict=True))
        yield f"Outcomes  {j.rows:,} rows met the log; users with one: {shares}"
        if j.unknown:
            rows = ", ".join(str(n) for n in j.first_unknown) + (", …" if j.unknown > len(j.first_unknown) else "")
            yield paint(f"          {j.unknown:,} rows are of nobody in the log (row {rows}): left out", BUSY)
        if j.p < 0.001:
            yield paint(f"          The arms differ in how many users have an outcome at all ({_told(j.p)}): what is compared may", BAD)
            yield paint("          be who answers, not what they answer.", BAD)


def _notes(notes: Sequence[str], paint: Paint) -> Iterator[str]:
    for note in notes:
        yield from _wrapped(note, paint, BUSY, "Note      ")


def _effects(c: Comparison, paint: Paint) -> Iterator[str]:
    scale = _scale(c.metrics, outcome=c.joined is not None)
    axis = f"{f'−{scale:.0%}':<{PLOT // 2 - 1}}0{f'+{scale:.0%}':>{PLOT // 2 + 1}}".replace("%", " %") if scale else ""
    yield paint(f"{'canary minus stable':<20}{'stable':>11}{'canary':>11}   {'difference, 95 % interval':<34}{'p':>7}   {axis}", QUIET)
    for metric in c.metrics:
        yield _row(metric, scale, paint)
    yield ""
    yield from _wrapped(_verdict(c.metrics[0], outcome=c.joined is not None), paint, BOLD)


def _row(m: Metric, scale: float, paint: Paint) -> str:
    values = "".join(f"{'–' if arm is None else value(arm.mean, m.unit):>11}" for arm in (m.stable, m.canary))
    if m.effect is None:
        return f"{m.name[:19]:<20}{values}   {paint(m.note, QUIET)}"
    e = m.effect
    middle, low, high = (difference(x, m.unit, e.high - e.difference) for x in (e.difference, e.low, e.high))
    text = f"{middle} [{low}, {high}]"
    unit = " points" if m.unit == "share" else SIGNS[m.unit]
    style = BUSY if e.p < SURE else QUIET
    return f"{m.name[:19]:<20}{values}   {text + unit:<34}{_p(e.p):>7}   {paint(_drawn(e, scale), style)}"


def _drawn(e: Effect, scale: float) -> str:
    """The relative interval on an axis from −scale to +scale; arrows where it goes on beyond."""
    if e.lift is None or e.lift_low is None or e.lift_high is None or not scale:
        return ""
    cells = list(" " * PLOT)
    low, middle, high = (round((PLOT - 1) * (min(scale, max(-scale, x)) / scale + 1) / 2) for x in (e.lift_low, e.lift, e.lift_high))
    cells[PLOT // 2] = "│"
    for at in range(low, high + 1):
        cells[at] = "┼" if at == PLOT // 2 else "─"
    cells[low], cells[high], cells[middle] = "├", "┤", "●"
    cells[0] = "◂" if e.lift_low < -scale else cells[0]
    cells[-1] = "▸" if e.lift_high > scale else cells[-1]
    return "".join(cells)


def _scale(metrics: Sequence[Metric], *, outcome: bool) -> float:
    """Half the width of the axis, as a share: a round number that holds half of the intervals, and the outcome's."""
    widths = [max(abs(m.effect.lift_low or 0), abs(m.effect.lift_high or 0)) for m in metrics if m.effect]
    if not widths:
        return 0.0
    wanted = max(sorted(widths)[len(widths) // 2], widths[0] if outcome and metrics[0].effect else 0.0)
    return next((x for x in ROUND if x >= wanted), ROUND[-1]) if wanted else 0.0


def _verdict(m: Metric, *, outcome: bool) -> str:
    if m.effect is None:
        return f"{m.name}: nothing is said of it ({m.note})."
    e = m.effect
    unit = " points" if m.unit == "share" else SIGNS[m.unit]
    relative = f" ({e.lift:+.1%} of stable's)".replace("%", " %") if e.lift is not None else ""
    seen = f"So many users show a difference of {difference(e.detectable, m.unit)[1:]}{unit} in four of five tests."
    if e.p < SURE:
        way, size = "higher" if e.difference > 0 else "lower", difference(e.difference, m.unit)[1:]
        return f"{m.name}: {way} on the canary by {size}{unit}{relative}, beyond chance ({_told(e.p)}). {seen}"
    what = "" if outcome else " With --outcomes, what the users made of it is compared."
    return f"{m.name}: no difference beyond chance ({_told(e.p)}). {seen}{what}"


def value(x: float, unit: Unit) -> str:
    """A mean with its unit."""
    return f"{_digits(_scaled(x, unit), _scaled(x, unit))}{SIGNS[unit]}"


def difference(x: float, unit: Unit, width: float | None = None) -> str:
    """A difference with its sign, in points of a share; as exact as half its interval's `width` is with three digits."""
    return f"{'−' if x < 0 else '+'}{_digits(abs(_scaled(x, unit)), _scaled(x if width is None else width, unit))}"


def _scaled(x: float, unit: Unit) -> float:
    return 100 * x if unit == "share" else x


def _digits(x: float, size: float) -> str:
    """With as many places as three digits of `size` have."""
    places = 2 - math.floor(math.log10(abs(size))) if size else 0
    return f"{x:,.{min(max(places, 0), 5)}f}"


def _part(hits: int, of: int) -> str:
    return f"{100 * hits / of:.2f} %" if of else "–"


def _time(ms: float | None) -> str:
    if ms is None:
        return "–"
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1000:,.1f} s"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 0.0001 else "<0.0001"


def _told(p: float) -> str:
    return f"p {_p(p)}" if p < 0.0001 else f"p = {_p(p)}"


def _wrapped(text: str, paint: Paint, style: str, first: str = "") -> Iterator[str]:
    indent = " " * (len(first) or 10 if style != BOLD else 0)
    for line in textwrap.wrap(text, 118, initial_indent=first or indent, subsequent_indent=indent):
        yield paint(line, style)
