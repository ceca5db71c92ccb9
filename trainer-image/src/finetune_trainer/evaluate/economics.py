"""What serving costs against what else could answer: arithmetic on what the operator states and on how fast the test rows were answered.

The operator keeps the same figures in the status, by the prices of the day; tests/contract holds the two together. Nothing is guessed: what
is not known stays unknown. Tokens are those of prompts and answers together, unless they are said apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_trainer.config import AlternativeConfig, EconomicsConfig, TrafficConfig
from finetune_trainer.evaluate.throughput import Answering

HOURS = 730  # of a month: a twelfth of 8,760
MILLION = 1e6
Two = tuple[float, float]  # of prompts, of answers


@dataclass(frozen=True)
class Figures:
    """What comes out, a month or a million tokens; None: not known; infinite: never. `pods` are those that are counted; `capacity` and
    `full`: were they all as busy as in the evaluation, in the traffic's proportion of prompts and answers; `other` is the alternative;
    the stated pods cost less than it from `cheaper_from` to `cheaper_to` tokens; `paid_back` in months."""

    pods: int
    serving: float | None
    capacity: float | None
    full: float | None
    traffic: Two | None
    actual: float | None
    other: float | None
    other_million: float | None
    saving: float | None
    cheaper_from: float | None
    cheaper_to: float | None
    paid_back: float | None


def compute(terms: EconomicsConfig, answering: Answering | None) -> Figures:
    """The figures. More pods than are stated are counted where the traffic needs them; how many it needs is an upper bound, for prompts
    and answers are taken to cost a server what they did in the evaluation's proportion."""
    each, asked = _capacity(answering), _volume(terms.traffic, answering)
    one = _in_proportion(each, asked) if each else None
    pods = max(terms.pods, math.ceil(sum(asked) / one)) if asked and one else terms.pods
    serving = None if terms.pod_hour is None else pods * terms.pod_hour * HOURS
    full = None if terms.pod_hour is None or one is None else terms.pod_hour * HOURS / one * MILLION
    other_million = _mixed(terms.alternative, asked or each)
    other = None if other_million is None or asked is None else other_million * sum(asked) / MILLION
    saving = None if other is None or serving is None else other - serving
    cheaper_from = _cheaper_from(terms, full, other_million)
    return Figures(
        pods=pods, serving=serving, capacity=pods * one if one else None, full=full, traffic=asked,
        actual=None if serving is None or asked is None else serving / sum(asked) * MILLION,
        other=other, other_million=other_million, saving=saving, cheaper_from=cheaper_from,
        cheaper_to=terms.pods * one if one and cheaper_from is not None and math.isfinite(cheaper_from) else None,
        paid_back=_paid_back(terms.paid_once, saving),
    )  # fmt: skip


def _capacity(answering: Answering | None) -> Two | None:
    """Tokens that one server takes and gives a month, as busy as in the evaluation."""
    if answering is None:
        return None
    months = answering.seconds / 3600 / HOURS
    return answering.input_tokens / months, answering.output_tokens / months


def _in_proportion(each: Two, asked: Two | None) -> float:
    """Tokens that one server does a month, at least, where prompts and answers come in the traffic's proportion."""
    return sum(asked) / max(asked[0] / each[0], asked[1] / each[1]) if asked else sum(each)


def _volume(traffic: TrafficConfig | None, answering: Answering | None) -> Two | None:
    """Tokens a month that users send and are sent."""
    if traffic is None:
        return None
    if traffic.input_tokens_per_month and traffic.output_tokens_per_month:
        return float(traffic.input_tokens_per_month), float(traffic.output_tokens_per_month)
    if answering is None or traffic.requests_per_month is None:
        return None
    each = traffic.requests_per_month / answering.rows
    return each * answering.input_tokens, each * answering.output_tokens


def _mixed(other: AlternativeConfig | None, tokens: Two | None) -> float | None:
    """What a million tokens in that proportion cost there."""
    if other is None or tokens is None:
        return None
    return (other.input_price * tokens[0] + other.output_price * tokens[1]) / sum(tokens)


def _cheaper_from(terms: EconomicsConfig, full: float | None, other_million: float | None) -> float | None:
    """Tokens a month from which on the stated pods cost less, as far as they can do as many; beyond it more have to be paid for."""
    if terms.pod_hour is None or other_million is None:
        return None
    if other_million == 0 or (full is not None and full >= other_million):
        return math.inf
    return terms.pods * terms.pod_hour * HOURS / other_million * MILLION


def _paid_back(paid_once: float | None, saving: float | None) -> float | None:
    """Months until what was paid once is saved."""
    if saving is None or (saving > 0 and paid_once is None):
        return None
    return math.inf if saving <= 0 else (paid_once or 0.0) / saving
