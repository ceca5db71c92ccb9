"""What the probe found, for people: a section of the evaluation's page and one of the model card, both as text of the figures alone.

Forgetting is shown against the base model whatever the scores are compared with: `{unmeasured}` says why there are no figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from finetune_trainer.config import GateConfig
from finetune_trainer.evaluate import charts
from finetune_trainer.pages import number

KINDS = {"prose": "English prose", "languages": "other languages", "code": "code", "questions": "questions, answered"}
ALL = "all texts"
HEAD = ("text", "number", "tokens", "perplexity, base", "perplexity, tuned", "KL, mean", "KL, 95 %", "same first choice")
Found = Mapping[str, Any]


def is_measured(found: Found | None) -> bool:
    """Whether there are figures."""
    return bool(found) and "unmeasured" not in (found or {})


def rise(found: Found | None) -> str:
    """`+3.8 %`; empty where nothing was measured."""
    return percent(found["percent"]) if found and is_measured(found) else ""


def percent(value: float) -> str:
    """A rise in percent, with its sign."""
    return f"{round(value, 1) + 0.0:+.1f} %" if abs(value) < 1e4 else f"{value:+.1e} %"


def section(found: Found | None, gate: GateConfig, confidence: float) -> str:
    """Markup: the rise by kind of text as a drawing, the figures as a table, and what they are."""
    if not found:
        return ""
    if not is_measured(found):
        return f'<p class="quiet">Not measured: {escape(str(found["unmeasured"]))}</p>'
    rows = _rows(found)
    drawn = charts.rises(
        [(name, (kind["low"], kind["percent"], kind["high"]), _interval(kind)) for name, kind in rows], gate.max_forgetting_percent
    )
    head, body = _cells("th", HEAD), "".join(f"<tr>{_cells('td', _figures(name, kind))}</tr>" for name, kind in rows)
    note = f'<p class="quiet small">{escape(_note(found, gate, confidence))}</p>'
    return f"{drawn}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def card(found: Found | None, confidence: float) -> str:
    """Markdown of the same figures; empty where nothing was measured."""
    if not found or not is_measured(found):
        return ""
    lines = [f"| {' | '.join((*HEAD, 'rise'))} |", "|" + "---|" * (len(HEAD) + 1)]
    lines += [f"| {' | '.join((*_figures(name, kind), _interval(kind)))} |" for name, kind in _rows(found)]
    return f"## General text against the base model\n\n{chr(10).join(lines)}\n\n{_note(found, GateConfig(), confidence)}"


def _rows(found: Found) -> list[tuple[str, Found]]:
    return [(ALL, found), *((KINDS.get(kind, kind), figures) for kind, figures in (found.get("kinds") or {}).items())]


def _figures(name: str, found: Found) -> list[str]:
    return [
        name, number(found["texts"]), number(found["tokens"]), _perplexity(found["base"]), _perplexity(found["tuned"]),
        f"{found['kl']:.4f}", f"{found['klP95']:.4f}", f"{100 * found['agreement']:.1f} %",
    ]  # fmt: skip


def _cells(tag: str, texts: Sequence[str]) -> str:
    """Cells of a row: a name, and numbers."""
    first, *others = (escape(text) for text in texts)
    return f"<{tag}>{first}</{tag}>" + "".join(f'<{tag} class="number">{text}</{tag}>' for text in others)


def _perplexity(found: Found) -> str:
    return f"{found['perplexity']:.2f}" if found["perplexity"] < 1e5 else f"{found['perplexity']:.1e}"


def _interval(found: Found) -> str:
    low, high = (percent(found[edge]).removesuffix(" %") for edge in ("low", "high"))
    return f"{percent(found['percent'])} [{low}, {high}]"


def _note(found: Found, gate: GateConfig, confidence: float) -> str:
    asked = gate.max_forgetting_percent
    said = "" if asked is None else f"The gate asks that the lower end of the rise of all texts is not above {asked:g} %. "
    return (
        f"{said}Short texts that come with the trainer and that no tuning is about ({str(found.get('prompts', ''))[:23]}), read by the "
        "base model and by the tuned one. Perplexity is e to the mean loss of a token; brackets and bars are "
        f"{confidence:g} % intervals of a bootstrap over texts. KL(base‖tuned) is of the next token, in nats, its mean and what 95 % of "
        "the tokens stay below; the first choice is the likeliest token."
    )
