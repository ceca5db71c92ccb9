"""Whole lives of a FineTune under the real reconciler, undisturbed and with the operator killed after every single write."""

from __future__ import annotations

import copy
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any

import pytest
from finetune_operator import kinds, names
from finetune_operator.build import exposure_log
from finetune_operator.kinds import CHILDREN, FINETUNE, Kind

from tests.unit.operator.helpers import SPEC, condition, edit, good_outcomes, make_finetune, scores, status_of
from tests.unit.operator.world import Operator, Outcome, Stuck, World, run

Object = Mapping[str, Any]
Life = Callable[[str], Awaitable[World]]
NEW_RATE = {"learningRate": "1e-3"}


def phase(wanted: str) -> Callable[[Object], bool]:
    return lambda status: status.get("phase") == wanted


def live_with(revisions: int) -> Callable[[Object], bool]:
    """Live, once the status knows that many revisions and the newest serves."""
    return lambda s: s.get("phase") == "Live" and len(s["revisions"]) == revisions and s["revision"] == s["liveRevision"]


def worth(words: str) -> Callable[[Object], bool]:
    return lambda s: words in (s.get("economics") or {}).get("message", "")


def weight(at_least: int) -> Callable[[Object], bool]:
    return lambda s: s.get("phase") in ("RollingOut", "Baking") and s["rollout"]["weight"] >= at_least


def jobs(world: World, stage: str) -> list[str]:
    """Jobs of a stage that were ever made."""
    return sorted(n for (kind, n), count in world.api.births.items() if kind == "Job" and count and _is(n, stage))


def run_config(world: World, job: str) -> Object:
    """What the Job's pods are told."""
    template = world.api.store[kinds.JOB, "ml", job]["spec"]["template"]
    return dict(json.loads(template["metadata"]["annotations"][names.RUN_CONFIG]))


def _is(job: str, stage: str) -> bool:
    tail = job.removeprefix("bot-").split("-", 1)[1]
    return tail.rstrip("0123456789") == "a" if stage == "train" else tail.startswith(stage)


def nothing(kind: Kind, obj: Object) -> bool:
    return False


def arms(world: World) -> list[str]:
    found = (d["metadata"]["labels"].get(names.ARM) for d in world.api.all(kinds.DEPLOYMENT))
    return sorted(a for a in found if a)


def remembered(life: Life) -> Life:
    """A life that others go on from is lived once for each way of killing."""
    lived: dict[str, World] = {}

    @wraps(life)
    async def again(kill: str) -> World:
        if kill not in lived:
            lived[kill] = await life(kill)
        return lived[kill].clone()

    return again


async def begin(kill: str, **changes: Any) -> World:
    world = World(outcomes=good_outcomes())
    world.api.put(FINETUNE, make_finetune(**changes))
    return world


@remembered
async def to_live(kill: str) -> World:
    world = await begin(kill)
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    return world


async def first_life(kill: str) -> World:
    world = await to_live(kill)
    status = status_of(world)
    assert {s["name"]: "finished" in s for s in status["stages"]} == dict.fromkeys(
        ("fetch", "prepare", "baseline", "train", "evaluate", "deploy", "rollout", "bake"), True
    )
    assert (status.get("progress"), status["score"], status["weight"]) == (None, "0.1 → 0.8", "100%")
    assert arms(world) == [status["liveArm"]], "the base arm is gone"
    assert [(item["stage"], item["code"]) for item in status["advice"]] == [("prepare", "FewRows")]
    told = {stage: run_config(world, jobs(world, stage)[0]) for stage in ("baseline", "evaluate")}
    few = {"examples": 4, "rows": 16, "maxTokens": 2048}
    expected = {"reference": "base", "enough": None, "minScore": None, "minImprovement": None, "fewShot": few}
    assert [config["evaluation"]["before"] for config in told.values()] == [expected, None]
    assert told["baseline"]["evaluation"]["report"] is None
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Ready", "DataPrepared", "BaselineScored", "Trained", "Evaluated", "Available", "RolledOut"), "True"
    )
    return world


