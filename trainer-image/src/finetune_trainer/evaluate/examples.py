"""Rows on a page: the question, what was wanted and what was answered; and why answers are wrong. All texts are escaped and cut."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finetune_trainer import pages
from finetune_trainer.evaluate import charts, comparison
from finetune_trainer.evaluate.comparison import LOSS, Pair
from finetune_trainer.evaluate.rows import ScoredRow
from finetune_trainer.pages import number

EXCERPT = 1200  # characters of a question or an answer


def reasons(whose: str, pairs: Sequence[Pair]) -> str:
    """A table of why the later answers are wrong; empty where none is, and of Loss."""
    found = comparison.reasons(pairs) if pairs and pairs[0].metric != LOSS else []
    body = "".join(f'<tr><td>{escape(reason)}</td><td class="number">{number(count)}</td></tr>' for reason, count in found)
    head = f'<thead><tr><th>{escape(whose)}</th><th class="number">rows</th></tr></thead>'
    return f"<table>{head}<tbody>{body}</tbody></table>" if body else ""


def section(title: str, found: Sequence[Pair], who: tuple[str, ...]) -> str:
    """The first rows of these; `who` names whose answers stand side by side, of one name the later one's alone."""
    if not found:
        return ""
    shown = found[: comparison.SHOWN]
    rows = "".join(_example(pair, who) for pair in shown)
    more = f'<p class="quiet small">{len(shown)} of {number(len(found))} are shown.</p>' if len(found) > len(shown) else ""
    return pages.section(title, f"{more}{rows}")


def _example(pair: Pair, who: tuple[str, ...]) -> str:
    asked = "\n".join(f"{m['role']}: {m['content']}" for m in pair.row.messages)
    question = f"<pre>{_excerpt(asked)}</pre>" if asked else ""
    answers = "".join(
        f'<div><div class="quiet small">{escape(name)} · {escape(charts.value(pair.metric, {"score": row.scores[pair.metric]}))}'
        f"{_note(row, pair.metric)}</div>{_answer(row)}</div>"
        for name, row in zip(who, (pair.before, pair.after)[-len(who) :], strict=True)
    )
    return (
        f'<div class="row">{question}<div class="quiet small">{"the text" if pair.row.plain else "wanted"}</div>'
        f'<pre><mark>{_excerpt(pair.row.reference)}</mark></pre><div class="pair">{answers}</div></div>'
    )


def _answer(row: ScoredRow) -> str:
    return "" if row.answer is None else f"<pre>{_excerpt(row.answer)}</pre>"


def _note(row: ScoredRow, metric: str) -> str:
    note = row.notes.get("server") or row.notes.get(metric)
    return f" · {escape(note[:EXCERPT])}" if note else ""


def _excerpt(text: str) -> str:
    return escape(text if len(text) <= EXCERPT else f"{text[:EXCERPT]} …")
