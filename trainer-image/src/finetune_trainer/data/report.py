"""The prepare report for people: report.json as one plain HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

STYLE = "body{font:15px system-ui;margin:2em auto;max-width:60em}td,th{padding:.2em .8em;text-align:left;vertical-align:top}"


def histogram(values: Iterable[int], bins: int = 12) -> list[dict[str, int]]:
    """Equal-width bins of `values`: from, to (inclusive) and count."""
    found = sorted(values)
    if not found:
        return []
    low, width = found[0], max(1, -(-(found[-1] - found[0] + 1) // bins))
    counts: dict[int, int] = {}
    for value in found:
        counts[(value - low) // width] = counts.get((value - low) // width, 0) + 1
    return [{"from": low + b * width, "to": low + (b + 1) * width - 1, "count": counts.get(b, 0)} for b in range(max(counts) + 1)]


def render(report: Mapping[str, object]) -> str:
    """The page: every entry of the report, nested tables for nested entries."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Data report</title><style>{STYLE}</style>"
        f"<h1>Data report</h1>{_table(report)}</html>\n"
    )


def _table(entries: Mapping[str, object]) -> str:
    rows = "".join(f"<tr><th>{escape(str(key))}</th><td>{_cell(value)}</td></tr>" for key, value in entries.items())
    return f"<table>{rows}</table>"


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        names = list(value[0])
        head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{_cell(item.get(name))}</td>" for name in names) + "</tr>" for item in value)
        return f"<table><tr>{head}</tr>{body}</table>"
    if isinstance(value, list):
        return "<br>".join(escape(str(item)) for item in value) or "none"
    return f"<pre>{escape(str(value))}</pre>" if isinstance(value, str) and "\n" in value else escape(str(value))