@remembered
async def edited_rate_is_trained_and_rolled_out_against_what_is_live(kill: str) -> World:
    world = await to_live(kill)
    first = status_of(world)["liveRevision"]
    world.outcomes["evaluate"] = [Outcome(scores(0.85, (0.0, 0.1)))]
    edit(world, training=NEW_RATE)
    await run(world, phase("Training"), kill=kill)
    status = status_of(world)
    assert condition(status, "Available")["status"] == "True", "users are served while another revision trains"
    assert condition(status, "RolledOut")["status"] == "False"
    await run(world, live_with(2), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert status["evaluation"]["reference"] == first
    assert len(jobs(world, "train")) == 2
    return world


@remembered
async def reverted_edit_is_live_again_without_training(kill: str) -> World:
    world = await edited_rate_is_trained_and_rolled_out_against_what_is_live(kill)
    trained, scored = jobs(world, "train"), jobs(world, "evaluate")
    first = status_of(world)["revisions"][0]["name"]
    edit(world, training=SPEC["training"])
    seen: list[int] = []
    await run(world, lambda s: _noting(s, seen) and s["phase"] == "Live" and s["liveRevision"] == first, kill=kill)
    await run(world, kill=kill)
    assert (jobs(world, "train"), jobs(world, "evaluate")) == (trained, scored)
    assert sorted(set(seen)) == [0, 100], "an arm that was promoted before skips the steps"
    return world


async def reverted_revert_does_not_meet_old_weights(kill: str) -> World:
    world = await reverted_edit_is_live_again_without_training(kill)
    second = status_of(world)["revisions"][1]["name"]
    edit(world, training=NEW_RATE)

    def nobody_is_moved_before_the_shift(status: Object) -> bool:
        rollout = status["rollout"]
        if rollout["state"] in ("Deploying", "Connecting"):
            assert all(w == 0 for _, canary, w in served(world) if canary == rollout["arm"]), "old weights came into force"
        return bool(status["phase"] == "Live" and status["liveRevision"] == second)

    await run(world, nobody_is_moved_before_the_shift, kill=kill)
    await run(world, kill=kill)
    return world


def served(world: World) -> list[tuple[str, str | None, int]]:
    pods = (p["metadata"]["name"] for p in world.api.all(kinds.POD) if p["metadata"]["labels"].get(names.COMPONENT) == "router")
    return [world.served(p) for p in pods]


def _noting(status: Object, seen: list[int]) -> bool:
    seen.append((status.get("rollout") or {}).get("weight", 0))
    return True


async def failed_gate_rejects_and_what_is_live_stays(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    world.outcomes["evaluate"] = [Outcome(scores(0.2, (-0.8, -0.4)))]
    edit(world, training=NEW_RATE)
    await run(world, phase("Rejected"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["liveArm"], arms(world)) == (before, [before])
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"], condition(status, "Stalled")["status"]) == ("False", "GateFailed", "True")
    assert "provably worse" in ready["message"]
    assert condition(status, "Available")["status"] == "True"
    return world


async def failed_gate_passes_when_the_gate_is_edited(kill: str) -> World:
    world = await begin(kill)
    world.outcomes["evaluate"] = [Outcome(scores(0.1, (-0.1, 0.1)))]
    await run(world, phase("Rejected"), kill=kill)
    edit(world, evaluation={**SPEC["evaluation"], "gate": {"minImprovement": "-0.2"}})
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert (jobs(world, "evaluate"), len(jobs(world, "train"))) == ([f"bot-{status_of(world)['revision']}-evaluate"], 1)
    return world


@remembered
async def failing_canary_is_rolled_back_and_remembered(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    world.failing = lambda arm: 0.0 if arm == before else 0.5
    edit(world, serving={"replicas": 2, "image": "bad:1"})
    await run(world, phase("Rejected"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["liveArm"], status["rollout"]["state"], arms(world)) == (before, "RolledBack", [before])
    assert condition(status, "Ready")["reason"] == "GuardFailed"
    assert all(canary is None for _, canary, _ in served(world))
    assert len([n for (k, n), c in world.api.births.items() if k == "Deployment" and c]) == 4, "base, tuned, router, canary: once each"
    return world


async def canary_whose_answers_begin_late_is_rolled_back(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    assert not world.servers_asked, "nobody asked for what they tell"
    world.first_token = lambda arm: 90.0 if arm == before else 400.0
    rollout = {**SPEC["rollout"], "guards": {"minRequests": 50, "maxTimeToFirstTokenRegressionPercent": 25}}
    edit(world, serving={"replicas": 2, "image": "slow:1"}, rollout=rollout)
    await run(world, phase("Rejected"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["liveArm"], status["rollout"]["state"], arms(world)) == (before, "RolledBack", [before])
    assert "guard time to first token failed at 10 %" in status["rollout"]["lastDecision"]
    assert len(world.servers_asked) == 4, "two of each arm"
    return world


async def rejected_arm_is_tried_again_on_request(kill: str) -> World:
    world = await failing_canary_is_rolled_back_and_remembered(kill)
    world.failing = lambda arm: 0.0
    edit(world, annotations={names.RETRY: "1"})
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert status_of(world)["rollout"]["state"] == "Promoted"
    return world


async def server_image_goes_through_the_canary(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)
    edit(world, serving={"replicas": 2, "image": "better:1"})
    seen: list[int] = []
    await run(world, lambda s: _noting(s, seen) and s["phase"] == "Live" and s["liveArm"] != before["liveArm"], kill=kill)
    await run(world, kill=kill)
    assert set(seen) >= {10, 50, 100}
    assert status_of(world)["liveRevision"] == before["liveRevision"]
    assert len(jobs(world, "train")) == 1
    return world


async def image_that_never_gets_ready_has_no_user(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    world.broken.add("missing:1")
    edit(world, serving={"replicas": 2, "image": "missing:1"})

    def no_user(status: Object) -> bool:
        assert all(canary is None or w == 0 for _, canary, w in served(world))
        return bool(status["phase"] == "Rejected")

    await run(world, lambda s: s["phase"] == "Deploying" and s["reason"] == "ImageUnavailable", kill=kill)
    await run(world, no_user, kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (condition(status, "Ready")["reason"], status["liveArm"]) == ("NeverReady", before)
    assert "missing:1 cannot be pulled" in condition(status, "Ready")["message"]
    return world


async def suspended_training_goes_on_from_its_checkpoints(kill: str) -> World:
    world = await begin(kill)
    good = world.outcomes["train"]
    world.outcomes["train"] = [Outcome(never=True)]
    await run(world, lambda s: bool(s.get("attempts") and s["attempts"][0].get("folder")), kill=kill)
    folder = status_of(world)["attempts"][0]["folder"]
    edit(world, suspend=True)
    await run(world, kill=kill)
    status = status_of(world)
    ready = condition(status, "Ready")
    assert (status["phase"], ready["status"], condition(status, "Stalled"), condition(status, "Reconciling")) == (
        "Suspended",
        "False",
        {},
        {},
    )
    assert not [j for j in world.api.all(kinds.JOB) if j["metadata"]["labels"][names.STAGE] == "train"], "its pods are gone"
    world.outcomes["train"] = good
    edit(world, suspend=False)
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert [a["outcome"] for a in status["attempts"]] == ["Suspended", "Succeeded"]
    assert status["revisions"][0].get("charges", {}).get("error", 0) == 0
    assert run_config(world, f"bot-{status['revision']}-a2")["run"]["resumeFrom"] == [folder]
    return world


async def failed_attempts_are_tried_again_within_their_budget(kill: str) -> World:
    world = await begin(kill)
    lost = Outcome({"error": {"class": "infrastructure", "reason": "PeerLost", "message": "rank 1 is gone", "fix": ""}}, code=24)
    world.outcomes["train"] = [lost, Outcome({}, code=25), *world.outcomes["train"]]
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert [(a["outcome"], a.get("failureClass")) for a in status["attempts"]] == [
        ("Failed", "infrastructure"), ("Disrupted", "disruption"), ("Succeeded", None),
    ]  # fmt: skip
    assert status["revisions"][0]["charges"] == {"error": 0, "outOfMemory": 0, "infrastructure": 1, "disruption": 1}
    assert ("Service", f"bot-{status['revision']}-a1") not in {(k.kind, n) for k, _, n in world.api.store}
    return world


async def out_of_memory_is_tried_again_with_smaller_micro_batches(kill: str) -> World:
    world = await begin(kill)
    spent = Outcome({"error": {"class": "outOfMemory", "reason": "OutOfMemory", "message": "too big", "fix": ""}}, code=21)
    world.outcomes["train"] = [spent, spent, *world.outcomes["train"]]
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert [run_config(world, job)["training"]["microBatchDivisor"] for job in jobs(world, "train")] == [1, 2, 4]
    return world


async def spent_budget_stops_training_and_a_larger_one_resumes(kill: str) -> World:
    world = await begin(kill, budget={"maxDuration": "20s"})
    good, world.outcomes["train"] = world.outcomes["train"], [Outcome(never=True)]
    await run(world, lambda s: s.get("reason") == "BudgetExhausted", kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["phase"], condition(status, "Stalled")["reason"]) == ("Failed", "BudgetExhausted")
    folder = status["attempts"][0]["folder"]
    world.outcomes["train"] = good
    edit(world, budget={"maxDuration": "10m"})
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert [a["outcome"] for a in status_of(world)["attempts"]] == ["OverBudget", "Succeeded"]
    assert run_config(world, f"bot-{status['revision']}-a2")["run"]["resumeFrom"] == [folder]
    return world


async def hanging_attempt_is_ended_and_the_next_one_resumes(kill: str) -> World:
    world = await begin(kill)
    good, world.outcomes["train"] = world.outcomes["train"], [Outcome(never=True)]
    world.progress = {"state": "training", "step": 7, "totalSteps": 50, "quietSeconds": 1000.0}
    await run(world, lambda s: bool(s.get("attempts") and s["attempts"][0]["outcome"] == "Failed"), kill=kill)
    await run(world, lambda s: (kinds.JOB, "ml", f"bot-{s['revision']}-a1") not in world.api.store, kill=kill)
    world.progress, world.outcomes["train"] = {}, good
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert [(a["outcome"], a.get("failureClass")) for a in status_of(world)["attempts"]] == [("Failed", "stalled"), ("Succeeded", None)]
    return world


async def hanging_fetch_is_ended_and_the_next_one_goes_on(kill: str) -> World:
    world = await begin(kill, deadlines={"fetch": "1h"})
    good = world.outcomes["fetch"]
    world.outcomes["fetch"] = [Outcome(never=True)]
    begun = world.clock.seconds
    await run(world, lambda s: bool(s.get("revisions") and s["revisions"][0].get("tries", {}).get("fetch") == 2), kill=kill)
    assert 3600 < world.clock.seconds - begun < 3700
    assert "has not ended within 1h. Raise deadlines.fetch" in condition(status_of(world), "Ready")["message"]
    await run(world, lambda s: (kinds.JOB, "ml", f"bot-{s['revision']}-fetch") not in world.api.store, kill=kill)
    world.outcomes["fetch"] = good
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert status["revisions"][0]["charges"] == {"error": 1, "outOfMemory": 0, "infrastructure": 0, "disruption": 0}
    assert (kinds.JOB, "ml", f"bot-{status['revision']}-fetch") not in world.api.store
    return world


async def gang_that_does_not_start_is_ended_and_the_next_one_trains(kill: str) -> World:
    world = await begin(kill, deadlines={"start": "30m"})
    good = world.outcomes["train"]
    await run(world, phase("ScoringBaseline"), kill=kill)
    world.outcomes["train"] = [Outcome(never=True)]
    world.broken.add("trainer:1")
    await run(world, lambda s: s.get("reason") == "ImageUnavailable" and s["phase"] == "Training", kill=kill)
    await run(world, lambda s: s["attempts"][0]["outcome"] == "Failed", kill=kill)
    await run(world, lambda s: (kinds.JOB, "ml", f"bot-{s['revision']}-a1") not in world.api.store, kill=kill)
    world.broken.clear()
    world.outcomes["train"] = good
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert [(a["outcome"], a.get("failureClass")) for a in status["attempts"]] == [("Failed", "infrastructure"), ("Succeeded", None)]
    assert "do not start on their machines after 30m: pod bot-" in status["attempts"][0]["message"]
    assert status["revisions"][0]["charges"]["infrastructure"] == 1
    return world


async def bad_data_stops_and_says_which_rows(kill: str) -> World:
    world = await begin(kill)
    error = {"class": "user", "reason": "DataInvalid", "message": "12 of 100 rows are bad: row 3 has no answer", "fix": "Mend them."}
    world.outcomes["prepare"] = [Outcome({"error": error}, code=20)]
    await run(world, kill=kill)
    status = status_of(world)
    ready = condition(status, "Ready")
    assert (status["phase"], ready["reason"], condition(status, "Stalled")["status"]) == ("Failed", "DataInvalid", "True")
    assert "row 3 has no answer" in ready["message"]
    assert "Mend them." in ready["message"]
    assert jobs(world, "baseline") == [], "nothing behind the stage that failed was begun"
    return world


async def edited_prices_and_replicas_try_nothing_again(kill: str) -> World:
    world = await bad_data_stops_and_says_which_rows(kill)
    made = births(world)
    edit(world, economics={"podHourlyPrice": "1"})
    await run(world, worth("serving costs 1,460.00 a month"), kill=kill)
    edit(world, serving={"replicas": 3})  # as an autoscaler does
    await run(world, worth("serving costs 2,190.00 a month"), kill=kill)
    await run(world, kill=kill)
    assert (status_of(world)["phase"], births(world)) == ("Failed", made)
    edit(world, retries={"error": 3})
    await run(world, lambda _: births(world) != made, kill=kill)
    await run(world, kill=kill)
    assert len(jobs(world, "prepare")) == 2, "any other edit does"
    return world


async def superseded_rollout_is_taken_back_first(kill: str) -> World:
    world = await to_live(kill)
    world.outcomes["evaluate"] = [Outcome(scores(0.85, (0.0, 0.1)))]
    edit(world, training=NEW_RATE, rollout={**SPEC["rollout"], "steps": [{"weight": 10, "hold": "1h"}, {"weight": 100}]})
    await run(world, weight(10), kill=kill)
    edit(world, training={"learningRate": "3e-3"})
    await run(world, phase("Training"), kill=kill)
    status = status_of(world)
    assert (status["rollout"]["state"], status["rollout"]["weight"]) == ("Holding", 10), "it goes on while another one trains"
    assert "10 %" in condition(status, "Ready")["message"]
    edit(world, rollout=SPEC["rollout"])
    await run(world, live_with(3), kill=kill)
    await run(world, kill=kill)
    assert arms(world) == [status_of(world)["liveArm"]]
    return world


async def without_serving_the_artifact_is_the_end(kill: str) -> World:
    world = await begin(kill, serving=None)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["phase"], condition(status, "Ready")["status"], arms(world)) == ("Trained", "True", [])
    return world


async def removed_serving_takes_arms_and_routers_away(kill: str) -> World:
    world = await to_live(kill)
    edit(world, serving=None)
    await run(world, kill=kill)
    assert status_of(world)["phase"] == "Trained"
    assert not list(world.api.all(kinds.DEPLOYMENT))
    assert not list(world.api.all(kinds.SERVICE))
    return world


async def good_baseline_needs_no_training_and_serves(kill: str) -> World:
    world = await begin(kill, evaluation={**SPEC["evaluation"], "skipTrainingIfBaselineAtLeast": "0.05"})
    await run(world, phase("NotNeeded"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (condition(status, "Ready")["status"], status["liveRevision"]) == ("True", "base")
    assert condition(status, "Available")["status"] == "True"
    assert jobs(world, "train") == []
    return world


async def more_replicas_change_in_place(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    edit(world, serving={"replicas": 3})
    await run(world, kill=kill)
    deployment = world.api.store[kinds.DEPLOYMENT, "ml", f"bot-{before}"]
    assert (status_of(world)["liveArm"], deployment["spec"]["replicas"]) == (before, 3)
    return world


async def deleted_job_of_a_user_is_made_up_for(kill: str) -> World:
    world = await begin(kill)
    good, world.outcomes["train"] = world.outcomes["train"], [Outcome(never=True)]
    await run(world, lambda s: bool(s.get("attempts") and s["attempts"][0].get("folder")), kill=kill)
    world.api.remove(kinds.JOB, "ml", f"bot-{status_of(world)['revision']}-a1")
    world.outcomes["train"] = good
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert [(a["outcome"], a.get("failureClass")) for a in status["attempts"]] == [("Disrupted", "disruption"), ("Succeeded", None)]
    return world


async def edit_that_is_taken_back_in_training_goes_on_from_the_checkpoints(kill: str) -> World:
    world = await begin(kill)
    good, world.outcomes["train"] = world.outcomes["train"], [Outcome(never=True)]
    await run(world, lambda s: bool(s.get("attempts") and s["attempts"][0].get("folder")), kill=kill)
    first = status_of(world)["revision"]
    edit(world, training=NEW_RATE)
    await run(world, lambda s: any(a["revision"] != first and a.get("folder") for a in s["attempts"]), kill=kill)
    assert len([p for p in world.api.all(kinds.POD) if "-a1-" in p["metadata"]["name"]]) == 2, "one gang at a time"
    edit(world, training=SPEC["training"])
    await run(world, lambda s: len(s["attempts"]) == 3, kill=kill)
    world.outcomes["train"] = good
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert [(a["outcome"], a["revision"] == first, a["number"]) for a in status["attempts"]] == [
        ("Superseded", True, 1), ("Superseded", False, 1), ("Succeeded", True, 2),
    ]  # fmt: skip
    assert status["liveRevision"] == first
    return world


async def suspended_rollout_is_held_and_goes_on(kill: str) -> World:
    world = await to_live(kill)
    edit(world, serving={"replicas": 2, "image": "better:1"})
    await run(world, weight(10), kill=kill)
    edit(world, suspend=True)
    held = world.clock.seconds + 60
    await run(world, lambda _: world.clock.seconds > held, kill=kill)
    status = status_of(world)
    assert (status["phase"], status["rollout"]["weight"]) == ("Suspended", 10)
    assert "held at 10 %" in condition(status, "Ready")["message"]
    assert condition(status, "Available")["status"] == "True"
    edit(world, suspend=False)
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert status_of(world)["rollout"]["state"] == "Promoted"
    return world


async def missing_source_is_named_and_it_goes_on_once_that_is_there(kill: str) -> World:
    world = await begin(kill, data={"train": {"source": "configmap://rows/train.jsonl"}})
    await run(world, lambda s: s.get("reason") == "SourceMissing", kill=kill)
    ready = condition(status_of(world), "Ready")
    assert ready["status"] == "False"
    assert "ConfigMap rows does not exist in namespace ml" in ready["message"]
    world.api.put(kinds.CONFIGMAP, {"metadata": {"name": "rows", "namespace": "ml"}, "data": {"train.jsonl": "{}"}})
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    return world


async def spec_that_cannot_be_read_changes_nothing_but_what_is_said(kill: str) -> World:
    world = await to_live(kill)
    before = children(world)
    edit(world, training={"learningRate": "fast"})
    await run(world, kill=kill)
    status = status_of(world)
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"], condition(status, "Stalled")["status"]) == ("False", "InvalidSpec", "True")
    assert "spec.training.learningRate" in ready["message"]
    assert condition(status, "Available")["status"] == "True"
    assert children(world) == before
    edit(world, training=SPEC["training"])
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert children(world) == before
    return world


async def refused_training_job_keeps_no_rollback_from_the_users(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    slow = {**SPEC["rollout"], "steps": [{"weight": 10, "hold": "1h"}, {"weight": 100}]}
    edit(world, serving={"replicas": 2, "image": "bad:1"}, rollout=slow)
    await run(world, weight(10), kill=kill)
    edit(world, training=NEW_RATE)
    world.api.refuses = lambda kind, obj: kind is kinds.JOB
    await run(world, lambda s: s["reason"] == "Refused", kill=kill)
    assert "exceeded quota: jobs" in condition(status_of(world), "Ready")["message"]
    world.failing = lambda arm: 0.0 if arm == before else 0.5
    await run(world, lambda s: s["rollout"]["state"] == "RolledBack", kill=kill)
    assert {w for _, canary, w in served(world) if canary} <= {0}
    world.api.refuses = nothing
    edit(world, rollout=SPEC["rollout"])
    world.failing = lambda arm: 0.0
    world.outcomes["evaluate"] = [Outcome(scores(0.85, (0.0, 0.1)))]
    await run(world, live_with(2), kill=kill)
    await run(world, kill=kill)
    return world


async def refused_arm_is_taken_back_and_a_mended_one_serves(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    world.api.refuses = lambda kind, obj: kind is kinds.DEPLOYMENT and obj["metadata"]["labels"].get(names.ARM) not in (None, before)
    edit(world, serving={"replicas": 2, "image": "other:1"})
    await run(world, phase("Rejected"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["rollout"]["state"], status["liveArm"], arms(world)) == ("RolledBack", before, [before])
    world.api.refuses = nothing
    edit(world, serving={"replicas": 2, "image": "third:1"})
    await run(world, lambda s: s["phase"] == "Live" and s["liveArm"] != before, kill=kill)
    await run(world, kill=kill)
    return world


async def broken_base_arm_is_made_anew_when_the_spec_is_mended(kill: str) -> World:
    world = await begin(kill, serving={"replicas": 2, "image": "broken:1"})
    world.broken.add("broken:1")
    await run(world, phase("Deploying"), kill=kill)
    with suppress(Stuck):
        await run(world, kill=kill, cycles=120)
    assert "image broken:1 cannot be pulled" in condition(status_of(world), "Ready")["message"]
    edit(world, serving={"replicas": 2, "image": "good:1"})
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert status_of(world)["rollout"]["steps"] == 3, "users were moved step by step"
    return world


async def dead_live_arm_is_replaced_by_an_edit(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    world.broken.add("trainer:1")
    for pod in [p for p in world.api.all(kinds.POD) if p["metadata"]["labels"].get(names.ARM)]:
        world.api.remove(kinds.POD, "ml", pod["metadata"]["name"])
    edit(world, serving={"replicas": 2, "image": "good:1"})
    await run(world, lambda s: s["phase"] == "Live" and s["liveArm"] != before, kill=kill)
    await run(world, kill=kill)
    return world


async def metrics_edited_while_it_bakes_leave_it_live(kill: str) -> World:
    world = await begin(kill, rollout={**SPEC["rollout"], "bake": "60s"})
    await run(world, phase("Baking"), kill=kill)
    world.outcomes["baseline"] = [Outcome(never=True)]
    edit(world, evaluation={"metrics": [{"type": "ExactMatch"}], "maxNewTokens": 7})
    await run(world, phase("Live"), kill=kill)
    before = status_of(world)["liveArm"]
    await run(world, kill=kill)
    edit(world, serving={"replicas": 2, "image": "good:1"})
    await run(world, lambda s: s["phase"] == "Live" and s["liveArm"] != before, kill=kill)
    await run(world, kill=kill)
    return world


async def gate_that_is_raised_while_it_rolls_out_takes_it_back(kill: str) -> World:
    world = await begin(kill, rollout={**SPEC["rollout"], "steps": [{"weight": 10, "hold": "1h"}, {"weight": 100}]})
    await run(world, weight(10), kill=kill)
    edit(world, evaluation={**SPEC["evaluation"], "gate": {"minScore": "0.99"}})
    await run(world, lambda s: s["phase"] == "Rejected" and s["rollout"]["state"] == "RolledBack", kill=kill)
    await run(world, kill=kill)
    assert {w for _, canary, w in served(world) if canary} <= {0}
    edit(world, evaluation=SPEC["evaluation"], rollout=SPEC["rollout"])
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    return world


async def edit_in_the_first_stage_leaves_one_of_it_running(kill: str) -> World:
    world = await begin(kill)
    good, world.outcomes["fetch"] = world.outcomes["fetch"], [Outcome(never=True)]
    await run(world, phase("Fetching"), kill=kill)
    with suppress(Stuck):
        await run(world, kill=kill, cycles=5)
    edit(world, training=NEW_RATE)
    with suppress(Stuck):
        await run(world, kill=kill, cycles=10)
    running = [j for j in world.api.all(kinds.JOB) if j["metadata"]["labels"][names.STAGE] == "fetch"]
    assert [j["metadata"]["labels"][names.REVISION] for j in running] == [status_of(world)["revision"]]
    world.outcomes["fetch"] = good
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    return world


async def edited_prices_change_what_is_said_and_nothing_else(kill: str) -> World:
    world = await begin(kill)
    answering = {"rows": 10, "seconds": 100.0, "inputTokens": 10_000, "outputTokens": 15_000, "concurrency": 16}
    world.outcomes["evaluate"] = [Outcome({**scores(0.8, (0.6, 0.8)), "answering": answering})]
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert "economics" not in status_of(world)
    before, made = children(world), births(world)
    for price, words in (("7.3", "never pays back at this traffic"), ("30", "pays back in 0.5 months")):
        other = {"name": "big-api", "inputPrice": price, "outputPrice": price}
        traffic = {"inputTokensPerMonth": 40_000_000, "outputTokensPerMonth": 60_000_000}
        edit(world, economics={"alternative": other, "traffic": traffic, "podHourlyPrice": "1", "oneTimeCost": "770"})
        await run(world, worth(words), kill=kill)
        await run(world, kill=kill)
        assert status_of(world)["phase"] == "Live"
        assert status_of(world)["economics"]["perMillionTokensAtFullUse"] == "1.11", "it serves what was measured"
    assert (children(world), births(world)) == (before, made)
    return world


async def deleted_finetune_leaves_nothing(kill: str) -> World:
    world = await to_live(kill)
    world.api.remove(FINETUNE, "ml", "bot")
    for _ in range(3):
        world.turn()
    await run(world, kill=kill)
    assert {k.kind for k, _, _ in world.api.store} <= {"StorageClass", "Event", "PersistentVolumeClaim"}
    return world


SLOW = {**SPEC["rollout"], "steps": [{"weight": 10, "hold": "3m"}, {"weight": 100}]}


def ask(world: World, verb: str) -> None:
    """Annotate what is asked of the rollout that runs."""
    edit(world, annotations={names.CONTROL: f"{verb}:{status_of(world)['rollout']['name']}"})


async def paused_rollout_is_held_until_it_is_resumed(kill: str) -> World:
    world = await to_live(kill)
    edit(world, serving={"replicas": 2, "image": "better:1"})
    await run(world, weight(10), kill=kill)
    ask(world, "pause")
    held = world.clock.seconds + 300
    await run(world, lambda _: world.clock.seconds > held, kill=kill)
    status = status_of(world)
    assert (status["phase"], status["reason"], status["rollout"]["weight"]) == ("Paused", "PausedByUser", 10)
    assert "paused by the user at 10 %" in condition(status, "Ready")["message"]
    ask(world, "resume")
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert status_of(world)["rollout"]["state"] == "Promoted"
    return world


async def promoted_rollout_waits_for_no_step_and_bakes(kill: str) -> World:
    world = await to_live(kill)
    edit(world, serving={"replicas": 2, "image": "better:1"}, rollout=SLOW)
    await run(world, weight(10), kill=kill)
    asked = world.clock.seconds
    ask(world, "promote")
    await run(world, phase("Baking"), kill=kill)
    await run(world, phase("Live"), kill=kill)
    assert world.clock.seconds - asked < 120, "the step's time was not waited for"
    await run(world, kill=kill)
    assert status_of(world)["control"]["outcome"] == "Accepted"
    edit(world, serving={"replicas": 2, "image": "third:1"})
    await run(world, weight(10), kill=kill)
    held = world.clock.seconds + 90
    await run(world, lambda _: world.clock.seconds > held, kill=kill)
    assert status_of(world)["rollout"]["weight"] == 10, "the next rollout is not promoted by the same annotation"
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    return world


async def aborted_rollout_is_remembered_and_tried_again_on_request(kill: str) -> World:
    world = await to_live(kill)
    before = status_of(world)["liveArm"]
    edit(world, serving={"replicas": 2, "image": "other:1"}, rollout=SLOW)
    await run(world, weight(10), kill=kill)
    ask(world, "abort")
    await run(world, phase("Rejected"), kill=kill)
    await run(world, kill=kill)
    status = status_of(world)
    assert (status["reason"], status["liveArm"], arms(world)) == ("Aborted", before, [before])
    assert "aborted by the user" in condition(status, "Ready")["message"]
    edit(world, annotations={names.RETRY: "1"}, rollout=SPEC["rollout"])
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert status_of(world)["liveArm"] != before, "the annotation that aborted one rollout leaves the next one alone"
    return world


def exposures(world: World) -> Object:
    """What the routers are told to log; empty: nothing."""
    (routes,) = json.loads(world.api.store[kinds.CONFIGMAP, "ml", "bot-router"]["data"]["rds.json"])["resources"]
    return dict(routes["virtual_hosts"][0]["typed_per_filter_config"][exposure_log.FILTER].get("filter_context") or {})


async def experiment_is_held_and_logged_until_it_is_promoted(kill: str) -> World:
    world = await to_live(kill)
    test = {"experiment": {"weight": 50, "log": {"secretName": "bot-ab"}}}
    edit(world, serving={"replicas": 2, "image": "better:1"}, rollout={**SPEC["rollout"], **test})
    await run(world, lambda s: bool((s.get("rollout") or {}).get("experiment")), kill=kill)
    held = world.clock.seconds + 7 * 86400
    world.clock.seconds += 7 * 86400
    await run(world, lambda _: world.clock.seconds > held + 60, kill=kill)
    status = status_of(world)
    assert (status["phase"], status["rollout"]["weight"], status["rollout"].get("nextStepAt")) == ("RollingOut", 50, None)
    assert (exposures(world)["rollout"], exposures(world)["split"]) == (status["rollout"]["name"], 50)
    ask(world, "promote")
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    found = status_of(world)["rollout"]["experiment"]
    assert found["since"] < found["until"]
    assert exposures(world) == {}
    return world


LIVES: dict[str, Life] = {
    f.__name__.replace("_", " "): f
    for f in (
        first_life, edited_rate_is_trained_and_rolled_out_against_what_is_live, reverted_edit_is_live_again_without_training,
        reverted_revert_does_not_meet_old_weights, failed_gate_rejects_and_what_is_live_stays,
        failed_gate_passes_when_the_gate_is_edited, failing_canary_is_rolled_back_and_remembered,
        canary_whose_answers_begin_late_is_rolled_back,
        rejected_arm_is_tried_again_on_request, server_image_goes_through_the_canary, image_that_never_gets_ready_has_no_user,
        suspended_training_goes_on_from_its_checkpoints, failed_attempts_are_tried_again_within_their_budget,
        out_of_memory_is_tried_again_with_smaller_micro_batches, spent_budget_stops_training_and_a_larger_one_resumes,
        hanging_attempt_is_ended_and_the_next_one_resumes, hanging_fetch_is_ended_and_the_next_one_goes_on,
        gang_that_does_not_start_is_ended_and_the_next_one_trains, bad_data_stops_and_says_which_rows,
        superseded_rollout_is_taken_back_first, without_serving_the_artifact_is_the_end,
        removed_serving_takes_arms_and_routers_away, good_baseline_needs_no_training_and_serves, more_replicas_change_in_place,
        deleted_job_of_a_user_is_made_up_for, edit_that_is_taken_back_in_training_goes_on_from_the_checkpoints,
        suspended_rollout_is_held_and_goes_on, missing_source_is_named_and_it_goes_on_once_that_is_there,
        spec_that_cannot_be_read_changes_nothing_but_what_is_said, refused_training_job_keeps_no_rollback_from_the_users,
        refused_arm_is_taken_back_and_a_mended_one_serves, broken_base_arm_is_made_anew_when_the_spec_is_mended,
        dead_live_arm_is_replaced_by_an_edit, metrics_edited_while_it_bakes_leave_it_live,
        gate_that_is_raised_while_it_rolls_out_takes_it_back, edit_in_the_first_stage_leaves_one_of_it_running,
        edited_prices_change_what_is_said_and_nothing_else, edited_prices_and_replicas_try_nothing_again,
        deleted_finetune_leaves_nothing, paused_rollout_is_held_until_it_is_resumed, promoted_rollout_waits_for_no_step_and_bakes,
        aborted_rollout_is_remembered_and_tried_again_on_request, experiment_is_held_and_logged_until_it_is_promoted,
    )
}  # fmt: skip


async def test_what_a_revision_is_is_kept_once_more_than_its_model_follows_from_it() -> None:
    """An object and a write less for each FineTune that waits for its model."""
    world = World(outcomes=good_outcomes())
    world.api.put(FINETUNE, make_finetune())
    await run(world, phase("Fetching"))
    edit(world, training=NEW_RATE)
    await run(world, lambda s: len(s["revisions"]) == 2)
    edit(world, training=SPEC["training"])
    await run(world, lambda s: s["revision"] == s["revisions"][0]["name"])
    assert not list(world.api.all(kinds.CONTROLLER_REVISION)), "the edit was taken back: nothing was needed for that"
    await run(world, phase("Preparing"))
    [kept] = world.api.all(kinds.CONTROLLER_REVISION)
    assert kept["metadata"]["labels"][names.REVISION] == status_of(world)["revision"]
    assert float(kept["data"]["fields"]["training"]["learningRate"]) == float(SPEC["training"]["learningRate"])


async def test_a_router_that_goes_hears_of_a_rollback_but_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await to_live("never")
    before = status_of(world)["liveArm"]
    edit(world, serving={"replicas": 2, "image": "bad:1"})
    await run(world, lambda status: (status.get("rollout") or {}).get("state") == "Holding")
    stays = next(p for p in world.api.all(kinds.POD) if p["metadata"]["labels"].get(names.COMPONENT) == "router")
    leaves = {**stays["metadata"], "name": "bot-router-9", "uid": "leaves", "ownerReferences": [], "deletionTimestamp": world.clock.stamp()}
    world.api.put(kinds.POD, {**stays, "metadata": leaves, "status": {**stays["status"], "podIP": "bot-router-9"}})
    world.mounts["bot-router-9"] = world.mounts[stays["metadata"]["name"]]
    monkeypatch.setattr(world, "_goes_on", lambda pod: True)
    version, canary, weight = world.served(stays["metadata"]["name"])
    world.runtime["bot-router-9"][version] = weight
    assert (weight, canary) == (10, status_of(world)["rollout"]["arm"])
    world.failing = lambda arm: 0.0 if arm == before else 0.5
    await run(world, phase("Rejected"))
    assert world.runtime["bot-router-9"][version] == 0
    assert status_of(world)["rollout"]["state"] == "RolledBack"
    arm = names.arm("bot", canary)
    later = world.clock.seconds + 120
    await run(world, lambda _: world.clock.seconds > later)
    assert (kinds.DEPLOYMENT, "ml", arm) in world.api.store, "the router that goes has it in its document, and users"
    world.api.remove(kinds.POD, "ml", "bot-router-9")
    await run(world, lambda _: (kinds.DEPLOYMENT, "ml", arm) not in world.api.store)


def children(world: World) -> dict[tuple[str, str], Any]:
    """Everything but what carries times: pods, Events and the FineTune itself."""
    return {
        (kind.kind, name): (obj.get("spec"), obj.get("data"), obj["metadata"].get("labels"))
        for (kind, _, name), obj in world.api.store.items()
        if kind not in (FINETUNE, kinds.POD, kinds.EVENT)
    }


def births(world: World) -> dict[tuple[str, str], int]:
    return {k: n for k, n in world.api.births.items() if n and k[0] != "Event"}


@pytest.mark.parametrize("name", LIVES)
async def test_a_killed_operator_ends_where_an_undisturbed_one_does(name: str) -> None:
    await ends_alike(await LIVES[name]("never"), await LIVES[name]("every"))


async def ends_alike(undisturbed: World, killed: World) -> None:
    """Both have the same children, each made once, and rest."""
    assert children(killed) == children(undisturbed)
    assert births(killed) == births(undisturbed), "no child was made twice, and none was left out"
    for world in (undisturbed, killed):
        assert world.lacked == [], "nothing is removed that a stage or an arm needs"
        world.api.writes.clear()
        for days in (0, 1):
            world.clock.seconds += days * 86400
            assert await Operator(world).cycle() is None, "what is settled asks for no further cycle"
            assert world.api.writes == [], "a restart writes nothing for what is settled"


async def test_one_kill_at_any_write_changes_nothing() -> None:
    undisturbed = await to_live("never")
    for write in range(0, len(undisturbed.api.writes), 4):
        killed = await to_live(f"at:{write}")
        assert (children(killed), births(killed)) == (children(undisturbed), births(undisturbed)), f"killed after write {write}"


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda kind: kind.kind)
async def test_a_watch_that_is_behind_the_others_changes_nothing(kind: Kind) -> None:
    undisturbed, world = await to_live("never"), await begin("never")
    await run(world, phase("Live"), start=Operator(world, late={kind: 3}))
    await run(world)
    assert (children(world), births(world)) == (children(undisturbed), births(undisturbed))
    assert [a["outcome"] for a in status_of(world)["attempts"]] == ["Succeeded"]


async def test_a_failure_keeps_its_cause_though_the_watch_of_pods_is_behind() -> None:
    world = await begin("never")
    world.outcomes["train"] = [Outcome({"error": {"reason": "OutOfMemory", "message": "too big"}}, code=21), *world.outcomes["train"]]
    await run(world, phase("Live"), start=Operator(world, late={kinds.POD: 3}))
    attempts = status_of(world)["attempts"]
    assert [(a["outcome"], a.get("failureClass"), a.get("message")) for a in attempts] == [
        ("Failed", "outOfMemory", "too big"),
        ("Succeeded", None, None),
    ]


async def test_a_rollout_that_is_held_long_after_its_step_is_not_written_at_every_look() -> None:
    world = await begin("never")
    operator = await run(world, weight(10))
    edit(world, suspend=True)
    for _ in range(120):
        await operator.cycle()
        world.turn()
        world.clock.seconds += 3.0
    world.api.writes.clear()
    for _ in range(40):
        await operator.cycle()
        world.turn()
        world.clock.seconds += 3.0
    assert world.api.writes == []


async def test_a_finetune_whose_deletion_is_told_after_its_childrens_gets_no_child_again() -> None:
    world = await to_live("never")
    operator = Operator(world, late={FINETUNE: 4})
    for _ in range(6):
        await operator.cycle()
    before = births(world)
    world.api.remove(FINETUNE, "ml", "bot")
    for _ in range(3):
        world.turn()
    for _ in range(3):
        await operator.cycle()
    assert births(world) == before


async def test_a_status_that_only_lacks_a_default_is_not_written_for_that() -> None:
    """As an older operator left it: else a new one would write every FineTune's at its start."""
    world = await to_live("never")
    revision = world.api.store[FINETUNE, "ml", "bot"]["status"]["revisions"][0]
    assert set(revision.pop("charges").values()) == {0}
    known = copy.deepcopy(status_of(world))
    world.api.writes.clear()
    await Operator(world).cycle()
    assert (world.api.writes, status_of(world)) == ([], known)
