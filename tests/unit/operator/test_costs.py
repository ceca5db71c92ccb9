"""What scoring and serving cost beside training."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import status
from finetune_operator.api.status import Cost, Meter, ScoringCost, ServingCost
from finetune_operator.build.pods import Accelerator
from finetune_operator.decide import costs, decide
from finetune_operator.decide.draft import ArmWanted, Draft
from finetune_operator.observed import ArmHealth, Observed
from finetune_operator.workloads.run import Failure, Run

from tests.unit.operator.helpers import NOW, draft, make_observed, make_revision

BASELINE = "bot-r1-baseline"
GPU = {"accelerator": "h100", "nodes": 2, "gpusPerNode": 8}
PRICED = {"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=2.5)}
TRIED = {"tries": {"baseline": 1}}
BEGAN, AN_HOUR = NOW, NOW + timedelta(hours=1)
AT = "2026-01-01T12:00:00Z"
METER = Meter(number=1, since=AT, gpus=8, gpu_hour="2.5000")
COUNTED = METER.model_copy(update={"since": None})
EIGHT = ScoringCost(hours="1.0000", gpu_hours="8.0000", amount="20.0000")


def seen(run: Run | None, known: dict[str, Any], *, cost: Cost | None = None, **changes: Any) -> Observed:
    spec = {"compute": GPU, **changes}
    return make_observed(
        make_revision(**{**TRIED, **known}), changes=spec, profiles=PRICED, runs={run.name: run} if run else {}, now=AN_HOUR,
        status={"cost": cost} if cost else {},
    )  # fmt: skip


def ended(state: Any, **more: Any) -> Run:
    return Run(BASELINE, state, since=BEGAN, ended=AN_HOUR, **more)


# what is seen of its Job, what is known of the revision, changes of the spec → its meter, what scoring has cost
METERED: dict[str, tuple[Run | None, dict[str, Any], dict[str, Any], Meter | None, ScoringCost | None]] = {
    "its pod has no machine yet": (Run(BASELINE, "Waiting"), {}, {}, None, None),
    "its server loads on one": (Run(BASELINE, "Waiting", since=BEGAN), {}, {}, METER, None),
    "it scores": (Run(BASELINE, "Running", since=BEGAN), {"meters": {"baseline": METER}}, {}, METER, None),
    "it has ended": (ended("Succeeded"), {"meters": {"baseline": METER}}, {}, COUNTED, EIGHT),
    "it has failed": (ended("Failed"), {"meters": {"baseline": METER}}, {}, COUNTED, EIGHT),
    "it began and ended while nobody looked": (ended("Succeeded"), {}, {}, COUNTED, EIGHT),
    "it is counted": (ended("Succeeded"), {"meters": {"baseline": COUNTED}}, {}, COUNTED, None),
    "its pod is gone by then": (Run(BASELINE, "Succeeded", ended=AN_HOUR), {"meters": {"baseline": METER}}, {}, COUNTED, EIGHT),
    "its Job was deleted": (None, {"meters": {"baseline": METER}}, {}, COUNTED, EIGHT),
    "its pod still ends": (Run(BASELINE, "Ending", since=BEGAN), {"meters": {"baseline": METER}}, {}, METER, None),
    "the next try is another Job": (
        Run(f"{BASELINE}-2", "Running", since=BEGAN), {"tries": {"baseline": 2}, "meters": {"baseline": COUNTED}}, {},
        METER.model_copy(update={"number": 2}), None,
    ),
    "the loss is computed on one": (
        ended("Succeeded"), {}, {"evaluation": None}, COUNTED.model_copy(update={"gpus": 1}),
        ScoringCost(hours="1.0000", gpu_hours="1.0000", amount="2.5000"),
    ),
    "a server has as many as it says": (
        ended("Succeeded"), {}, {"serving": {"resources": {"limits": {"nvidia.com/gpu": "2"}}}}, COUNTED.model_copy(update={"gpus": 2}),
        ScoringCost(hours="1.0000", gpu_hours="2.0000", amount="5.0000"),
    ),
    "no price is known": (
        ended("Succeeded"), {}, {"compute": {"accelerator": "l40s"}}, COUNTED.model_copy(update={"gpus": 1, "gpu_hour": None}),
        ScoringCost(hours="1.0000", gpu_hours="1.0000"),
    ),
    "a clock went back": (
        Run(BASELINE, "Succeeded", since=BEGAN, ended=BEGAN - timedelta(hours=1)), {}, {}, COUNTED,
        ScoringCost(hours="0.0000", gpu_hours="0.0000", amount="0.0000"),
    ),
    "CPUs have no price": (ended("Succeeded"), {}, {"compute": {"nodes": 2}}, None, None),
}  # fmt: skip


@pytest.mark.parametrize("case", METERED)
def test_what_scoring_has_cost(case: str) -> None:
    run, known, changes, meter, cost = METERED[case]
    o = seen(run, known, **changes)
    found = costs.metered(o, draft(o))
    assert found.revision.meters.get("baseline") == meter
    assert found.status.cost.scoring == cost
    again = replace(o, status=found.status)
    assert costs.metered(again, draft(again)).status == found.status, "once"


def test_what_scored_a_revision_that_nobody_asks_for_any_more_is_counted_too() -> None:
    old = make_revision("r0", tries={"evaluate": 1}, meters={"evaluate": METER})
    o = make_observed(make_revision(), old, changes={"compute": GPU}, profiles=PRICED, now=AN_HOUR)
    assert costs.metered(o, draft(o)).status.cost.scoring == EIGHT


def test_what_failed_while_nobody_looked_is_counted_before_it_is_tried_again() -> None:
    known = make_revision(model_digest="m", data_digest="d", **TRIED)
    run = replace(ended("Failed"), failure=Failure("infrastructure", "Killed", "killed"))
    o = make_observed(known, changes={"compute": {**GPU, "nodes": 1}}, profiles=PRICED, now=AN_HOUR, runs={BASELINE: run})
    found = decide(o)
    assert (found.revision.tries, found.status.cost.scoring) == ({"baseline": 2}, EIGHT)


def test_a_job_that_went_while_nobody_looked_has_not_scored_for_longer_than_it_may() -> None:
    spec = {"compute": GPU, "deadlines": {"schedule": "10m", "start": "20m", "scoring": "30m"}}
    known = make_revision(**TRIED, meters={"baseline": METER})
    late = make_observed(known, changes=spec, profiles=PRICED, now=NOW + timedelta(days=3))
    assert costs.metered(late, draft(late)).status.cost.scoring == EIGHT


def test_scoring_adds_up_and_leaves_what_training_cost() -> None:
    before = Cost(hours="1.0000", gpu_hours="16.0000", amount="40.0000", scoring=EIGHT)
    o = seen(ended("Succeeded"), {}, cost=before)
    found = costs.metered(o, draft(o)).status.cost
    assert found == before.model_copy(update={"scoring": ScoringCost(hours="2.0000", gpu_hours="16.0000", amount="40.0000")})
    assert costs.summary(o, costs.metered(o, draft(o))).total == "80.0000"


ARMS = (ArmWanted("new", "r1"), ArmWanted("0ld", "base"))
# changes of the spec, the arms, what is seen of them → what serving costs
SERVING: dict[str, tuple[dict[str, Any], tuple[ArmWanted, ...], dict[str, ArmHealth], ServingCost | None]] = {
    "nothing serves": ({}, (), {}, None),
    "an arm that is being made": ({}, ARMS[:1], {}, ServingCost(pods=2, gpus=16, per_hour="40.0000")),
    "two arms, while users are moved": ({}, ARMS, {"0ld": ArmHealth(wanted=3)}, ServingCost(pods=5, gpus=40, per_hour="100.0000")),
    "an autoscaler has taken it to 4": (
        {"serving": {"autoscaling": {"minReplicas": 1, "maxReplicas": 4}}}, ARMS[:1], {"new": ArmHealth(wanted=4)},
        ServingCost(pods=4, gpus=32, per_hour="80.0000"),
    ),
    "one that an autoscaler will have": (
        {"serving": {"autoscaling": {"minReplicas": 3, "maxReplicas": 4}}}, ARMS[:1], {},
        ServingCost(pods=3, gpus=24, per_hour="60.0000"),
    ),
    "no price is known": (
        {"compute": {"accelerator": "l40s"}}, ARMS[:1], {}, ServingCost(pods=2, gpus=2),
    ),
    "a price that is stated": (
        {"compute": {}, "economics": {"podHourlyPrice": "0.25"}}, ARMS[:1], {}, ServingCost(pods=2, per_hour="0.5000"),
    ),
    "CPUs": ({"compute": {}}, ARMS, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVING)
def test_what_serving_costs_by_the_hour(case: str) -> None:
    changes, arms, health, expected = SERVING[case]
    o = make_observed(make_revision(), changes={"compute": GPU, **changes}, profiles=PRICED, arms=health)
    found = status.compute(o, Draft(status=o.status, arms=arms))
    assert found.cost.serving == expected
    assert found.cost.total is None, "serving counts towards no budget"
