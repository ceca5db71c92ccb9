"""What serving is worth, for people: on the evaluation's page. Pure; texts are escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from finetune_trainer.config import EconomicsConfig, ServerConfig
from finetune_trainer.evaluate import charts
from finetune_trainer.evaluate.economics import HOURS, Figures, compute
from finetune_trainer.evaluate.throughput import Answering
from finetune_trainer.pages import number

SHORTEST, LONGEST = 12, 120  # months that are drawn
Cells = tuple[str, str, str]
NOT_MEASURED = "what a server does was not measured: no metric of spec.evaluation asks for answers, or the server does not count tokens"
MEASURED_ELSEWHERE = (
    "what a server does was measured with another runtime, accelerator or number of them than are priced here; the next evaluation does "
    "that, of a new revision or after an edit of spec.evaluation.maxNewTokens"
)
ASSUMED = (
    f"A month has {HOURS} hours, and pods are paid for in all of them, busy or not. Traffic is taken to come evenly: peaks need more pods. "
    "Left out are the routers, the volume, the network, and the second arm while users are moved. Prices are those of when the Job "
    "was made that wrote this page; status.economics has today's."
)


def tiles(terms: EconomicsConfig | None, answering: Answering | None, server: ServerConfig | None = None) -> list[tuple[str, str]]:
    """When what was paid once is saved, if that is known."""
    back = compute(terms, _priced(answering, server)).paid_back if terms else None
    return [] if back is None else [("until it is paid back", _months(back))]


def section(terms: EconomicsConfig | None, answering: Answering | None, server: ServerConfig | None = None) -> str:
    """Markup: both side by side, what has been paid month by month as a drawing, and what was assumed. Empty where nothing is compared.
    `server` is what is priced."""
    if terms is None:
        return ""
    known = answering is not None
    answering = _priced(answering, server)
    figures = compute(terms, answering)
    unknown = [*([] if answering else [MEASURED_ELSEWHERE if known else NOT_MEASURED]), *terms.missing]
    gaps = f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in unknown)}</ul>" if unknown else ""
    said = " ".join(text for text in (_measured(answering), _crowded(terms, figures), ASSUMED) if text)
    return f'{_table(terms, figures)}{_drawing(terms, figures)}{gaps}<p class="quiet small">{escape(said)}</p>'


def _priced(answering: Answering | None, server: ServerConfig | None) -> Answering | None:
    """How fast it was, if the server was such a one."""
    return answering if answering is not None and answering.of(server) else None


def speed(answering: Answering) -> str:
    """How fast the test rows were answered."""
    prompts, answers = answering.input_tokens / answering.seconds, answering.output_tokens / answering.seconds
    return (
        f"{number(answering.rows)} in {answering.seconds:,.1f} s with at most {answering.concurrency} open at once, {prompts:,.1f} tokens "
        f"of prompts and {answers:,.1f} of answers a second"
    )


def _table(terms: EconomicsConfig, figures: Figures) -> str:
    other = terms.alternative.name if terms.alternative else ""
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in ("this model", other))
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{escape(own)}</td><td class="number">{escape(theirs)}</td></tr>'
        for name, own, theirs in _rows(terms, figures)
    )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _rows(terms: EconomicsConfig, f: Figures) -> Iterator[Cells]:
    """Rows of which at least one side is known."""
    a_pod = f" at {_money(terms, terms.pod_hour)} an hour" if terms.pod_hour is not None else ""
    yield "pods that are counted", f"{number(f.pods)}{a_pod}", ""
    rows = (
        ("a month, for the stated traffic" if f.traffic else "a month", _money(terms, f.serving), _money(terms, f.other)),
        ("a million tokens, at the stated traffic", _money(terms, f.actual), _money(terms, f.other_million if f.traffic else None)),
        ("a million tokens, at full use", _money(terms, f.full), _money(terms, None if f.traffic else f.other_million)),
        ("tokens a month: prompts, answers", " + ".join(map(_tokens, f.traffic)) if f.traffic else "", ""),
        ("tokens a month that these pods could do", _tokens(f.capacity), ""),
        (f"cheaper, with {number(terms.pods)} pod{'s' if terms.pods > 1 else ''}, at so many tokens a month", _cheaper(f), ""),
        ("saved a month", _money(terms, f.saving), ""),
        ("paid once: training, and what the spec adds", _money(terms, terms.paid_once), ""),
        ("until it is paid back", _back(f), ""),
    )
    yield from (row for row in rows if row[1] or row[2])


def _cheaper(f: Figures) -> str:
    """From where to where; it is never so only as far as the evaluation tells how busy a server can be."""
    if f.cheaper_from is None:
        return ""
    if math.isinf(f.cheaper_from):
        return "never while no busier than in the evaluation" if f.other_million else "never"
    return f"from {_tokens(f.cheaper_from)} to {_tokens(f.cheaper_to)}" if f.cheaper_to else f"from {_tokens(f.cheaper_from)} on"


def _back(f: Figures) -> str:
    if f.paid_back is None:
        return ""
    tokens = f", {_tokens(f.paid_back * sum(f.traffic))} tokens" if f.traffic and math.isfinite(f.paid_back) else ""
    return f"{_months(f.paid_back)}{tokens}"


def _drawing(terms: EconomicsConfig, f: Figures) -> str:
    if terms.alternative is None or f.serving is None or f.other is None:
        return ""
    back = f.paid_back if f.paid_back is not None and math.isfinite(f.paid_back) else None
    months = min(LONGEST, max(SHORTEST, math.ceil(1.5 * (back or 0))))
    own = "this model: paid once, and serving" if terms.paid_once else "this model: serving"
    title = f"paid by then, over {months} months{f', in {terms.currency}' if terms.currency else ''}"
    mark = f"; even after {_months(back)} (dashed)" if back and back <= months else ""
    drawn = charts.cumulated([(own, terms.paid_once or 0.0, f.serving), (terms.alternative.name, 0.0, f.other)], months, back)
    return f'<p class="quiet small">{escape(title + mark)}</p>{drawn}'


def _measured(answering: Answering | None) -> str:
    """What full use means: how much one server did, and in what."""
    if answering is None:
        return ""
    return (
        f"Full use is what one server did with the test rows: {speed(answering)}, its warming up and the last answers, with fewer open, "
        "included; of traffic in another proportion, as much as whichever takes more, prompts or answers, leaves room for. "
        "With more open at once it may do more; rows of other lengths change it."
    )


def _crowded(terms: EconomicsConfig, f: Figures) -> str:
    if f.pods <= terms.most_pods:
        return ""
    return f"The traffic needs {number(f.pods)} pods, and the spec has at most {number(terms.most_pods)}: {number(f.pods)} are counted."


def _money(terms: EconomicsConfig, amount: float | None) -> str:
    if amount is None:
        return ""
    return f"{amount:,.2f} {terms.currency}".strip() if abs(amount) >= 1 or amount == 0 else f"{amount:.4f} {terms.currency}".strip()


def _tokens(count: float | None) -> str:
    """`1.2 million`, `340 000`."""
    if count is None:
        return ""
    return f"{count / 1e6:,.1f} million" if count >= 1e6 else number(round(count))


def _months(months: float) -> str:
    if math.isinf(months):
        return "never"
    return f"{months:,.1f} months" if months >= 0.05 else "less than 0.1 months"
