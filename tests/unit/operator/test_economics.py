"""What serving costs against what else could answer: by figures worked out by hand, and what is said where one is missing."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.api.blocks.economics import Economics as Asked
from finetune_operator.api.fields import REDEPLOY, REEVALUATE, RETRAIN, extract
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Answering, Cost, Economics
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import economics
from finetune_operator.decide.economics import Terms, compute
from finetune_operator.observed import Observed
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.operator.helpers import draft, make_observed, make_revision, make_scored

# 100 tokens of prompts and 50 of answers a second: 262.8 and 131.4 million a month of 2,628,000 s.
MEASURED = Answering(rows=100, seconds="100", input_tokens=10_000, output_tokens=5_000, concurrency=16)
OTHER = {"name": "big-api", "inputPrice": "10", "outputPrice": "30"}
CHEAP = {"name": "big-api", "inputPrice": "1", "outputPrice": "10"}
SIX = {"name": "big-api", "inputPrice": "6", "outputPrice": "6"}
REQUESTS = {"requestsPerMonth": 4_000_000}  # 400 million tokens of prompts, 200 million of answers
EVEN = {"inputTokensPerMonth": 1_000_000, "outputTokensPerMonth": 1_000_000}
A_MONTH = Answering(rows=1, seconds="2628000", input_tokens=1_000_000, output_tokens=1_000_000, concurrency=1)  # to do as many
BY_TOKENS = {"inputTokensPerMonth": 400_000_000, "outputTokensPerMonth": 200_000_000}
PRICED = {"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=1.5)}
H100S = {"accelerator": "h100", "accelerators": 2, "runtime": "vLLM"}  # what serves in `seen`
NO_GPU = {"replicas": 2, "resources": {"limits": {"nvidia.com/gpu": "0"}}}
CPU_VLLM = {"accelerators": 0, "runtime": "vLLM"}
CPUS = {"accelerators": 0, "runtime": "Transformers"}
TRAINED = Cost(hours="10", gpu_hours="160", amount="240", currency="USD")


def terms(asked: dict[str, Any], **changes: Any) -> Terms:
    said = Asked.model_validate({"alternative": OTHER, **asked})
    known: dict[str, Any] = {"pods": 2, "most": 2, "pod_hour": 3.0, "paid_once": 11_240.0, "currency": "USD"}
    return Terms(**{**known, "alternative": said.alternative, "traffic": said.traffic, **changes})


def at_price(both: str) -> dict[str, str]:
    return {**OTHER, "inputPrice": both, "outputPrice": both}


# terms, measured → what comes out
FIGURES: dict[str, tuple[Terms, Answering | None, dict[str, Any]]] = {
    "two pods have room for the traffic": (
        terms({"traffic": REQUESTS}),
        MEASURED,
        {
            "pods": 2, "serving": 4380, "capacity": 788.4e6, "full": 4380 / 788.4, "traffic": (400e6, 200e6), "actual": 7.3,
            "other": 10_000,
            "other_million": 10_000 / 600, "saving": 5620, "cheaper_from": 262.8e6, "cheaper_to": 788.4e6,
            "paid_back": 2,
        },
    ),
    "tokens say the same as requests": (terms({"traffic": BY_TOKENS}), MEASURED, {"traffic": (400e6, 200e6), "paid_back": 2}),
    "tokens need nothing measured": (
        terms({"traffic": BY_TOKENS}), None,
        {"pods": 2, "serving": 4380, "capacity": None, "full": None, "actual": 7.3, "saving": 5620, "cheaper_from": 262.8e6,
        "cheaper_to": None, "paid_back": 2},
    ),
    "requests do": (
        terms({"traffic": REQUESTS}), None,
        {"serving": 4380, "traffic": None, "actual": None, "other": None, "saving": None, "cheaper_from": None, "paid_back": None},
    ),
    "more traffic than the pods have room for": (
        terms({"traffic": {"requestsPerMonth": 10_000_000}}), MEASURED, {"pods": 4, "serving": 8760, "saving": 16_240,
        "cheaper_from": 262.8e6, "cheaper_to": 788.4e6},
    ),
    "what there is more of decides, prompts": (
        terms({"traffic": {"inputTokensPerMonth": 600_000_000, "outputTokensPerMonth": 1_000_000}}), MEASURED, {"pods": 3},
    ),
    "what there is more of decides, answers": (
        terms({"traffic": {"inputTokensPerMonth": 1_000_000, "outputTokensPerMonth": 600_000_000}}), MEASURED, {"pods": 5},
    ),
    "answers take more of a server than prompts, at full use too": (
        terms({"traffic": {"inputTokensPerMonth": 100_000_000, "outputTokensPerMonth": 900_000_000}, "alternative": CHEAP}), MEASURED,
        {"pods": 7, "serving": 15_330, "capacity": 7 * 146e6, "full": 15, "actual": 15.33, "other": 9100, "other_million": 9.1,
        "cheaper_from": math.inf, "cheaper_to": None, "paid_back": math.inf},
    ),
    "one pod is cheaper, and a second one is needed": (
        terms({"traffic": {"requestsPerMonth": 2_700_000}, "alternative": SIX}, pods=1), MEASURED,
        {"pods": 2, "serving": 4380, "other": 2430, "cheaper_from": 365e6, "cheaper_to": 394.2e6, "paid_back": math.inf},
    ),
    "too little traffic never pays back": (
        terms({"traffic": {"requestsPerMonth": 1_000_000}}), MEASURED,
        {"other": 2500, "saving": -1880, "cheaper_from": 262.8e6, "paid_back": math.inf},
    ),
    "the same price on both sides never pays back": (
        terms({"traffic": REQUESTS, "alternative": at_price("7.3")}), MEASURED,
        {"paid_back": math.inf},
    ),
    "a cheaper alternative is so at any traffic": (
        terms({"traffic": REQUESTS, "alternative": {**OTHER, "inputPrice": "1", "outputPrice": "2"}}), MEASURED,
        {"cheaper_from": math.inf, "cheaper_to": None, "paid_back": math.inf},
    ),
    "a free one too": (
        terms({"alternative": at_price("0")}), MEASURED, {"other_million": 0, "cheaper_from": math.inf},
    ),
    "a free one needs nothing measured": (
        terms({"traffic": BY_TOKENS, "alternative": at_price("0")}), None,
        {"other_million": 0, "cheaper_from": math.inf, "cheaper_to": None, "paid_back": math.inf},
    ),
    "at full use it costs the same": (
        terms({"traffic": EVEN, "alternative": at_price("365")}, pod_hour=1.0), A_MONTH,
        {"full": 365, "other_million": 365, "cheaper_from": math.inf, "cheaper_to": None},
    ),
    "neither saves": (
        terms({"traffic": EVEN, "alternative": at_price("730")}, pod_hour=1.0, paid_once=None), None, {"saving": 0, "paid_back": math.inf},
    ),
    "it saves little, of what is not known": (
        terms({"traffic": EVEN, "alternative": at_price("730.25")}, pod_hour=1.0, paid_once=None), None,
        {"saving": 0.5, "paid_back": None},
    ),
    "it saves little": (
        terms({"traffic": EVEN, "alternative": at_price("730.25")}, pod_hour=1.0, paid_once=1.0), None, {"saving": 0.5, "paid_back": 2},
    ),
    "what was paid once is not known": (terms({"traffic": REQUESTS}, paid_once=None), MEASURED, {"saving": 5620, "paid_back": None}),
    "a loss never pays back, whatever was paid": (
        terms({"traffic": {"requestsPerMonth": 1}}, paid_once=None), MEASURED, {"paid_back": math.inf},
    ),
    "nothing was paid once": (terms({"traffic": REQUESTS}, paid_once=0.0), MEASURED, {"paid_back": 0}),
    "pods have no price": (
        terms({"traffic": REQUESTS}, pod_hour=None), MEASURED,
        {"serving": None, "full": None, "actual": None, "other": 10_000, "saving": None, "cheaper_from": None, "paid_back": None},
    ),
    "nobody said how much is asked": (
        terms({}), MEASURED,
        {"full": 4380 / 788.4, "actual": None, "other": None, "other_million": 10_000 / 600, "cheaper_from": 262.8e6, "paid_back": None},
    ),
    "there is nothing to compare with": (
        terms({"traffic": REQUESTS}, alternative=None), MEASURED, {"actual": 7.3, "other": None, "saving": None, "cheaper_from": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FIGURES)
def test_figures(case: str) -> None:
    given, measured, wanted = FIGURES[case]
    found = asdict(compute(given, measured))
    assert {name: found[name] for name in wanted} == {n: v if v is None else pytest.approx(v) for n, v in wanted.items()}


SMALL = st.integers(1, 30)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.tuples(SMALL, SMALL), st.tuples(SMALL, SMALL), st.tuples(SMALL, SMALL), st.integers(1, 3), SMALL)
def test_where_it_is_said_to_be_cheaper_something_is_saved_and_nowhere_else(
    each: tuple[int, int], asked: tuple[int, int], prices: tuple[int, int], pods: int, hour: int
) -> None:
    """`each`, `asked`: millions of tokens that a server does, and that users ask for. Beyond what the spec's pods do nothing is said."""
    measured = Answering(rows=1, seconds="2628", input_tokens=each[0] * 1000, output_tokens=each[1] * 1000, concurrency=16)
    traffic = {"inputTokensPerMonth": asked[0] * 10**6, "outputTokensPerMonth": asked[1] * 10**6}
    other = {"name": "big-api", "inputPrice": str(prices[0]), "outputPrice": str(prices[1])}
    f = compute(terms({"traffic": traffic, "alternative": other}, pods=pods, pod_hour=hour / 730), measured)
    assert f.cheaper_from is not None
    assert f.saving is not None
    assert f.cheaper_to is None if math.isinf(f.cheaper_from) else f.cheaper_from < (f.cheaper_to or 0)
    much, least = sum(asked) * 1e6, 1e-6
    if much < f.cheaper_from - least:
        assert f.saving < least
    elif f.cheaper_from + least < much < (f.cheaper_to or 0) - least:
        assert f.saving > -least


