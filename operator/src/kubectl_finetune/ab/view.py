"""A comparison as a page of text: the arms, the split, and every metric with its interval drawn on one scale. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from kubectl_finetune.ab import words
from kubectl_finetune.ab.compare import Comparison, Metric, Side
from kubectl_finetune.ab.statistics import Effect
from kubectl_finetune.view import BAD, BOLD, BUSY, QUIET, Paint, plain

WIDTH: Final = 118
MARGIN: Final = 10  # columns, where a block says what it is
PLOT: Final = 33  # columns of the drawing, zero in the middle
COLUMNS: Final = {"users": 9, "requests": 11, "errors": 9, "given up": 10, "median": 10, "p95": 10, "first byte": 12, "tokens": 8}


def page(title: str, c: Comparison, notes: Sequence[str] = (), paint: Paint = plain, *, shown: bool = True) -> list[str]:
    """The lines. Effects are left out unless `shown`."""
    blocks = (_head(title, c, paint), _arms(c, paint), _met(c, paint), _notes(notes, paint), _effects(c, paint) if shown else iter(()))
    lines: list[str] = []
    for block in blocks:
        made = list(block)
        lines += [*made, ""] if made else []
    return [line.rstrip() for line in lines[:-1]]


def side(arm: Side) -> tuple[str, ...]:
    """An arm's figures, in the order of COLUMNS."""
    tokens = "–" if arm.tokens is None else f"{arm.tokens:,.0f}"
    shares = (words.part(arm.errors, arm.requests), words.part(arm.abandoned, arm.requests))
    return f"{arm.users:,}", f"{arm.requests:,}", *shares, *map(words.time, (arm.median, arm.p95, arm.first_median)), tokens


def _head(title: str, c: Comparison, paint: Paint) -> Iterator[str]:
    yield f"{paint(title, BOLD)}  {words.headline(c)}"
    yield paint(words.extent(c), QUIET)


def _arms(c: Comparison, paint: Paint) -> Iterator[str]:
    yield paint(f"{'':<8}{'revision':<12}{_columns(tuple(COLUMNS))}", QUIET)
    for role, arm in (("stable", c.stable), ("canary", c.canary)):
        yield f"{role:<8}{arm.revision:<12}{_columns(side(arm))}"


def _columns(texts: Sequence[str]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, COLUMNS.values(), strict=True))


def _met(c: Comparison, paint: Paint) -> Iterator[str]:
    if c.split_is_met:
        yield f"{'Split':<{MARGIN}}{words.split(c)}"
    else:
        yield paint(f"{'Split':<{MARGIN}}SAMPLE RATIO MISMATCH: {words.split(c)}.", BAD)
        yield from _wrapped("", words.WHY, paint, BAD)
    if text := words.left_out(c):
        yield paint(f"{'Left out':<{MARGIN}}{text}", BUSY)
    if c.joined:
        yield f"{'Outcomes':<{MARGIN}}{words.joined(c, c.joined)}"
        for doubt in words.doubts(c.joined):
            yield from _wrapped("", doubt, paint, BUSY)


def _notes(notes: Sequence[str], paint: Paint) -> Iterator[str]:
    for note in notes:
        yield from _wrapped("Note", note, paint, BUSY)


def _effects(c: Comparison, paint: Paint) -> Iterator[str]:
    scale = words.scale(c.metrics, outcome=c.joined is not None)
    axis = f"{f'−{scale:.0%}':<{PLOT // 2 - 1}}0{f'+{scale:.0%}':>{PLOT // 2 + 1}}".replace("%", " %") if scale else ""
    yield paint(f"{'canary minus stable':<20}{'stable':>11}{'canary':>11}   {'difference, 95 % interval':<34}{'p':>7}   {axis}", QUIET)
    for metric in c.metrics:
        yield _row(metric, scale, paint)
    yield ""
    for line in textwrap.wrap(words.verdict(c.metrics[0], outcome=c.joined is not None), WIDTH):
        yield paint(line, BOLD)


def _row(m: Metric, scale: float, paint: Paint) -> str:
    values = "".join(f"{'–' if arm is None else words.value(arm.mean, m.unit):>11}" for arm in (m.stable, m.canary))
    if m.effect is None:
        return f"{m.name[:19]:<20}{values}   {paint(m.note, QUIET)}"
    style = BUSY if m.effect.p < words.SURE else QUIET
    told = f"{words.interval(m.effect, m.unit):<34}{words.probability(m.effect.p):>7}"
    return f"{m.name[:19]:<20}{values}   {told}   {paint(_drawn(m.effect, scale), style)}"


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


def _wrapped(name: str, text: str, paint: Paint, style: str) -> Iterator[str]:
    for line in textwrap.wrap(text, WIDTH, initial_indent=f"{name:<{MARGIN}}", subsequent_indent=" " * MARGIN):
        yield paint(line, style)
