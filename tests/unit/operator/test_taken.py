"""Names of children that are somebody else's: told with the fix, and nothing is made that would mount, scale or lead users to theirs."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import kinds, names
from finetune_operator.kinds import FINETUNE, Kind

from tests.unit.operator.helpers import condition, edit, good_outcomes, make_finetune, status_of
from tests.unit.operator.world import Operator, World, run

SERVING = {
    "expose": {"ingress": {"host": "bot.example.com", "className": "nginx"}},
    "resources": {"requests": {"cpu": "1"}},
    "autoscaling": {"minReplicas": 1, "maxReplicas": 3},
}
DEADLINES = 40  # cycles, of a second or more: longer than rollout.progressDeadline

# What is taken → what may not be made beside it. ARM: the tuned model's, BASE: the base model's.
TAKEN: dict[str, tuple[Kind, str, list[tuple[Kind, str]]]] = {
    "the routers' ConfigMap": (kinds.CONFIGMAP, "bot-router", [(kinds.DEPLOYMENT, "bot-router")]),
    "the base arm's Service": (
        kinds.SERVICE, "BASE",
        [(kinds.DEPLOYMENT, "BASE"), (kinds.HPA, "BASE"), (kinds.CONFIGMAP, "bot-router"), (kinds.DEPLOYMENT, "bot-router")],
    ),
    "the new arm's Service": (kinds.SERVICE, "ARM", [(kinds.DEPLOYMENT, "ARM"), (kinds.HPA, "ARM")]),
    "the new arm's Deployment": (kinds.DEPLOYMENT, "ARM", [(kinds.HPA, "ARM")]),
    "the new arm's template": (kinds.CONTROLLER_REVISION, "ARM", [(kinds.DEPLOYMENT, "ARM"), (kinds.HPA, "ARM")]),
    "the users' Service": (kinds.SERVICE, "bot", [(kinds.INGRESS, "bot")]),
    "a gang's Service": (kinds.SERVICE, "GANG", [(kinds.JOB, "GANG")]),
    "the work volume": (kinds.PVC, "bot-work", [(kinds.JOB, "FETCH")]),
}  # fmt: skip


async def usual_names() -> dict[str, str]:
    """What a life that nobody disturbs calls its children."""
    world = World(outcomes=good_outcomes())
    world.api.put(FINETUNE, make_finetune(serving=SERVING))
    await run(world, lambda s: s.get("phase") == "Live")
    status = status_of(world)
    arms, revision = {a["revision"]: names.arm("bot", a["name"]) for a in status["arms"]}, status["revision"]
    attempt, fetch = names.attempt_job("bot", revision, 1), names.stage_job("bot", revision, "fetch")
    return {"BASE": arms["base"], "ARM": arms[revision], "GANG": attempt, "FETCH": fetch}


def made(world: World) -> set[tuple[str, str]]:
    """Kind and name of all that the operator ever made."""
    return {child for child, count in world.api.births.items() if count}


def theirs(kind: Kind, name: str, **meta: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {}}, "spec": {"containers": [{"image": "theirs"}], "volumes": []}}
    spec = {"replicas": 1, "template": template} if kind is kinds.DEPLOYMENT else {}
    return {"metadata": {"name": name, "namespace": "ml", **meta}, "spec": spec, "data": {}}


# A work volume with the FineTune's labels was retained, and is used again.
CASES = [(case, labelled) for case, (kind, *_) in TAKEN.items() for labelled in (False, True) if not (labelled and kind is kinds.PVC)]


@pytest.mark.parametrize(("case", "labelled"), CASES)
async def test_nothing_is_made_of_what_is_somebody_elses_and_it_goes_on_once_the_name_is_free(case: str, labelled: bool) -> None:
    kind, taken, waits = TAKEN[case]
    known = await usual_names()
    name = known.get(taken, taken)
    world = World(outcomes=good_outcomes())
    meta = {"labels": names.labels("bot", "router")} if labelled else {"labels": {}}
    before = world.api.put(kind, theirs(kind, name, **meta))
    world.api.put(FINETUNE, make_finetune(serving=SERVING))
    operator = await run(world, lambda s: s.get("reason") == "NameTaken")
    for _ in range(DEADLINES):
        await operator.cycle()
        world.turn()
        world.clock.seconds += 1
    status, born = status_of(world), made(world)
    assert status["reason"] == "NameTaken"
    message = condition(status, "Ready")["message"]
    assert f"{kind.kind} {name} exists already and is not this FineTune's" in message
    assert ("it has its labels, and no controller reference to it" in message) == labelled
    assert "delete or rename it, or rename the FineTune" in message
    left = world.api.store[kind, "ml", name]
    assert left == before
    assert [(k.kind, n) for k, n in waits if (k.kind, known.get(n, n)) in born] == []

    operator = await run(world, lambda s: s.get("reason") == "NameTaken", start=Operator(world))
    assert status_of(world)["phase"] not in ("Rejected", "Failed"), "another operator does not blame an image either"
    world.api.remove(kind, "ml", name)
    await run(world, lambda s: s.get("phase") == "Live" and s.get("reason") == "Live" and s["liveRevision"] == s["revision"])
    assert {(k.kind, known.get(n, n)) for k, n in waits} <= made(world)


async def test_a_name_that_is_taken_keeps_nobody_from_what_serves() -> None:
    """A new arm whose Service is theirs waits; the routers, a replica more of the present arm and a way in go on."""
    world = World(outcomes=good_outcomes())
    world.api.put(FINETUNE, make_finetune())
    await run(world, lambda s: s.get("phase") == "Live")
    live = names.arm("bot", status_of(world)["liveArm"])
    probe = world.clone()
    edit(probe, serving={"replicas": 3, "image": "other:1"})
    await run(probe, lambda s: s["rollout"]["state"] == "Deploying")
    name = names.arm("bot", status_of(probe)["rollout"]["arm"])
    world.api.put(kinds.SERVICE, theirs(kinds.SERVICE, name))
    world.api.remove(kinds.DEPLOYMENT, "ml", "bot-router")
    edit(world, serving={"replicas": 3, "image": "other:1"})
    operator = await run(world, lambda s: s.get("reason") == "NameTaken")
    for _ in range(3):
        await operator.cycle()
        world.turn()
    assert (kinds.DEPLOYMENT, "ml", "bot-router") in world.api.store
    assert world.api.store[kinds.DEPLOYMENT, "ml", live]["spec"]["replicas"] == 3
    assert (kinds.DEPLOYMENT, "ml", name) not in world.api.store
    assert condition(status_of(world), "Available")["status"] == "True"


async def test_a_job_with_our_labels_that_we_did_not_make_says_nothing_of_a_stage() -> None:
    known, world = await usual_names(), World(outcomes=good_outcomes())
    job = theirs(kinds.JOB, known["FETCH"], labels=names.labels("bot", "stage"))
    complete = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    world.api.put(kinds.JOB, {**job, **complete})
    world.api.put(FINETUNE, make_finetune(serving=SERVING))
    await run(world, lambda s: s.get("reason") == "NameTaken")
    assert (status_of(world)["phase"], {kind for kind, _ in made(world)}) == ("Fetching", {"PersistentVolumeClaim"})
    world.api.remove(kinds.JOB, "ml", known["FETCH"])
    await run(world, lambda s: s.get("phase") == "Preparing")