def _answered(answering: Answering | None, server: dict[str, Any]) -> dict[str, Any]:
    answering = answering and answering.model_copy(update=server)
    return make_scored("0.8").model_copy(update={"answering": answering}).to_dict()


def seen(
    asked: dict[str, Any] | None, *, measured: bool = True, server: dict[str, Any] = H100S, cost: Cost | None = TRAINED, **changes: Any
) -> Observed:
    """A FineTune of which the newest revision is scored, by such a server."""
    profiles = changes.pop("profiles", PRICED)
    spec = {"compute": {"accelerator": "h100", "gpusPerNode": 2}, "economics": asked, "budget": {"currency": "USD"}, **changes}
    revision = make_revision(evaluated=_answered(MEASURED if measured else None, server))
    return make_observed(revision, changes=spec, status={"cost": cost} if cost else {}, profiles=profiles)


def summary(asked: dict[str, Any] | None, **changes: Any) -> Economics | None:
    o = seen(asked, **changes)
    return economics.summary(o, draft(o))


def test_the_status_says_what_comes_out() -> None:
    found = summary({"alternative": OTHER, "traffic": REQUESTS, "oneTimeCost": "11000"})
    assert found is not None
    assert found.to_dict() == {
        "pods": "2", "servingPerMonth": "4380.00", "perMillionTokensAtFullUse": "5.56", "perMillionTokens": "7.30",
        "alternative": "big-api",
        "alternativePerMonth": "10000.00", "alternativePerMillionTokens": "16.67", "savingPerMonth": "5620.00",
        "cheaperFromTokensPerMonth": "262800000", "cheaperToTokensPerMonth": "788400000", "paidOnce": "11240.00",
        "breakEvenMonths": "2.0", "currency": "USD",
        "message": "pays back in 2.0 months: serving costs 4,380.00 USD a month, 5.56 USD for a million tokens at full use, "
        "big-api 10,000.00 USD for the same traffic, and 11,240.00 USD were paid once",
    }  # fmt: skip


