"""What serving costs against what else could answer: arithmetic on what the spec states, what is priced and what the evaluation measured.

The trainer puts the same figures on the evaluation's page, from the terms as they were then; tests/contract holds the two together.
Nothing is guessed: what is not known stays unknown, and is said with the field that would tell it. Tokens are those of prompts and answers
together, unless they are said apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.api.blocks.economics import Alternative, ExpectedTraffic
from finetune_operator.api.blocks.economics import Economics as Asked
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.api.quantities import decimal
from finetune_operator.api.status import Answering, Cost, Economics
from finetune_operator.build.arm import ServedBy, accelerators, served_by
from finetune_operator.build.pods import ANY_GPU, Accelerator
from finetune_operator.decide.attempts import paid, price
from finetune_operator.decide.draft import Draft
from finetune_operator.observed import Observed

HOURS: Final = 730  # of a month: a twelfth of 8,760
MILLION: Final = 1e6
WHOLE: Final = 1e15  # an amount from which on hundredths are not told
NOT_MEASURED: Final = (
    "what a server does is not measured: the evaluation does that, where a metric asks for answers and the server counts tokens"
)
MEASURES: Final = "the next evaluation does that, of a new revision or after an edit of spec.evaluation.maxNewTokens"
NOTHING_SERVES: Final = "nothing serves: spec.serving is absent"
Two = tuple[float, float]  # of prompts, of answers


@dataclass(frozen=True)
class Terms:
    """What is known before anything is measured; None: it is not, or nobody asked. `pods` serve as the spec has it, at least, and `most` at
    most; `missing` says what is not known and which field would tell."""

    pods: int
    most: int
    pod_hour: float | None = None
    paid_once: float | None = None
    currency: str = ""
    alternative: Alternative | None = None
    traffic: ExpectedTraffic | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What comes out, a month or a million tokens; None: not known; infinite: never. `pods` are those that are counted; `capacity` and
    `full`: were they all as busy as in the evaluation, in the traffic's proportion of prompts and answers; `other` is the alternative;
    the spec's pods cost less than it from `cheaper_from` to `cheaper_to` tokens; `paid_back` in months."""

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


def terms(o: Observed, serving: Serving, cost: Cost) -> Terms:
    """The terms of today."""
    asked = o.spec.economics or Asked()
    hour, trained, extra = pod_hour(o), paid(cost), _decimal(asked.one_time_cost)
    scaling = serving.autoscaling
    return Terms(
        pods=scaling.min_replicas if scaling else serving.replicas,
        most=scaling.max_replicas if scaling else serving.replicas,
        pod_hour=hour,
        paid_once=None if trained is None and extra is None else (trained or 0.0) + (extra or 0.0),
        currency=(o.spec.budget.currency if o.spec.budget else None) or cost.currency or "",
        alternative=asked.alternative,
        traffic=asked.traffic,
        missing=tuple(_missing(o, asked, priced=hour is not None, trained=trained is not None)),
    )


def compute(t: Terms, measured: Answering | None) -> Figures:
    """The figures. More pods than the spec has are counted where the traffic needs them; how many it needs is an upper bound, for prompts
    and answers are taken to cost a server what they did in the evaluation's proportion."""
    each, asked = _capacity(measured), _volume(t.traffic, measured)
    one = _in_proportion(each, asked) if each else None
    pods = max(t.pods, math.ceil(sum(asked) / one)) if asked and one else t.pods
    serving = None if t.pod_hour is None else pods * t.pod_hour * HOURS
    full = None if t.pod_hour is None or one is None else t.pod_hour * HOURS / one * MILLION
    other_million = _mixed(t.alternative, asked or each)
    other = None if other_million is None or asked is None else other_million * sum(asked) / MILLION
    saving = None if other is None or serving is None else other - serving
    cheaper_from = _cheaper_from(t, full, other_million)
    return Figures(
        pods=pods, serving=serving, capacity=pods * one if one else None, full=full, traffic=asked,
        actual=None if serving is None or asked is None else serving / sum(asked) * MILLION,
        other=other, other_million=other_million, saving=saving, cheaper_from=cheaper_from,
        cheaper_to=t.pods * one if one and cheaper_from is not None and math.isfinite(cheaper_from) else None,
        paid_back=_paid_back(t.paid_once, saving),
    )  # fmt: skip


