"""What the metrics say of a FineTune follows its status, and goes with it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from finetune_operator.metrics import Metrics
from prometheus_client import generate_latest

from tests.unit.operator.helpers import condition, make_finetune, scores, status_of
from tests.unit.operator.test_life import begin, phase, to_live
from tests.unit.operator.world import Operator, Outcome, run

KEY = ("ml", "bot")


def told(metrics: Metrics) -> dict[str, float]:
    """The samples of the FineTune, without its own labels."""
    lines = [line for line in generate_latest(metrics.registry).decode().splitlines() if 'name="bot"' in line]
    bare = [re.sub('(name="bot"|namespace="ml"),?', "", line).replace(",}", "}").replace("{}", "") for line in lines]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in bare}


def of(**status: Any) -> dict[str, float]:
    metrics = Metrics()
    metrics.observe_finetune(make_finetune(status=status))
    return told(metrics)


NOT_READY = {"type": "Ready", "status": "False", "reason": "Unschedulable"}


def test_a_life_ends_with_one_arm_that_all_users_are_on() -> None:
    found = of(phase="Live", liveArm="a1", liveRevision="r1", rollout={"state": "Promoted", "weight": 100, "arm": "a1", "revision": "r1"})
    assert found == {
        'finetune_phase{phase="Live"}': 1, 'finetune_arm{arm="a1",revision="r1",role="stable"}': 1,
        'finetune_rollout_state{state="Promoted"}': 1, "finetune_rollout_weight_percent": 100,
    }  # fmt: skip


def test_while_users_move_both_arms_have_their_roles() -> None:
    found = of(
        phase="RollingOut", liveArm="a1", liveRevision="r1", rollout={"state": "Holding", "weight": 10, "arm": "a2", "revision": "r2"}
    )
    assert {name for name in found if name.startswith("finetune_arm")} == {
        'finetune_arm{arm="a1",revision="r1",role="stable"}', 'finetune_arm{arm="a2",revision="r2",role="canary"}',
    }  # fmt: skip


def test_attempts_are_counted_by_how_they_ended() -> None:
    found = of(phase="Training", totals={"outOfMemory": 2, "error": 0, "succeeded": 1})
    assert found == {
        'finetune_phase{phase="Training"}': 1, 'finetune_training_attempts{outcome="outOfMemory"}': 2,
        'finetune_training_attempts{outcome="succeeded"}': 1,
    }  # fmt: skip


def test_what_scoring_and_serving_cost_is_told_where_it_has_a_price() -> None:
    scoring, serving = {"hours": "0.5000", "gpuHours": "2.0000", "amount": "5.0000"}, {"pods": 2, "gpus": 8, "perHour": "20.0000"}
    found = of(cost={"hours": "0", "gpuHours": "0", "scoring": scoring, "serving": serving})
    assert {name: value for name, value in found.items() if "scoring" in name or "serving" in name} == {
        "finetune_scoring_gpu_hours": 2, "finetune_scoring_cost": 5, "finetune_serving_gpus": 8, "finetune_serving_cost_per_hour": 20,
    }  # fmt: skip
    unpriced = of(cost={"hours": "0", "gpuHours": "0", "scoring": {"hours": "1", "gpuHours": "1"}, "serving": {"pods": 1, "gpus": 1}})
    assert {name for name in unpriced if "scoring" in name or "serving" in name} == {"finetune_scoring_gpu_hours", "finetune_serving_gpus"}


AVAILABLE = {"type": "Available", "status": "False", "reason": "NoReadyPods"}
# what the status says beside a live arm without a ready pod → what is told of its users
SERVED: dict[str, tuple[dict[str, Any], float | None]] = {
    "while another revision trains": ({"phase": "Training"}, 0),
    "while users are moved": ({"phase": "RollingOut", "rollout": {"state": "Holding", "weight": 10, "arm": "a2", "revision": "r2"}}, 0),
    "after a rollback": ({"phase": "Rejected"}, 0),
    "a pod is ready": ({"conditions": [{**AVAILABLE, "status": "True"}]}, 1),
    "a base that serves until the first rollout is through": (
        {"liveRevision": "base", "rollout": {"state": "Holding", "weight": 10, "arm": "a2", "revision": "r2"}}, 0,
    ),
    "a base that is just being deployed": (
        {"liveRevision": "base", "rollout": {"state": "Deploying", "weight": 0, "arm": "a2", "revision": "r2"}}, None,
    ),
    "nothing is live": ({"liveArm": None}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVED)
def test_users_without_a_ready_pod_are_told_in_every_phase(case: str) -> None:
    changes, expected = SERVED[case]
    found = of(**{"phase": "Live", "liveArm": "a1", "liveRevision": "r1", "conditions": [NOT_READY, AVAILABLE], **changes})
    assert found.get("finetune_available") == expected


def test_what_the_status_says_no_longer_is_gone() -> None:
    metrics = Metrics()
    metrics.observe_finetune(
        make_finetune(status={"phase": "Training", "conditions": [NOT_READY], "training": {"step": 7, "totalSteps": 9}})
    )
    assert told(metrics)['finetune_not_ready{reason="Unschedulable"}'] == 1
    metrics.observe_finetune(make_finetune(status={"phase": "Live", "conditions": [{**NOT_READY, "status": "True"}]}))
    assert told(metrics) == {'finetune_phase{phase="Live"}': 1}
    metrics.forget(KEY)
    metrics.forget(KEY)
    assert told(metrics) == {}


async def test_a_restarted_operator_tells_of_what_it_does_not_write() -> None:
    world = await to_live("never")
    again, writes = Operator(world), len(world.api.writes)
    await again.cycle()
    assert len(world.api.writes) == writes
    found = told(again.reconciler.metrics)
    assert (
        found['finetune_phase{phase="Live"}']
        == found[f'finetune_arm{{arm="{status_of(world)["liveArm"]}",revision="{status_of(world)["liveRevision"]}",role="stable"}}']
        == 1
    )


async def test_a_life_tells_why_it_waits() -> None:
    world = await begin("never")
    world.outcomes["evaluate"] = [Outcome(scores(0.05, (-0.2, -0.1)))]
    operator = await run(world, phase("Rejected"))
    found, reason = told(operator.reconciler.metrics), condition(status_of(world), "Ready")["reason"]
    assert (found['finetune_phase{phase="Rejected"}'], found[f'finetune_not_ready{{reason="{reason}"}}']) == (1, 1)
