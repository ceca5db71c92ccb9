"""Lives in which retention removes something: undisturbed, and with the operator killed after every single write."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from finetune_operator import kinds

from tests.unit.operator.helpers import SPEC, condition, edit, good_outcomes, scores, status_of
from tests.unit.operator.test_life import Life, begin, ends_alike, jobs, nothing, phase, remembered, run_config, to_live, weight
from tests.unit.operator.world import Operator, Outcome, Stuck, World, run

KEEP_ONE = {"revisions": 1}
RATES = ("2e-4", "1e-3", "2e-3")
BETTER = [Outcome(scores(0.85, (0.0, 0.1)))]
SLOW = {**SPEC["rollout"], "steps": [{"weight": 10, "hold": "1h"}, {"weight": 100}]}
NEVER = [Outcome(never=True)]
BROKEN = Outcome({"error": {"reason": "VolumeReadOnly", "message": "the volume is read-only", "fix": ""}}, code=24)


def live_with_another(world: World) -> Any:
    """Live with another revision than now."""
    before = status_of(world).get("revision")
    return lambda s: s.get("phase") == "Live" and s["revision"] == s["liveRevision"] != before


def names_of(world: World) -> list[str]:
    """The revisions in the order in which they were made."""
    return [r["name"] for r in sorted(status_of(world)["revisions"], key=lambda r: str(r["created"]))]


def on_the_volume(world: World) -> set[str]:
    """Revisions of which anything is there."""
    return {folder.split("/")[1] for folder in world.volume}


def cleaning_jobs(world: World) -> dict[str, int]:
    return {n: count for (kind, n), count in world.api.births.items() if kind == "Job" and count and n.startswith("bot-clean-")}


def events(world: World, reason: str) -> list[str]:
    return [e["message"] for e in world.api.all(kinds.EVENT) if e["reason"] == reason]


@remembered
async def two_live(kill: str) -> World:
    """Two revisions were live, one after the other, and one artifact is to be kept."""
    world = await begin(kill, retention=KEEP_ONE)
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    world.outcomes["evaluate"] = BETTER
    await edited(world, RATES[1], kill)
    return world


async def edited(world: World, rate: str, kill: str) -> None:
    goal = live_with_another(world)
    edit(world, training={"learningRate": rate})
    await run(world, goal, kill=kill)
    await run(world, kill=kill)


async def checkpoints_go_once_the_artifact_is_live(kill: str) -> World:
    world = await to_live(kill)
    (name,) = names_of(world)
    assert {folder.split("/", 2)[2].partition("/")[2] for folder in world.volume if folder.startswith("revisions")} == {"artifact"}
    assert cleaning_jobs(world) == {"bot-clean-1": 1}
    assert run_config(world, "bot-clean-1")["clean"] == {
        "path": "/work", "folders": [], "checkpointsOf": [f"revisions/{name}"], "keep": 0,
    }  # fmt: skip
    assert status_of(world)["cleaning"]["number"] == 1
    assert events(world, "Cleaned") == [f"removed from the work volume: checkpoints of revision {name}; 3.0 MiB are free again"] * (
        kill == "never"
    )
    return world


async def the_previous_artifact_is_kept_whatever_the_number(kill: str) -> World:
    world = await two_live(kill)
    assert on_the_volume(world) == set(names_of(world))
    before = status_of(world)
    assert before["previousRevision"] == names_of(world)[0]
    trained = jobs(world, "train")
    await edited(world, RATES[0], kill)
    assert jobs(world, "train") == trained, "what was live before is live again without training"
    return world


@remembered
async def older_revisions_are_removed(kill: str) -> World:
    world = await two_live(kill)
    first = names_of(world)[0]
    await edited(world, RATES[2], kill)
    assert first not in on_the_volume(world)
    assert on_the_volume(world) == set(names_of(world)) - {first}
    entry = next(r for r in status_of(world)["revisions"] if r["name"] == first)
    assert "removed" in entry
    assert "artifact" not in entry
    return world


async def a_revert_to_what_was_removed_trains_it_again(kill: str) -> World:
    world = await older_revisions_are_removed(kill)
    first = names_of(world)[0]
    old_arm = next(a["name"] for a in status_of(world)["arms"] if a["revision"] == first)
    await edited(world, RATES[0], kill)
    status = status_of(world)
    assert status["liveRevision"] == first
    assert status["liveArm"] != old_arm, "the template that is kept under the old name serves an artifact that is gone"
    assert {f"bot-{first}-{tail}" for tail in ("a2", "prepare-2", "baseline-2", "evaluate-2")} <= {
        n for (kind, n), count in world.api.births.items() if kind == "Job" and count
    }
    assert first in on_the_volume(world)
    assert names_of(world)[-1] == first, "it is the newest again"
    return world


async def a_revert_while_its_revision_is_removed_calls_that_off(kill: str) -> World:
    world = await two_live(kill)
    first, goal = names_of(world)[0], live_with_another(world)
    world.outcomes["clean"] = NEVER
    edit(world, training={"learningRate": RATES[2]})
    await run(world, goal, kill=kill)
    await run(world, kill=kill)
    cleaning = status_of(world)["cleaning"]
    assert cleaning["revisions"] == [first]
    assert f"data/{first}" in world.volume, "its pod is half way"
    assert not [f for f in world.volume if f.startswith(f"revisions/{first}")]
    edit(world, training={"learningRate": RATES[0]})
    said: list[str] = []

    def prepares_again(status: Mapping[str, Any]) -> bool:
        removing = [p for p in world.api.all(kinds.POD) if p["metadata"]["name"].startswith("bot-clean") and "podIP" in p["status"]]
        begun = (kinds.JOB, "ml", f"bot-{first}-prepare-2") in world.api.store
        assert not (removing and begun), "nothing begins while a pod can remove it"
        said.append(condition(status, "Ready")["message"])
        return begun

    await run(world, prepares_again, kill=kill)
    assert any("begins anew once the pod that did so has ended" in message for message in said)
    assert (kinds.JOB, "ml", f"bot-clean-{cleaning['number']}") not in world.api.store
    world.outcomes.update({**good_outcomes(), "evaluate": BETTER})
    await run(world, lambda s: s["phase"] == "Live" and s["liveRevision"] == first, kill=kill)
    await run(world, kill=kill)
    assert set(cleaning_jobs(world).values()) == {1}
    return world


async def a_failing_job_harms_nothing_and_is_tried_again(kill: str) -> World:
    world = await begin(kill)
    world.outcomes["clean"] = [BROKEN, BROKEN, *world.outcomes["clean"]]
    await run(world, phase("Live"), kill=kill)
    seen: list[str] = []
    await run(world, lambda s: bool(seen.append(s["phase"])) or s.get("cleaning", {}).get("checkpoints") == [], kill=kill)
    await run(world, kill=kill)
    assert set(seen) == {"Live"}
    assert cleaning_jobs(world) == {"bot-clean-1": 1, "bot-clean-2": 1, "bot-clean-3": 1}
    if kill == "never":
        assert [text.partition(" could")[2].partition(";")[0] for text in events(world, "CleaningFailed")] == [
            " not be removed from the work volume: the volume is read-only"
        ] * 2
    assert world.clock.seconds > 60 + 240, "later each time"
    return world


async def nothing_is_removed_while_a_rollout_is_suspended(kill: str) -> World:
    world = await two_live(kill)
    made, first = cleaning_jobs(world), names_of(world)[0]
    edit(world, training={"learningRate": RATES[2]}, rollout=SLOW)
    await run(world, weight(10), kill=kill)
    edit(world, suspend=True)
    with suppress(Stuck):
        await run(world, kill=kill, cycles=30)
    assert (status_of(world)["phase"], cleaning_jobs(world)) == ("Suspended", made)
    edit(world, suspend=False)
    with suppress(Stuck):
        await run(world, kill=kill, cycles=30)
    assert (status_of(world)["phase"], cleaning_jobs(world)) == ("RollingOut", made)
    assert first in on_the_volume(world)
    goal = phase("Live")
    edit(world, rollout=SPEC["rollout"])
    world.clock.seconds += 3600
    await run(world, goal, kill=kill)
    await run(world, kill=kill)
    assert first not in on_the_volume(world)
    return world


def trains_another(revision: str) -> Any:
    """The gang of another revision than this one runs."""
    return lambda s: revision != s["revision"] == s["attempts"][-1]["revision"] and "folder" in s["attempts"][-1]


@remembered
async def a_revision_that_is_forgotten_is_removed(kill: str) -> World:
    world = await to_live(kill)
    world.outcomes.update(evaluate=BETTER, train=NEVER)
    forgotten = ""
    for step in range(1, 11):
        before = status_of(world)["revision"]
        edit(world, training={"learningRate": f"{step}e-2"})
        await run(world, trains_another(before), kill=kill)
        forgotten = before if step == 2 else forgotten
    assert status_of(world)["cleaning"]["forgotten"] == [forgotten]
    assert f"data/{forgotten}" in world.volume
    world.outcomes.update({**good_outcomes(), "evaluate": BETTER})
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert forgotten not in on_the_volume(world)
    assert len(status_of(world)["revisions"]) == 10
    return world


async def a_revert_to_what_was_forgotten_begins_anew(kill: str) -> World:
    world = await a_revision_that_is_forgotten_is_removed(kill)
    forgotten = next(j for j in jobs(world, "prepare") if j[4:12] not in {r["name"] for r in status_of(world)["revisions"]})[4:12]
    await edited(world, "1e-2", kill)
    assert status_of(world)["liveRevision"] == forgotten
    assert {f"bot-{forgotten}-a2", f"bot-{forgotten}-prepare-2"} <= {n for (kind, n), count in world.api.births.items() if count}
    return world


async def a_larger_number_of_checkpoints_is_kept(kill: str) -> World:
    world = await begin(kill, retention={"checkpoints": 1})
    world.outcomes["train"] = [BROKEN, *world.outcomes["train"]]
    await run(world, phase("Live"), kill=kill)
    await run(world, kill=kill)
    assert [run_config(world, job)["clean"]["keep"] for job in cleaning_jobs(world)] == [1]
    edit(world, retention={"checkpoints": 0})
    await run(world, lambda s: s["cleaning"]["number"] == 2, kill=kill)
    await run(world, kill=kill)
    assert [run_config(world, job)["clean"]["keep"] for job in sorted(cleaning_jobs(world))] == [1, 0]
    return world


LIVES: dict[str, Life] = {
    f.__name__.replace("_", " "): f
    for f in (
        checkpoints_go_once_the_artifact_is_live, the_previous_artifact_is_kept_whatever_the_number, older_revisions_are_removed,
        a_revert_to_what_was_removed_trains_it_again, a_revert_while_its_revision_is_removed_calls_that_off,
        a_failing_job_harms_nothing_and_is_tried_again, nothing_is_removed_while_a_rollout_is_suspended,
        a_revision_that_is_forgotten_is_removed, a_revert_to_what_was_forgotten_begins_anew, a_larger_number_of_checkpoints_is_kept,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", LIVES)
async def test_a_killed_operator_ends_where_an_undisturbed_one_does(name: str) -> None:
    await ends_alike(await LIVES[name]("never"), await LIVES[name]("every"))


async def test_one_kill_at_any_write_of_a_revert_that_meets_the_removal_changes_nothing() -> None:
    life = a_revert_while_its_revision_is_removed_calls_that_off
    undisturbed = await life("never")
    for write in range(0, 40, 3):
        await ends_alike(undisturbed, await life(f"at:{write}"))


async def test_a_refused_job_is_told_and_changes_nothing_else() -> None:
    world = await begin("never")
    world.api.refuses = lambda kind, obj: kind is kinds.JOB and obj["metadata"]["name"].startswith("bot-clean")
    operator = await run(world, phase("Live"))
    before = {k: v for k, v in status_of(world).items() if k != "cleaning"}
    for _ in range(5):
        requeue = await operator.cycle()
        world.turn()
    after = {k: v for k, v in status_of(world).items() if k != "cleaning"}
    assert (after["phase"], after["conditions"]) == (before["phase"], before["conditions"])
    assert requeue == 3600.0
    assert events(world, "CleaningFailed") == ["the API server refused a child: exceeded quota: jobs"]
    world.api.refuses = nothing
    await Operator(world).cycle()
    assert cleaning_jobs(world) == {"bot-clean-1": 1}