def summary(o: Observed, d: Draft) -> Economics | None:
    """What the status says of it: by today's prices, and by how the newest revision answered (until it has, the live one), if that was on
    what serves by today's spec."""
    if o.spec.economics is None:
        return None
    if o.spec.serving is None:
        return Economics(message=NOTHING_SERVES)
    t, now, found = terms(o, o.spec.serving, d.status.cost), served_by(o.spec, profile(o)), _answered(d)
    measured = next((a for a in found if _server(a) == now), None)
    unmeasured = [] if measured else [_elsewhere(found[0], now) if found else NOT_MEASURED]
    f = compute(t, measured)
    return Economics(
        pods=str(f.pods), serving_per_month=_amount(f.serving), per_million_tokens_at_full_use=_amount(f.full),
        per_million_tokens=_amount(f.actual), alternative=t.alternative.name if t.alternative else None,
        alternative_per_month=_amount(f.other), alternative_per_million_tokens=_amount(f.other_million),
        saving_per_month=_amount(f.saving), cheaper_from_tokens_per_month=_number(f.cheaper_from, ".0f"),
        cheaper_to_tokens_per_month=_number(f.cheaper_to, ".0f"), paid_once=_amount(t.paid_once),
        break_even_months=_number(f.paid_back, ".1f"), currency=t.currency or None, message=_message(t, f, unmeasured)[:1024],
    )  # fmt: skip


def page(o: Observed, cost: Cost) -> dict[str, Any] | None:
    """The same terms for the evaluation's page (docs/contracts.md); None where nothing serves, or nobody asks and nothing has a price."""
    serving = o.spec.serving
    if serving is None:
        return None
    t = terms(o, serving, cost)
    if o.spec.economics is None and t.pod_hour is None:
        return None
    other, traffic = t.alternative, t.traffic
    return {
        "pods": t.pods,
        "mostPods": t.most,
        "podHour": t.pod_hour,
        "paidOnce": t.paid_once,
        "currency": t.currency,
        "alternative": other and {"name": other.name, "inputPrice": decimal(other.input_price), "outputPrice": decimal(other.output_price)},
        "traffic": traffic and traffic.model_dump(by_alias=True),
        "missing": list(t.missing),
    }


def _answered(d: Draft) -> list[Answering]:
    """How the newest revision answered, and the live one."""
    scored = [d.revision.evaluated, *(r.evaluated for r in d.status.revisions if r.name == d.status.live_revision)]
    return [s.answering for s in scored if s and s.answering]


def _server(a: Answering) -> ServedBy | None:
    """What was measured; None: a trainer did not record it."""
    return None if a.runtime is None else ServedBy(a.accelerator, a.accelerators or 0, a.runtime)


def _elsewhere(a: Answering, now: ServedBy) -> str:
    """Another server was measured than the one that is priced."""
    return f"what a server does is not measured of {now}, only of {_server(a) or 'a server that was not recorded'}: {MEASURES}"


def profile(o: Observed) -> Accelerator:
    """Of the accelerators that the spec asks for; of any, where it names none that is known."""
    return o.profile or ANY_GPU


def pod_hour(o: Observed) -> float | None:
    """What one model server costs an hour: as stated, or its accelerators by their profile. One without any runs on CPUs, which have no
    price."""
    asked, each, count = o.spec.economics or Asked(), price(o), accelerators(o.spec, profile(o))
    if asked.pod_hourly_price is not None or each is None or not count:
        return _decimal(asked.pod_hourly_price)
    return each * count


def _missing(o: Observed, asked: Asked, *, priced: bool, trained: bool) -> list[str]:
    """What is not known, each with the field that would tell."""
    found = {
        f"what a pod costs an hour is not known{_unpriced(o)}economics.podHourlyPrice": priced,
        _untold(asked, priced=price(o) is not None): trained,
        "set economics.alternative to compare with something": asked.alternative is not None,
        "set economics.traffic to compare what a month costs": asked.traffic is not None,
    }
    return [text for text, known in found.items() if not known]


def _unpriced(o: Observed) -> str:
    """Why a server has no price, as far as there is something to say, and what would give it one."""
    name = o.spec.compute.accelerator
    if name and not accelerators(o.spec, profile(o)):
        return ", for serving.resources gives it no accelerator: set "
    return f": set hourlyPrice of the operator's profile {name} (the chart's value profiles), or " if name else ": set "


def _untold(asked: Asked, *, priced: bool) -> str:
    """Why it is not known what training cost. `priced`: it has a price, and is yet to begin."""
    if priced:
        return "what training costs is known once it has run"
    only = "only economics.oneTimeCost is counted" if asked.one_time_cost else "set economics.oneTimeCost"
    return f"what training cost is not known, for what it ran on has no price: {only}"


def _capacity(measured: Answering | None) -> Two | None:
    """Tokens that one server takes and gives a month, as busy as in the evaluation."""
    if measured is None:
        return None
    months = float(measured.seconds) / 3600 / HOURS
    return measured.input_tokens / months, measured.output_tokens / months


