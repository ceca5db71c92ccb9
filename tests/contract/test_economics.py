"""What a page says of money is what the status says, while the terms are the same: two sides compute it, for they share no code."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from typing import Any

from finetune_operator.api.status import Answering, Cost
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import economics
from finetune_trainer.config import EconomicsConfig
from finetune_trainer.evaluate import economics as page
from finetune_trainer.evaluate import throughput, worth
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract import specs
from tests.unit.operator.helpers import make_observed

PROFILES = {"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=2.5)}
COSTS = st.sampled_from([Cost(), Cost(hours="1", gpu_hours="8", amount="20.5", currency="USD")])
COMPUTE = st.sampled_from([{}, {"accelerator": "h100", "gpusPerNode": 8}, {"accelerator": "unknown"}])
SERVING = st.fixed_dictionaries({"replicas": st.integers(1, 1000)}) | st.just({"autoscaling": {"maxReplicas": 3, "autoscaler": "External"}})
MEASURED = st.none() | st.builds(
    throughput.Answering, rows=st.integers(1, 10**6), seconds=st.integers(1, 10**9).map(lambda n: n / 1000),
    input_tokens=st.integers(1, 10**9), output_tokens=st.integers(1, 10**9), concurrency=st.integers(1, 64),
)  # fmt: skip


@settings(max_examples=300, derandomize=True, deadline=None)
@given(specs.block("economics"), SERVING, COMPUTE, COSTS, MEASURED)
def test_both_sides_compute_the_same(
    asked: dict[str, Any], serving: dict[str, Any], compute: dict[str, Any], cost: Cost, measured: throughput.Answering | None
) -> None:
    o = make_observed(changes={"economics": asked, "serving": serving, "compute": compute}, profiles=PROFILES)
    assert o.spec.serving
    told = json.loads(json.dumps(economics.page(o, cost), allow_nan=False))
    there = page.compute(EconomicsConfig.model_validate(told), measured)
    known = None if measured is None else Answering.model_validate({**measured.told(), "seconds": str(measured.seconds)})
    terms = economics.terms(o, o.spec.serving, cost)
    here = economics.compute(terms, known)
    assert asdict(there) == asdict(here)
    shown = worth.section(EconomicsConfig.model_validate(told), measured)
    for amount in (here.serving, here.full, here.other, terms.paid_once):
        assert amount is None or f">{escape(economics._money(terms, amount))}<" in shown
    assert ("until it is paid back</td>" in shown) == (here.paid_back is not None)
    assert [escape(text) in shown for text in (*terms.missing, worth.NOT_MEASURED)] == [*(True for _ in terms.missing), measured is None]
