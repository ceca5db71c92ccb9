"""What the pages for people have in common: one HTML document, its style, and numbers as people write them.

Invariant: a page stands alone (no script, no outside address); titles are escaped here, bodies by who makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

STYLE = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1c2330;--quiet:#667085;--line:#e3e6ec;--train:#3b6fd4;--validation:#d99b2b;--test:#7a5bc2;
--said:#dcefe1;--said-ink:#14532d;--warn:#fff6e0;--warn-line:#e0a526;--bad:#b42318;--good:#2e9e63}
@media(prefers-color-scheme:dark){:root{--page:#14171d;--card:#1d222b;--ink:#e6e9ef;--quiet:#98a2b3;--line:#323945;--train:#6f9bf0;
--validation:#e3b04f;--test:#a98df0;--said:#1d3f2b;--said-ink:#b5f0c8;--warn:#3a2f12;--warn-line:#a97d1c;--bad:#f97066;--good:#4ec98a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:62rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.05rem;margin:0 0 .8rem}
.quiet{color:var(--quiet)}.small{font-size:.85rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.25rem;margin-top:1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin-top:1.25rem}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}
.warnings{background:var(--warn);border-color:var(--warn-line)}.warnings ul{margin:0;padding-left:1.2rem}
.bar{display:flex;height:1.1rem;border-radius:6px;overflow:hidden;background:var(--line)}
.bar i{display:block;min-width:2px}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.4rem;margin-top:.6rem}
.key{display:inline-block;width:.75rem;height:.75rem;border-radius:3px;margin-right:.4rem;vertical-align:-1px}
.train{background:var(--train);fill:var(--train)}.validation{background:var(--validation);fill:var(--validation)}
.test{background:var(--test);fill:var(--test)}
.good{background:var(--good);fill:var(--good)}.bad{background:var(--bad);fill:var(--bad)}
svg{display:block;width:100%;height:auto}svg text{fill:var(--quiet);font-size:11px}svg line{stroke:var(--line)}
svg text.figure{fill:var(--ink);font-size:14px}svg text.name{font-size:13px}
svg line.asked{stroke:var(--bad);stroke-dasharray:5 4;stroke-width:1.5}
svg line.stopped{stroke:var(--quiet);stroke-dasharray:1.5 4;stroke-width:2}
svg polyline.curve{fill:none;stroke:var(--train);stroke-width:2}svg polyline.second{stroke:var(--validation)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem;margin-top:.5rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4rem .7rem .4rem 0;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--quiet);font-weight:500;font-size:.85rem}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
code,pre{font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
pre{white-space:pre-wrap;margin:.35rem 0 0}
.row{border-top:1px solid var(--line);padding:.8rem 0}.row:first-of-type{border-top:0;padding-top:0}
mark{background:var(--said);color:var(--said-ink);border-radius:3px;padding:.05rem 0}
summary{cursor:pointer}.excerpt{color:var(--quiet);overflow-wrap:anywhere}
"""


def document(title: str, subtitle: str, body: str) -> str:
    """The whole page; `body` is markup already, the titles are text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<div class="quiet">{escape(subtitle)}</div>{body}</main></body></html>\n'
    )


def tiles(shown: Iterable[tuple[str, str]]) -> str:
    """Figures with their names; both are text."""
    made = "".join(f'<div class="tile"><b>{escape(value)}</b><span class="quiet">{escape(name)}</span></div>' for name, value in shown)
    return f'<div class="tiles">{made}</div>'


def section(title: str, body: str) -> str:
    """A card of the page; empty where its body is."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def number(value: int) -> str:
    """A whole number with commas between thousands, as in every text beside it."""
    return f"{value:,}"


def percent(part: float, whole: float) -> str:
    """A share."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def hours(seconds: float) -> str:
    """A time in one unit."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