def _in_proportion(each: Two, asked: Two | None) -> float:
    """Tokens that one server does a month, at least, where prompts and answers come in the traffic's proportion."""
    return sum(asked) / max(asked[0] / each[0], asked[1] / each[1]) if asked else sum(each)


def _volume(traffic: ExpectedTraffic | None, measured: Answering | None) -> Two | None:
    """Tokens a month that users send and are sent."""
    if traffic is None:
        return None
    if traffic.input_tokens_per_month and traffic.output_tokens_per_month:
        return float(traffic.input_tokens_per_month), float(traffic.output_tokens_per_month)
    if measured is None or traffic.requests_per_month is None:
        return None
    each = traffic.requests_per_month / measured.rows
    return each * measured.input_tokens, each * measured.output_tokens


def _mixed(other: Alternative | None, tokens: Two | None) -> float | None:
    """What a million tokens in that proportion cost there."""
    if other is None or tokens is None:
        return None
    return (decimal(other.input_price) * tokens[0] + decimal(other.output_price) * tokens[1]) / sum(tokens)


def _cheaper_from(t: Terms, full: float | None, other_million: float | None) -> float | None:
    """Tokens a month from which on the spec's pods cost less, as far as they can do as many; beyond it more of them have to be paid for."""
    if t.pod_hour is None or other_million is None:
        return None
    if other_million == 0 or (full is not None and full >= other_million):
        return math.inf
    return t.pods * t.pod_hour * HOURS / other_million * MILLION


def _paid_back(paid_once: float | None, saving: float | None) -> float | None:
    """Months until what was paid once is saved."""
    if saving is None or (saving > 0 and paid_once is None):
        return None
    return math.inf if saving <= 0 else (paid_once or 0.0) / saving


def _message(t: Terms, f: Figures, unmeasured: list[str]) -> str:
    """What comes out, then what is not known."""
    crowded = f"the traffic needs {f.pods} pods, and the spec has at most {t.most}: {f.pods} are counted" if f.pods > t.most else ""
    parts = [_verdict(t, f), crowded, *unmeasured, *t.missing]
    return "; ".join(part for part in parts if part)


def _verdict(t: Terms, f: Figures) -> str:
    if f.serving is None:
        return ""
    counted = f" for {f.pods} pods" if f.pods > t.pods else ""
    full = f", {_money(t, f.full)} for a million tokens at full use" if f.full else ""
    serving = f"serving costs {_money(t, f.serving)} a month{counted}{full}"
    if t.alternative is None or f.cheaper_from is None:
        return serving
    where = _where(t, t.alternative.name, f.cheaper_from, f)
    if f.other is None or f.saving is None:
        return f"{serving}; {where}"
    both = f"{serving}, {t.alternative.name} {_money(t, f.other)} for the same traffic"
    if f.saving <= 0:
        return f"never pays back at this traffic: {both}; {where}"
    if f.paid_back is None:
        return f"saves {_money(t, f.saving)} a month: {both}"
    months = f"{f.paid_back:,.1f} months" if f.paid_back >= 0.05 else "less than 0.1 months"
    return f"pays back in {months}: {both}, and {_money(t, t.paid_once or 0.0)} were paid once"


def _where(t: Terms, other: str, start: float, f: Figures) -> str:
    """At which traffic the spec's pods are cheaper."""
    pods = f"{t.pods} pod{'s' if t.pods > 1 else ''}"
    if f.other_million == 0:
        return f"never cheaper than {other}, which costs nothing"
    if math.isinf(start):
        return f"cheaper than {other} at no traffic while no busier than in the evaluation: at full use its tokens cost no less"
    if f.cheaper_to is None:
        return f"cheaper than {other} from {start:,.0f} tokens a month on, as far as {pods} can do as many"
    return f"cheaper than {other} from {start:,.0f} to {f.cheaper_to:,.0f} tokens a month, which {pods} can do"


def _money(t: Terms, amount: float) -> str:
    return f"{amount:,{_places(amount)}} {t.currency}".strip()


def _amount(value: float | None) -> str | None:
    return None if value is None else _number(value, _places(value))


def _places(amount: float) -> str:
    """Of a part of one unit of money four are told."""
    return ".2f" if abs(amount) >= 1 or amount == 0 else ".4f"


def _number(value: float | None, form: str) -> str | None:
    """For the status; None of what is not known, and of what never is."""
    if value is None or math.isinf(value):
        return None
    return f"{value:{form}}" if abs(value) < WHOLE else f"{value:.6g}"


def _decimal(text: str | None) -> float | None:
    return None if text is None else decimal(text)
