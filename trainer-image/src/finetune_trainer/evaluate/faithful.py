"""What the probe found of the model as served against the model as trained, for people: a section of the page and one of the card."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from finetune_trainer.config import GateConfig
from finetune_trainer.pages import number

SMALL = 1e-2  # nats: rounding to bfloat16 alone did half of that to a model of 135M weights (docs/benchmarks.md)
PLAIN = 1e-3  # from here on a divergence is written without its order
HEAD = ("tokens", "answers", "KL, mean", "KL, 99 %", "KL, largest", "another first choice")
Found = Mapping[str, Any]


def section(found: Found | None, gate: GateConfig) -> str:
    """Markup: what it means, the figures as a table, and what they are."""
    if not found:
        return ""
    if "unmeasured" in found:
        return f'<p class="quiet">Not measured: {escape(str(found["unmeasured"]))}</p>'
    head = "".join(f'<th class="number">{escape(text)}</th>' for text in HEAD)
    body = "".join(f'<td class="number">{escape(text)}</td>' for text in _figures(found))
    return (
        f"<p>{escape(sentence(found))}</p><table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>"
        f'<p class="quiet small">{escape(_note(found, gate))}</p>'
    )


def card(found: Found | None) -> str:
    """Markdown of the same; empty where nothing was measured."""
    if not found or "unmeasured" in found:
        return ""
    table = f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}\n| {' | '.join(_figures(found))} |"
    return f"## As served against as trained\n\n{sentence(found)}\n\n{table}\n\n{_note(found, GateConfig())}"


def sentence(found: Found) -> str:
    """What the figures mean to somebody who has users."""
    if not found["klMax"]:
        return "What is served is what was trained: no token of the answers has another likelihood."
    turned = _percent(found["differs"])
    if found["kl"] < SMALL:
        cause = ", and nothing but rounding lies between" if found.get("rounding") else ""
        return (
            f"In the mean, the divergence of what is served from what was trained is small{cause}: of the tokens of the answers {turned} "
            "have another first choice."
        )
    return (
        f"What is served is not quite what was trained: of the tokens of the answers {turned} have another first choice. Scores of answers "
        "are of the model as served; the loss in training was of the model as trained."
    )


def _figures(found: Found) -> tuple[str, ...]:
    divergences = (nats(found[name]) for name in ("kl", "klP99", "klMax"))
    return (number(found["tokens"]), number(found["rows"]), *divergences, _percent(found["differs"]))


def nats(value: float) -> str:
    """A divergence; small ones by their order."""
    return "0" if not value else f"{value:.4f}" if value >= PLAIN else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share else "none"


def _note(found: Found, gate: GateConfig) -> str:
    asked = gate.max_serving_divergence
    said = "" if asked is None else f"The gate asks that the mean is not above {asked:g}. "
    return (
        f"{said}As trained: {found['trained']}. As served (where nothing serves yet, by the server of an evaluation): {found['served']}. "
        "KL(trained‖served) is of the next token, in nats, over the whole vocabulary, on a sample: "
        f"{number(found['tokens'])} tokens, from the beginnings of wanted answers of the sealed test split. Told are its mean, what 99 % "
        "of the tokens stay below, and the largest; the first choice is the likeliest token."
    )