def test_the_pages_example_is_as_it_says() -> None:
    written = (Path(__file__).resolve().parents[3] / "docs" / "economics.md").read_text()
    spec = yaml.safe_load(written.split("```yaml")[1].split("```")[0])
    o = make_observed(make_revision(evaluated=_answered(MEASURED, CPUS)), changes=spec, status={"cost": TRAINED})
    found = economics.summary(o, draft(o))
    assert found is not None
    assert found.message in " ".join(line.removeprefix("> ") for line in written.splitlines())


# spec.economics, what else is there → words of the message
WORDS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "never": (
        {"alternative": OTHER, "traffic": {"requestsPerMonth": 1000}}, {},
        (
            "never pays back at this traffic: serving costs 4,380.00 USD a month",
            "cheaper than big-api from 262,800,000 to 788,400,000 tokens a month, which 2 pods can do",
        ),
    ),
    "never, at any traffic": (
        {"alternative": at_price("1"), "traffic": REQUESTS}, {},
        (
            "never pays back",
            "cheaper than big-api at no traffic while no busier than in the evaluation: at full use its tokens cost no less",
        ),
    ),
    "never, for a free one": (
        {"alternative": at_price("0")}, {}, ("never cheaper than big-api, which costs nothing",),
    ),
    "never, though fewer pods would be cheaper": (
        {"alternative": SIX, "traffic": {"requestsPerMonth": 2_700_000}},
        {"serving": {"replicas": 1}},
        (
            "never pays back at this traffic: serving costs 4,380.00 USD a month for 2 pods",
            "cheaper than big-api from 365,000,000 to 394,200,000 tokens a month, which 1 pod can do",
        ),
    ),
    "nothing measured": (
        {"alternative": OTHER, "traffic": {"inputTokensPerMonth": 1000, "outputTokensPerMonth": 1000}}, {"measured": False},
        ("never pays back", "cheaper than big-api from 219,000,000 tokens a month on, as far as 2 pods can do as many"),
    ),
    "no traffic": ({"alternative": OTHER}, {}, ("tokens a month, which 2 pods can do; set economics.traffic",)),
    "no alternative": (
        {"traffic": REQUESTS}, {},
        ("serving costs 4,380.00 USD a month, 5.56 USD for a million tokens at full use; set economics.alternative",),
    ),
    "a profile without a price": (
        {"alternative": OTHER, "traffic": REQUESTS}, {"profiles": {"h100": Accelerator("h100", "nvidia.com/gpu")}, "cost": None},
        (
            "what a pod costs an hour is not known: set hourlyPrice of the operator's profile h100 (the chart's value profiles), or "
            "economics.podHourlyPrice; what training cost is not known, for what it ran on has no price: set economics.oneTimeCost",
        ),
    ),
    "CPUs": (
        {"alternative": OTHER, "traffic": REQUESTS}, {"compute": {"nodes": 1}, "cost": None},
        ("what a pod costs an hour is not known: set economics.podHourlyPrice; what training cost is not known",),
    ),
    "a server without the accelerators that train": (
        {"alternative": OTHER, "traffic": REQUESTS}, {"serving": NO_GPU, "server": CPU_VLLM},
        ("what a pod costs an hour is not known, for serving.resources gives it no accelerator: set economics.podHourlyPrice",),
    ),
    "one whose price is stated": (
        {"alternative": OTHER, "traffic": REQUESTS, "podHourlyPrice": "0.5"}, {"serving": NO_GPU, "server": CPU_VLLM},
        ("pays back in less than 0.1 months: serving costs 730.00 USD a month",),
    ),
    "CPUs whose price is stated": (
        {"alternative": OTHER, "traffic": REQUESTS, "podHourlyPrice": "0.5", "oneTimeCost": "927"},
        {"compute": {"nodes": 1}, "cost": None, "server": CPUS},
        ("pays back in 0.1 months: serving costs 730.00 USD a month", "only economics.oneTimeCost is counted"),
    ),
    "no sooner paid than back": (
        {"alternative": OTHER, "traffic": REQUESTS}, {"cost": Cost(hours="1", amount="1")},
        ("pays back in less than 0.1 months: serving costs", "1.00 USD were paid once"),
    ),
    "back in no time that is worth telling": (
        {"alternative": OTHER, "traffic": REQUESTS}, {"cost": Cost(hours="1", amount="280")}, ("pays back in less than 0.1 months",),
    ),
    "back in what rounds to a tenth": (
        {"alternative": OTHER, "traffic": REQUESTS}, {"cost": Cost(hours="1", amount="281")}, ("pays back in 0.1 months",),
    ),
    "neither saves": (
        {"alternative": at_price("730"), "traffic": EVEN, "podHourlyPrice": "1"}, {"serving": NO_GPU, "server": CPU_VLLM},
        ("never pays back at this traffic",),
    ),
    "a little is saved": (
        {"alternative": at_price("730.25"), "traffic": EVEN, "podHourlyPrice": "1"},
        {"serving": NO_GPU, "server": CPU_VLLM, "cost": Cost(amount="1")},
        ("pays back in 2.0 months",),
    ),
    "cents": (
        {"alternative": OTHER, "traffic": REQUESTS, "podHourlyPrice": "0.03"},
        {"serving": NO_GPU, "server": CPU_VLLM, "cost": Cost(amount="0", currency="USD")},
        ("serving costs 43.80 USD a month, 0.0556 USD for a million tokens at full use", "and 0.00 USD were paid once"),
    ),
    "before it trains": (
        {"alternative": OTHER, "traffic": BY_TOKENS}, {"measured": False, "cost": None},
        ("saves 5,620.00 USD a month", "what a server does is not measured", "what training costs is known once it has run"),
    ),
    "more traffic than pods": (
        {"alternative": OTHER, "traffic": {"requestsPerMonth": 10_000_000}}, {},
        ("the traffic needs 4 pods, and the spec has at most 2: 4 are counted",),
    ),
    "an autoscaler has room for it": (
        {"alternative": OTHER, "traffic": {"requestsPerMonth": 10_000_000}},
        {"serving": {"autoscaling": {"maxReplicas": 4, "autoscaler": "External"}}},
        ("serving costs 8,760.00 USD a month for 4 pods",),
    ),
    "nothing serves": ({"alternative": OTHER}, {"serving": None}, ("nothing serves: spec.serving is absent",)),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_the_message_says_what_comes_out_and_which_field_would_tell_what_is_missing(case: str) -> None:
    asked, changes, words = WORDS[case]
    found = summary(asked, **changes)
    assert found is not None
    for text in words:
        assert text in found.message
    assert ("the spec has at most" in found.message) == (case in ("more traffic than pods", "never, though fewer pods would be cheaper"))


