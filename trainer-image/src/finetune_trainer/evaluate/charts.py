"""The report's drawings, as inline SVG, and scores as people read them. Texts are escaped here.

Scores are shares, shown in percent, but for Loss, whose scores are minus bits per byte: it is shown in bits per byte, smaller is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from finetune_trainer.config import GateConfig
from finetune_trainer.evaluate.comparison import LOSS, Compared
from finetune_trainer.pages import number

WIDTH, LEFT, RIGHT = 880, 150, 250  # of the drawing's own units; names at the left, figures at the right
ROW, HIGH = 34, 240
Points = Sequence[Sequence[float]]


def value(metric: str, score: Mapping[str, Any]) -> str:
    """`81.2 %`, or `0.7312 bits/byte`; a dash where there is no score."""
    return bare(metric, score["score"]) if score.get("score") is not None else "–"


def difference(metric: str, found: Mapping[str, Any]) -> str:
    """`+70.3 points`; of Loss `+0.1312 bits/byte` are so many less."""
    return bare(metric, found["difference"], points=True) if found.get("difference") is not None else "–"


def bare(metric: str, score: float, *, points: bool = False) -> str:
    """A number with its unit; `points`: a difference, with its sign."""
    if metric == LOSS:
        return f"{score:+.4f} bits/byte" if points else f"{-score:.4f} bits/byte"
    return f"{100 * score:+.1f} points" if points else f"{100 * score:.1f} %"


def scores(
    compared: Compared, reference: str, gate: GateConfig | None, between: tuple[str, Mapping[str, Any]] | None = None
) -> str:  # fmt: skip
    """Both scores on one axis with their intervals, a third one with its name `between` them, and below the difference on its own, with
    what the gate asks."""
    metric = compared.metric
    third = [(*between, "validation")] if between else []
    bars = [(reference, compared.before, "validation"), *third, ("tuned", compared.after, "train")]
    rows = [(name, _interval(metric, found, "score"), _figure(metric, found, "score"), colour) for name, found, colour in bars if found]
    lines = [_shown(metric, gate.min_score)] if gate and gate.min_score is not None else []
    low, high = (0.0, 1.0) if metric != LOSS else _range([edge for _, interval, _, _ in rows for edge in interval] + lines)
    drawn = _axis(f"{metric}{' in bits per byte, smaller is better' if metric == LOSS else ''}", rows, low, high, lines, metric)
    found = compared.difference
    if found is None or not _known(found, "difference"):
        return drawn
    limits = [gate.min_improvement if gate.min_improvement is not None else 0.0] if gate and reference == "the base model" else []
    if gate and reference != "the base model" and gate.min_improvement_over_live is not None:
        limits = [gate.min_improvement_over_live]
    interval = (found["low"], found["difference"], found["high"])
    low, high = _range([*interval, 0.0, *limits])
    row = [
        (
            "better by",
            interval,
            _figure(metric, found, "difference"),
            "good" if found["low"] > 0 else "bad" if found["high"] < 0 else "test",
        )
    ]
    return drawn + _axis(f"difference of {metric}", row, low, high, limits, metric, zero=True)


def rises(rows: Sequence[tuple[str, tuple[float, float, float], str]], limit: float | None) -> str:
    """Rises of perplexity (low, middle, high; in percent), each with its name and in words, and what the gate allows."""
    lines = [] if limit is None else [limit / 100]
    shares = [(name, (low / 100, middle / 100, high / 100), text) for name, (low, middle, high), text in rows]
    low, high = _range([0.0, *lines, *(edge for _, interval, _ in shares for edge in interval)])
    drawn = [(*row, "bad" if row[1][0] > 0 else "good" if row[1][2] < 0 else "test") for row in shares]
    return _axis("rise of perplexity in percent, smaller is better", drawn, low, high, lines, "", zero=True)


def _figure(metric: str, found: Mapping[str, Any], key: str) -> str:
    """The middle with its unit (bits per byte are in the title), then the interval without one."""
    text = value(metric, found) if key == "score" else difference(metric, found)
    if not _known(found, key):
        return text
    ends = sorted(_shown(metric, found[edge]) if key == "score" else found[edge] for edge in ("low", "high"))
    scale, form = (1, ".4f") if metric == LOSS else (100, ".1f")
    return f"{text.removesuffix(' bits/byte')} [{scale * ends[0]:{form}}, {scale * ends[1]:{form}}]"


def _shown(metric: str, score: float) -> float:
    return -score if metric == LOSS else score


def _interval(metric: str, found: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """(low, middle, high) as they are drawn."""
    edges = [_shown(metric, found[name]) for name in ("low", key, "high")] if _known(found, key) else [0.0, 0.0, 0.0]
    return min(edges), edges[1], max(edges)


def _known(found: Mapping[str, Any] | None, key: str) -> bool:
    """Whether there is such a figure with its interval: where one row's loss is no number, there is none."""
    return found is not None and all(found.get(name) is not None and math.isfinite(found[name]) for name in ("low", key, "high"))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The values with a margin."""
    low, high = min(values), max(values)
    margin = max((high - low) * 0.08, abs(high) * 1e-3, 1e-6)
    return low - margin, high + margin


def _axis(
    title: str, rows: Sequence[tuple[str, tuple[float, float, float], str, str]], low: float, high: float, lines: Sequence[float],
    metric: str, *, zero: bool = False,
) -> str:  # fmt: skip
    """Intervals with their middles, one below the other; `lines` are what the gate asks, dashed."""
    height = ROW * len(rows) + 30
    base = height - 22

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - low) / (high - low)

    parts = [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>']
    parts += [f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{base}"/>'] if zero else []
    for at in ticks(low, high):
        label = f"{at:g}" if metric == LOSS else f"{100 * at:g}"
        parts.append(f'<text x="{x(at):.1f}" y="{base + 15}" text-anchor="middle">{label}</text>')
    for index, (name, (start, middle, end), text, colour) in enumerate(rows):
        y = ROW * index + ROW / 2 + 2
        parts.append(f'<text class="name" x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="{colour}" x="{x(start):.1f}" y="{y - 5:.1f}" width="{max(2.0, x(end) - x(start)):.1f}" height="10" rx="5" '
            'opacity="0.45"/>'
        )
        parts.append(f'<circle class="{colour}" cx="{x(middle):.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<text class="figure" x="{WIDTH - RIGHT + 14}" y="{y + 5:.1f}">{escape(text)}</text>')
    for at in lines:
        if low <= at <= high:
            parts.append(
                f'<line class="asked" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="2" y2="{base}"><title>the gate asks for this</title></line>'
            )
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<div class="small quiet">{escape(title)}</div>{drawing}'


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers between the two."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def curve(losses: Points, validations: Points, best: int | None, stopped: int | None = None) -> str:
    """The training loss by step, the validation losses upon it, the step whose weights were kept, and the one after which training
    stopped early."""
    points = [*losses, *validations]
    if len(losses) < 2:
        return ""
    left, right, top, bottom = 60, 20, 14, HIGH - 28
    last = max(step for step, _ in points)
    first = min(step for step, _ in points)
    low, high = _range([loss for _, loss in points])

    def place(step: float, loss: float) -> tuple[float, float]:
        return left + (WIDTH - left - right) * (step - first) / max(1, last - first), bottom - (bottom - top) * (loss - low) / (high - low)

    parts = [f'<line x1="{left}" x2="{WIDTH - right}" y1="{bottom}" y2="{bottom}"/>']
    for at in ticks(low, high):
        y = place(first, at)[1]
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" opacity="0.5"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{at:g}</text>')
    for at in ticks(first, last) if last > first else []:
        if at == int(at):
            parts.append(f'<text x="{place(at, low)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{number(int(at))}</text>')
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in losses))}"/>')
    if len(validations) > 1:
        parts.append(
            f'<polyline class="curve second" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in validations))}"/>'
        )
    parts += [f'<circle class="validation" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in (place(*p) for p in validations)]
    marks = [
        (best, "asked", "the weights of step {} are kept", "dashed"),
        (stopped, "stopped", "training stopped early after step {}", "dotted"),
    ]
    told = ""
    for step, style, words, look in marks:
        if step:
            x, text = place(step, low)[0], words.format(number(step))
            parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"><title>{text}</title></line>')
            told += f"<span>{text} ({look})</span>"
    legend = '<div class="legend"><span><span class="key train"></span>training loss</span>'
    legend += '<span><span class="key validation"></span>validation loss</span>' if validations else ""
    drawing = f'<svg viewBox="0 0 {WIDTH} {HIGH}" role="img" aria-label="Losses by step">{"".join(parts)}</svg>'
    return f"{drawing}{legend}{told}</div>"


def cumulated(lines: Sequence[tuple[str, float, float]], months: int, even: float | None) -> str:
    """What has been paid by then, over so many months, of each (name, paid at the start, paid a month): at most two; and when they are
    even, if that is known and on the drawing."""
    left, right, top, bottom = 80, 20, 14, HIGH - 28
    high = max(start + each * months for _, start, each in lines) * 1.05 or 1.0

    def place(month: float, paid: float) -> tuple[float, float]:
        return left + (WIDTH - left - right) * month / months, bottom - (bottom - top) * paid / high

    parts = [f'<line x1="{left}" x2="{WIDTH - right}" y1="{bottom}" y2="{bottom}"/>']
    for at in ticks(0, high):
        y = place(0, at)[1]
        parts.append(f'<line x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}" opacity="0.5"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(int(at)) if at >= 10 else f"{at:g}"}</text>')
    for at in range(0, months + 1, next(step for step in (1, 2, 3, 6, 12, months) if months <= 10 * step)):
        parts.append(f'<text x="{place(at, 0)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{at}</text>')
    for style, (_, start, each) in zip(("curve", "curve second"), lines, strict=False):
        ends = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(0, start), place(months, start + each * months)))
        parts.append(f'<polyline class="{style}" points="{ends}"/>')
    if even is not None and even <= months:
        x = place(even, 0)[0]
        parts.append(f'<line class="asked" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"><title>both cost the same</title></line>')
    keys = zip(("train", "validation"), lines, strict=False)
    legend = "".join(f'<span><span class="key {key}"></span>{escape(name)}</span>' for key, (name, _, _) in keys)
    drawing = f'<svg viewBox="0 0 {WIDTH} {HIGH}" role="img" aria-label="Paid until a month">{"".join(parts)}</svg>'
    return f'{drawing}<div class="legend">{legend}</div>'
