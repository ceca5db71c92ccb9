"""What a user gets wrong is named, goes on by itself where it can, and disturbs nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.kube import DemoError
from tests.e2e.world import Object, Space, World, condition, labelled_rows, spec
from tests.watching import Watching

JUDGE = """
import json, os
assert not os.path.exists("/work")
with open("/metric/in/rows.jsonl") as rows, open("/metric/out/scores.jsonl", "w") as scores:
    for row in map(json.loads, rows):
        assert row["prompt"] and row["reference"] and isinstance(row["answer"], str)
        scores.write(json.dumps({"id": row["id"], "score": 0.25, "note": "so so"}) + chr(10))
"""
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def space(world: World) -> Iterator[Space]:
    """A namespace for this file."""
    with world.namespace("e2e-bad-input") as found:
        yield found


async def test_a_misspelt_field_is_refused_by_name(space: Space) -> None:
    with pytest.raises(DemoError, match="learningRat"):
        space.finetune("misspelt").apply(spec(training={"learningRat": "1e-3"}))


async def test_a_missing_configmap_is_named_and_it_goes_on_once_it_is_there(space: Space, watching: Watching) -> None:
    late = space.finetune("late")
    late.apply(spec("configmap://late-rows/train.jsonl", serving=None))
    status = await late.until("the missing source", lambda s: condition(s, "Ready").get("reason") == "SourceMissing", seconds=90)
    assert condition(status, "Ready")["status"] == "False"
    assert "ConfigMap late-rows" in condition(status, "Ready")["message"]
    await watching.told("FineTuneBlocked", **late.labels, reason="SourceMissing")
    space.config_map("late-rows", {"other.jsonl": labelled_rows(60)})
    status = await late.until("the missing key", lambda s: "no key train.jsonl" in condition(s, "Ready").get("message", ""), seconds=60)
    space.config_map("late-rows", {"train.jsonl": labelled_rows(60)})
    await late.until("prepared data", lambda s: condition(s, "DataPrepared").get("status") == "True", seconds=120)
    await watching.resolved("FineTuneBlocked", **late.labels)


async def test_too_many_bad_rows_stop_it_before_training_with_row_numbers(space: Space, watching: Watching) -> None:
    space.config_map("bad-rows", {"train.jsonl": labelled_rows(20) + '{"prompt": "no completion"}\nnot json\n' * 3})
    bad = space.finetune("bad-rows")
    bad.apply(spec("configmap://bad-rows/train.jsonl", serving=None))
    status = await bad.phase("Failed", seconds=180)
    message = condition(status, "Ready")["message"]
    assert "row 21" in message
    assert "row 22" in message
    assert "maxInvalidPercent" in message
    assert bad.children("jobs", "finetune.dev/stage=train") == []
    await watching.told("FineTuneFailed", **bad.labels)
    bad.apply(spec("configmap://bad-rows/train.jsonl", serving=None, suspend=True))
    await watching.resolved("FineTuneFailed", **bad.labels)


async def test_an_image_that_scores_answers_is_named_where_it_fails_and_heard_where_it_does_not(space: Space) -> None:
    space.config_map("judged-rows", {"train.jsonl": labelled_rows(60)})
    judged = space.finetune("judged")

    def by(script: str) -> Object:
        custom = {"image": space.world.images["trainer"], "command": ["python3", "-c", script], "timeout": "2m"}
        evaluation = {"metrics": [{"type": "Custom", "custom": custom}], "maxNewTokens": 4, "skipTrainingIfBaselineAtLeast": "0.2"}
        return spec("configmap://judged-rows/train.jsonl", serving=None, evaluation=evaluation)

    judged.apply(by("raise SystemExit('there is no code book')"))
    status = await judged.phase("Failed", seconds=180)
    assert condition(status, "Ready")["reason"] == "MetricFailed"
    assert "ended with exit code 1, and said: there is no code book" in condition(status, "Ready")["message"]
    judged.apply(by(JUDGE))
    status = await judged.phase("NotNeeded", "Failed", seconds=120)
    assert status["phase"] == "NotNeeded", judged.describe()
    assert "Custom 0.25 [0.25, 0.25], n=" in condition(status, "BaselineScored")["message"]


async def test_a_machine_that_is_too_small_is_named_by_the_scheduler(space: Space) -> None:
    space.config_map("few-rows", {"train.jsonl": labelled_rows(60)})
    big = space.finetune("too-big")
    big.apply(spec("configmap://few-rows/train.jsonl", serving=None, compute={"nodes": 1, "cpu": "900", "memory": "1Gi"}))
    status = await big.until("the scheduler's reason", lambda s: condition(s, "Ready").get("reason") == "Unschedulable", seconds=240)
    assert "Insufficient cpu" in condition(status, "Ready")["message"]


async def test_another_format_is_detected_and_trained_only(space: Space) -> None:
    rows = "".join(f'{{"instruction": "Label the message.", "input": "Message {n}", "output": "label-{n % 2}"}}\n' for n in range(80))
    space.config_map("alpaca", {"rows.jsonl": rows})
    other = space.finetune("alpaca")
    other.apply(spec("configmap://alpaca/rows.jsonl", serving=None))
    status = await other.phase("Trained", "Failed", "Rejected", seconds=300)
    assert status["phase"] == "Trained", other.describe()
    assert condition(status, "Ready")["status"] == "True"
