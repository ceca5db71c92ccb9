"""The same comparison as one HTML page to hand on. Pure; the page stands alone: no script, no outside address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from kubectl_finetune.ab import view, words
from kubectl_finetune.ab.compare import Comparison, Metric
from kubectl_finetune.ab.statistics import Effect

HALF: Final = 200  # of the drawing, from zero to the end of the axis
STYLE: Final = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1c2330;--quiet:#667085;--line:#e3e6ec;--sure:#3b6fd4;--bad:#b42318;--warn:#fff6e0}
@media(prefers-color-scheme:dark){:root{--page:#14171d;--card:#1d222b;--ink:#e6e9ef;--quiet:#98a2b3;--line:#323945;--sure:#6f9bf0;
--bad:#f97066;--warn:#3a2f12}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:1.6rem;margin:0}h2{font-size:1.05rem;margin:0 0 .8rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.25rem;margin-top:1rem;overflow-x:auto}
.quiet{color:var(--quiet)}.bad{color:var(--bad)}.note{background:var(--warn)}p{margin:.3rem 0}.verdict{font-size:1.2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.4rem 0 .4rem .9rem;border-top:1px solid var(--line);
white-space:nowrap;font-variant-numeric:tabular-nums}th{color:var(--quiet);font-weight:500;font-size:.85rem;border-top:0}
th:first-child,td:first-child{text-align:left;padding-left:0}
@media(max-width:58rem){th,td{white-space:normal}}
svg{display:block;width:100%;min-width:11rem;max-width:24rem;height:1.4rem;margin-left:auto}svg text{fill:var(--quiet);font-size:15px}
svg line{stroke:var(--quiet);stroke-width:2}svg circle{fill:var(--quiet)}svg .zero{stroke:var(--line)}
.sure line.is{stroke:var(--sure);stroke-width:3}.sure circle{fill:var(--sure)}
"""


def page(title: str, c: Comparison, notes: Sequence[str] = (), *, shown: bool = True) -> str:
    """The document. Effects are left out unless `shown`."""
    first = (_effects(c) if shown else "", _arms(c), _met(c)) if c.split_is_met else (_met(c), _arms(c), _effects(c) if shown else "")
    body = [*first, *(f'<section class="note">{escape(note)}</section>' for note in notes)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}: A/B test</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<p>{escape(words.headline(c))}</p><p class="quiet">{escape(words.extent(c))}</p>{"".join(body)}</main></body></html>\n'
    )


def _arms(c: Comparison) -> str:
    rows = (_row(role, arm.revision, *view.side(arm)) for role, arm in (("stable", c.stable), ("canary", c.canary)))
    return (
        f"<section><h2>Arms, over all requests</h2><table>{_row('', 'revision', *view.COLUMNS, cell='th')}{''.join(rows)}</table></section>"
    )


def _met(c: Comparison) -> str:
    split = escape(words.split(c))
    lines = [f"<p>{split}</p>" if c.split_is_met else f'<p class="bad"><b>Sample ratio mismatch:</b> {split}. {escape(words.WHY)}</p>']
    lines += [f"<p>Left out: {escape(text)}</p>"] if (text := words.left_out(c)) else []
    if c.joined:
        lines.append(f"<p>{escape(words.joined(c, c.joined))}</p>")
        lines += [f'<p class="bad">{escape(doubt)}</p>' for doubt in words.doubts(c.joined)]
    return f"<section><h2>Split</h2>{''.join(lines)}</section>"


def _effects(c: Comparison) -> str:
    outcome = c.joined is not None
    scale = words.scale(c.metrics, outcome=outcome)
    head = _row("canary minus stable", "stable", "canary", "difference, 95 % interval", "p", cell="th", last=_axis(scale))
    return (
        f'<section><p class="verdict">{escape(words.verdict(c.metrics[0], outcome=outcome))}</p><table>{head}'
        f"{''.join(_effect(metric, scale) for metric in c.metrics)}</table></section>"
    )


def _effect(m: Metric, scale: float) -> str:
    means = ["–" if arm is None else words.value(arm.mean, m.unit) for arm in (m.stable, m.canary)]
    if m.effect is None:
        return _row(m.name, *means, m.note, "", last="")
    return _row(m.name, *means, words.interval(m.effect, m.unit), words.probability(m.effect.p), last=_drawn(m.effect, scale))


def _row(*texts: str, cell: str = "td", last: str | None = None) -> str:
    """A row of texts; `last` is markup."""
    cells = [escape(text) for text in texts] + ([] if last is None else [last])
    return f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in cells)}</tr>"


def _axis(scale: float) -> str:
    if not scale:
        return ""
    marks = ((-HALF, "start", f"−{scale:.0%}"), (0, "middle", "relative, 0"), (HALF, "end", f"+{scale:.0%}"))
    texts = (f'<text x="{x}" y="15" text-anchor="{anchor}">{escape(text).replace("%", " %")}</text>' for x, anchor, text in marks)
    return f"<svg viewBox='{-HALF - 10} 0 {2 * HALF + 20} 20'>{''.join(texts)}</svg>"


def _drawn(e: Effect, scale: float) -> str:
    """The relative interval as a line; it has no end where it goes on beyond the axis."""
    if e.lift is None or e.lift_low is None or e.lift_high is None or not scale:
        return ""
    style = ' class="sure"' if e.p < words.SURE else ""
    lines = "".join(_lines(e.lift_low / scale, e.lift_high / scale))
    dot = f'<circle cx="{HALF * e.lift / scale:.1f}" cy="10" r="5"/>' if abs(e.lift) <= scale else ""
    zero = '<line class="zero" x1="0" x2="0" y1="0" y2="20"/>'
    return f"<svg{style} viewBox='{-HALF - 10} 0 {2 * HALF + 20} 20'>{zero}{lines}{dot}</svg>"


def _lines(low: float, high: float) -> Iterator[str]:
    ends = [HALF * min(1.0, max(-1.0, x)) for x in (low, high)]
    yield f'<line class="is" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="10" y2="10"/>'
    for x, end in zip((low, high), ends, strict=True):
        if abs(x) <= 1:
            yield f'<line class="is" x1="{end:.1f}" x2="{end:.1f}" y1="5" y2="15"/>'