def test_nothing_is_said_unless_it_is_asked() -> None:
    assert summary(None) is None
    assert economics.page(seen(None, serving=None), TRAINED) is None
    assert economics.page(seen(None, compute={"nodes": 1}), Cost()) is None, "nor on the page, where nothing has a price"
    said = economics.page(seen(None), TRAINED)
    assert said is not None
    assert (said["podHour"], said["alternative"], said["traffic"]) == (3.0, None, None)


def test_the_page_has_the_terms_as_the_status_has_them() -> None:
    asked = {"alternative": OTHER, "traffic": BY_TOKENS, "oneTimeCost": "11000"}
    scaling = {"autoscaling": {"minReplicas": 3, "maxReplicas": 5}}
    assert economics.page(seen(asked, serving=scaling), Cost()) == {
        "pods": 3, "mostPods": 5, "podHour": 3.0, "paidOnce": 11000.0, "currency": "USD",
        "alternative": {"name": "big-api", "inputPrice": 10.0, "outputPrice": 30.0},
        "traffic": {"requestsPerMonth": None, **BY_TOKENS},
        "missing": ["what training costs is known once it has run"],
    }  # fmt: skip


# amount that training cost, spec.economics.oneTimeCost → status.economics.paidOnce
PAID: dict[str, tuple[str | None, str | None, str | None]] = {
    "nothing is known": (None, None, None),
    "one of them": (None, "1", "1.00"),
    "the other": ("240", None, "240.00"),
    "both": ("240", "11000", "11240.00"),
    "nothing was paid": ("0", None, "0.00"),
    "cents": ("0.5", None, "0.5000"),
    "as much as hundredths are told of": ("999.999999999999e12", None, "999999999999999.00"),
    "more": ("1e15", None, "1e+15"),
}


