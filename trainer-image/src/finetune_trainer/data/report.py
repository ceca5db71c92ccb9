"""The prepare report for people: report.json as one HTML page.

Invariant: the page stands alone (no script, no outside address), and whatever came with the data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from finetune_trainer import compare, pages
from finetune_trainer.advice import listed, read
from finetune_trainer.pages import hours, number, percent, section

Report = Mapping[str, Any]
SPLITS = ("train", "validation", "test")
KINDS = {"Invalid": "invalid", "Duplicate": "repeated", "NearDuplicate": "near-duplicate", "TooLong": "too long"}
BINS = 24
CHART_WIDTH, CHART_HEIGHT = 880, 190  # of the drawing's own units


def histogram(values: Iterable[int], bins: int = BINS) -> list[dict[str, int]]:
    """Equal-width bins of `values`: from, to (inclusive) and count."""
    found = sorted(values)
    if not found:
        return []
    low, width = found[0], max(1, -(-(found[-1] - found[0] + 1) // bins))
    counts: dict[int, int] = {}
    for value in found:
        counts[(value - low) // width] = counts.get((value - low) // width, 0) + 1
    return [{"from": low + b * width, "to": low + (b + 1) * width - 1, "count": counts.get(b, 0)} for b in range(max(counts) + 1)]


def render(report: Report) -> str:
    """The page of a report.json."""
    sections = (
        _advice(report),
        _warnings(report),
        _splits(report),
        _lengths(report),
        _left_out(report),
        _examples(report),
        _sources(report),
        _run(report),
        _methods(report),
    )
    body = f"{_tiles(report)}{''.join(sections)}"
    return pages.document("Prepared data", f"for {report['finetune']}", body)


def _tiles(report: Report) -> str:
    rows, tokens = report["rows"], report["tokens"]
    kept = sum(rows[name] for name in SPLITS)
    shown = [
        ("rows read", number(rows["read"])),
        ("rows kept", f"{number(kept)}"),
        ("left out", number(sum(entry["count"] for entry in report["leftOut"]))),
        ("training tokens", number(tokens["train"])),
        ("supervised", percent(tokens["supervised"], tokens["train"])),
        ("steps", number(report["totalSteps"])),
    ]
    return pages.tiles(shown)


def _advice(report: Report) -> str:
    return section("What to think of before it trains", listed(read(report["advice"])))


def _methods(report: Report) -> str:
    return compare.table(compare.read(report["methods"]), report["estimate"], report["accelerator"])


def _warnings(report: Report) -> str:
    if not report["warnings"]:
        return ""
    items = "".join(f"<li>{escape(str(text))}</li>" for text in report["warnings"])
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _splits(report: Report) -> str:
    rows = report["rows"]
    kept = sum(rows[name] for name in SPLITS)
    bar = "".join(f'<i class="{name}" style="width:{100 * rows[name] / max(1, kept):.3f}%"></i>' for name in SPLITS if rows[name])
    legend = "".join(
        f'<span><span class="key {name}"></span>{name} <b>{number(rows[name])}</b>'
        f' <span class="quiet">{percent(rows[name], kept)}</span></span>'
        for name in SPLITS
    )
    return (
        f'<section><h2>Splits</h2><div class="bar">{bar}</div><div class="legend">{legend}</div>'
        '<p class="quiet small">The test split is sealed: training never sees its rows.</p></section>'
    )


def _lengths(report: Report) -> str:
    charts = "".join(_chart(name, report["lengths"].get(name) or []) for name in SPLITS)
    return f"<section><h2>Length of rows in tokens</h2>{charts}</section>" if charts else ""


def _chart(name: str, bins: Sequence[Mapping[str, int]]) -> str:
    """Bars with the axis of tokens below; the tallest bar carries its count."""
    if not bins:
        return ""
    most = max(entry["count"] for entry in bins)
    step = CHART_WIDTH / len(bins)
    base, top = CHART_HEIGHT - 34, 18
    drawn = []
    for index, entry in enumerate(bins):
        height = (base - top) * entry["count"] / most
        title = f"<title>{entry['from']} to {entry['to']} tokens: {number(entry['count'])} rows</title>"
        drawn.append(
            f'<rect class="{name}" x="{index * step + 1:.1f}" y="{base - height:.1f}" width="{max(1.0, step - 2):.1f}" '
            f'height="{height:.1f}" rx="2">{title}</rect>'
        )
        if entry["count"] == most and not any("<text" in part for part in drawn):
            drawn.append(f'<text x="{(index + 0.5) * step:.1f}" y="{base - height - 5:.1f}" text-anchor="middle">{number(most)}</text>')
    every = max(1, len(bins) // 8)
    ticks = "".join(
        f'<text x="{index * step + 1:.1f}" y="{base + 15}">{number(bins[index]["from"])}</text>' for index in range(0, len(bins), every)
    )
    return (
        f'<div><span class="key {name}"></span>{name} <span class="quiet small">up to {number(bins[-1]["to"])} tokens</span></div>'
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="Lengths of {name} rows">'
        f'<line x1="0" x2="{CHART_WIDTH}" y1="{base}" y2="{base}"/>{"".join(drawn)}{ticks}</svg>'
    )


def _left_out(report: Report) -> str:
    if not report["leftOut"]:
        return '<section><h2>Rows left out</h2><p class="quiet">None.</p></section>'
    body = "".join(
        f"<tr><td>{escape(KINDS[entry['kind']])}</td><td>{escape(entry['reason'])}{_excerpts(entry['examples'])}</td>"
        f'<td class="number">{number(entry["count"])}</td></tr>'
        for entry in report["leftOut"]
    )
    return (
        "<section><h2>Rows left out</h2><table><thead><tr><th>kind</th><th>reason, with example rows</th><th>rows</th></tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def _excerpts(examples: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f'<div class="small"><code>{escape(str(item["source"]))}</code> row {item["row"]}: {escape(item["reason"])}'
        + (f'<div class="excerpt"><code>{escape(item["text"])}</code></div>' if item["text"] else "")
        + "</div>"
        for item in examples
    )
    return f'<details open><summary class="quiet small">{len(examples)} shown</summary>{items}</details>' if items else ""


def _examples(report: Report) -> str:
    if not report["examples"]:
        return ""
    rows = "".join(
        f'<div class="row"><span class="quiet small"><code>{escape(str(item["source"]))}</code> row {item["row"]}</span>'
        f"<pre>{''.join(_part(part) for part in item['parts'])}</pre></div>"
        for item in report["examples"]
    )
    return (
        f"<section><h2>{len(report['examples'])} training rows as the model sees them</h2>"
        '<p class="quiet small"><mark>&nbsp;Marked&nbsp;</mark> tokens are supervised: the model learns to say them. '
        f"The rest is context.</p>{rows}</section>"
    )


def _part(part: Mapping[str, Any]) -> str:
    return f"<mark>{escape(part['text'])}</mark>" if part["supervised"] else escape(part["text"])


def _sources(report: Report) -> str:
    body = "".join(
        f"<tr><td><code>{escape(str(entry['source']))}</code></td><td>{escape(entry['use'])}</td><td>{escape(entry['format'])}</td>"
        f'<td class="number">{number(entry["rows"])}</td></tr>'
        for entry in report["sources"]
    )
    head = "<thead><tr><th>file</th><th>use</th><th>format</th><th>rows read</th></tr></thead>"
    return f"<section><h2>Sources</h2><table>{head}<tbody>{body}</tbody></table></section>"


def _run(report: Report) -> str:
    estimate = report["estimate"]
    shown = {
        "tokens a step": number(report["tokensPerStep"]),
        "steps an epoch": number(report["stepsPerEpoch"]),
        "steps of the run": number(report["totalSteps"]),
        "longest row": f"{number(estimate['longest'])} tokens",
        "shortest answer kept": f"{number(report['minResponseCharacters'])} characters",
        "memory of a rank, estimated": f"{estimate['memoryBytes'] / 2**30:.1f} GiB",
        "time, estimated": hours(estimate["seconds"]),
    }
    body = "".join(f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>' for name, value in shown.items())
    return f"<section><h2>What training will do</h2><table><tbody>{body}</tbody></table></section>"