@pytest.mark.parametrize("case", PAID)
def test_what_was_paid_once_is_said_as_closely_as_it_matters(case: str) -> None:
    trained, extra, said = PAID[case]
    found = summary({"oneTimeCost": extra} if extra else {}, cost=Cost(amount=trained))
    assert found is not None
    assert found.paid_once == said


def test_a_server_without_accelerators_costs_not_nothing_but_what_nobody_knows() -> None:
    o = seen({"alternative": OTHER, "traffic": REQUESTS}, serving=NO_GPU, server=CPU_VLLM)
    found = economics.summary(o, draft(o))
    assert found is not None
    assert (found.serving_per_month, found.saving_per_month, found.break_even_months) == (None, None, None)
    assert "pays back" not in found.message
    assert (economics.page(o, TRAINED) or {})["podHour"] is None
    assert economics.page(seen(None, serving=NO_GPU), TRAINED) is None, "nor is anything shown that nobody asked for"


def test_a_server_may_have_other_accelerators_than_a_pod_that_trains() -> None:
    one = summary({}, serving={"replicas": 1, "resources": {"limits": {"nvidia.com/gpu": 1}}}, server={**H100S, "accelerators": 1})
    both = summary({}, serving={"replicas": 1})
    assert one is not None
    assert both is not None
    assert (one.serving_per_month, both.serving_per_month) == ("1095.00", "2190.00")


def test_an_accelerator_counts_by_the_name_that_its_own_profile_gives_it() -> None:
    spec = {
        "compute": {"accelerator": "mi300", "gpusPerNode": 8},
        "profiles": {"mi300": Accelerator("mi300", "amd.com/gpu", hourly_price=1.5)},
    }
    found = summary({}, serving={"replicas": 1, "resources": {"limits": {"amd.com/gpu": 1}}}, **spec)
    assert found is not None
    assert found.serving_per_month == "1095.00"


# what was measured, what serves by today's spec → what is said; nothing where it is the same
T4 = Accelerator("t4", "nvidia.com/gpu", hourly_price=0.15)
T4S = {"profiles": {**PRICED, "t4": T4}, "compute": {"accelerator": "t4", "gpusPerNode": 2}}
SERVERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the same": (H100S, {}, ""),
    "an accelerator that trains no more": (H100S, T4S, "is not measured of vLLM on 2 t4, only of vLLM on 2 h100: the next evaluation"),
    "fewer of them": (H100S, {"serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}, "of vLLM on 1 h100, only of vLLM on 2 h100"),
    "another runtime": (H100S, {"serving": {"runtime": "Transformers"}}, "of Transformers on 2 h100, only of vLLM on 2 h100"),
    "an image": (H100S, {"serving": {"image": "my/server:1"}}, "of my/server:1 on 2 h100, only of vLLM on 2 h100"),
    "CPUs": (CPUS, {}, "of vLLM on 2 h100, only of Transformers on CPUs"),
    "one without a profile": (
        H100S, {"compute": {"nodes": 1}, "serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}, "of Transformers on 1 GPU, only",
    ),
    "a server that was not recorded": ({}, {}, "only of a server that was not recorded"),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVERS)
def test_todays_price_is_set_beside_what_such_a_server_did_and_none_else(case: str) -> None:
    server, changes, words = SERVERS[case]
    found = summary({"alternative": OTHER, "traffic": BY_TOKENS, "podHourlyPrice": "3"}, server=server, **changes)
    assert found is not None
    assert (found.per_million_tokens_at_full_use is None) == bool(words)
    assert words in found.message
    assert ("is not measured" in found.message) == bool(words)
    assert found.saving_per_month is not None, "what needs no throughput is said all the same"


def test_of_two_servers_that_serve_no_more_the_newest_revisions_is_named() -> None:
    o = seen({"alternative": OTHER}, server={**H100S, "accelerators": 4})
    newest = make_revision("r1", evaluated=_answered(MEASURED, CPUS))
    d = draft(o).set(revisions=[newest, o.status.revisions[0].model_copy(update={"name": "r0"})], revision="r1", live_revision="r0")
    found = economics.summary(o, d)
    assert found is not None
    assert "only of Transformers on CPUs" in found.message


def test_a_message_that_is_too_long_is_cut_where_the_status_has_no_more_room() -> None:
    asked = {"alternative": {**OTHER, "name": "x" * 128}, "traffic": EVEN, "podHourlyPrice": "3"}
    found = summary(asked, server={**H100S, "runtime": "i" * 253}, serving={"image": "j" * 512}, cost=None, compute={"nodes": 1})
    assert found is not None
    assert len(found.message) == 1024


def test_the_live_revision_counts_where_the_newest_was_measured_on_what_serves_no_more() -> None:
    o = seen({"alternative": OTHER, "traffic": REQUESTS})
    newest = make_revision("r1", evaluated=_answered(MEASURED, CPUS))
    d = draft(o).set(revisions=[newest, o.status.revisions[0].model_copy(update={"name": "r0"})], revision="r1", live_revision="r0")
    found = economics.summary(o, d)
    assert found is not None
    assert found.per_million_tokens_at_full_use == "5.56"


def test_the_live_revision_counts_until_the_newest_has_answered() -> None:
    o = seen({"alternative": OTHER, "traffic": REQUESTS})
    live = o.status.revisions[0].model_copy(update={"name": "r0"})
    d = draft(o).set(revisions=[make_revision("r1"), live], revision="r1", live_revision="r0")
    found = economics.summary(o, d)
    assert found is not None
    assert found.per_million_tokens_at_full_use == "5.56"
    assert economics.summary(o, d.set(live_revision=None)) != found


def test_an_edit_of_prices_neither_trains_nor_scores_nor_deploys() -> None:
    """Nothing of it is part of what names a revision, an evaluation or an arm."""
    spec = {"economics": {"alternative": OTHER, "traffic": REQUESTS, "podHourlyPrice": "1", "oneTimeCost": "1"}}
    assert [extract(spec, Spec, marker) for marker in (RETRAIN, REEVALUATE, REDEPLOY)] == [{}, {}, {}]


@pytest.mark.parametrize("price", ["1e-99", "0", "1e12"])
@pytest.mark.parametrize("tokens", [1, 10**15])
@pytest.mark.parametrize("seconds", ["0.0001", "9007199254740991"])
def test_what_is_beyond_measure_fits_the_status_all_the_same(price: str, tokens: int, seconds: str) -> None:
    slow = Answering(rows=1, seconds=seconds, input_tokens=1, output_tokens=1, concurrency=1).model_copy(update=H100S)
    asked = {
        "alternative": {"name": "x" * 128, "inputPrice": price, "outputPrice": price}, "oneTimeCost": "1e12", "podHourlyPrice": "1e12",
        "traffic": {"requestsPerMonth": tokens},
    }  # fmt: skip
    o = seen(asked)
    revision = o.status.revisions[0]
    assert revision.evaluated
    d = draft(o).update(evaluated=revision.evaluated.model_copy(update={"answering": slow}))
    found = economics.summary(o, d)
    assert found is not None
    assert Economics.model_validate(found.to_dict()) == found
    assert not {"nan", "inf"} & set(found.to_dict().values())
