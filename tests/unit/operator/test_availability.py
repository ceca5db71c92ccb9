"""What keeps routers and servers up: budgets, pods that keep apart, and replicas that follow the load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from finetune_operator import autoscalers, kinds, names
from finetune_operator import conditions as c
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Rollout, Status
from finetune_operator.apply import Children
from finetune_operator.build import arm, router
from finetune_operator.build.arm import Served
from finetune_operator.build.pods import NO_DEVICES, Images, Manifest, Owner
from finetune_operator.cache import Cache
from finetune_operator.cluster import Cluster
from finetune_operator.decide.capacity import capacity_of, with_capacity
from finetune_operator.decide.rollout import states
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.served import used_arms
from finetune_operator.kinds import Kind
from finetune_operator.observed import ArmHealth
from finetune_operator.traffic import Backend, Structure

from tests.unit.operator.helpers import BY_HEADER, NOW, condition, edit, good_outcomes, make_finetune, make_observed, make_spec, status_of
from tests.unit.operator.test_life import arms, live_with
from tests.unit.operator.test_rollout import FINE, PLAN, READY, at, holding, scene
from tests.unit.operator.test_rollout import router as serving
from tests.unit.operator.world import ApiServer, HandClock, World, run

OWNER = Owner("ml", "bot", "uid-bot")
SHARED = {"storage": {"accessMode": "ReadWriteMany"}}


def arm_pod(**changes: Any) -> Manifest:
    spec = Spec.model_validate(make_spec(**changes))
    made = arm.template(OWNER, spec, Served("/work/models/m", None, "r1", "bot"), Images("trainer:1", "router:1"), NO_DEVICES)
    return dict(made["spec"])


def router_template() -> Manifest:
    structure = Structure(Backend("aaa11111", "bot-aaa11111", "r1"), None, "salt", BY_HEADER)
    made = dict(router.children(OWNER, Spec.model_validate(make_spec()), "envoy:1", structure, 0, {}))
    return dict(made[kinds.DEPLOYMENT]["spec"]["template"])


@pytest.mark.parametrize(
    ("labels", "pod"),
    [
        (router_template()["metadata"]["labels"], router_template()["spec"]),
        (
            arm.deployment(OWNER, "aaa11111", "r1", {"metadata": {}, "spec": {}}, 2)["spec"]["template"]["metadata"]["labels"],
            arm_pod(**SHARED),
        ),
    ],
    ids=["routers", "an arm on a volume of many nodes"],
)
def test_pods_of_one_template_keep_to_different_zones_and_nodes_where_there_is_room(labels: dict[str, str], pod: Manifest) -> None:
    zones, nodes = pod["topologySpreadConstraints"]
    assert [zones["topologyKey"], nodes["topologyKey"]] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for constraint in (zones, nodes):
        assert (constraint["whenUnsatisfiable"], constraint["maxSkew"]) == ("ScheduleAnyway", 1)
        assert constraint["labelSelector"]["matchLabels"].items() <= labels.items(), "its own pods are counted"
        assert constraint["matchLabelKeys"] == ["pod-template-hash"], "and neither the other arm's, nor those that are replaced"


def test_servers_that_must_share_a_node_are_not_spread() -> None:
    assert "topologySpreadConstraints" not in arm_pod(storage={"accessMode": "ReadWriteOnce"})
    assert "topologySpreadConstraints" not in arm_pod()


def test_a_budget_selects_its_arm_alone_and_lets_one_pod_go_at_a_time() -> None:
    made, labels = arm.disruption_budget(OWNER, "aaa11111"), {names.NAME: "bot", names.ARM: "aaa11111"}
    assert made["metadata"]["name"] == "bot-aaa11111"
    assert made["metadata"]["ownerReferences"] == [OWNER.reference()]
    assert made["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    assert (
        labels.items()
        <= arm.deployment(OWNER, "aaa11111", "r1", {"metadata": {}, "spec": {}}, 2)["spec"]["selector"]["matchLabels"].items()
    )


def budgets(world: World) -> set[str]:
    return {b["metadata"]["name"] for b in world.api.all(kinds.PDB)}


@pytest.mark.parametrize("kill", ["never", "every"])
async def test_each_arm_of_several_pods_has_a_budget_while_it_serves(kill: str) -> None:
    world = World(outcomes=good_outcomes())
    world.api.put(kinds.FINETUNE, make_finetune())

    def baking(status: Any) -> bool:
        return status.get("phase") == "Baking"

    await run(world, baking, kill=kill)
    assert len(arms(world)) == 2
    assert budgets(world) >= {f"bot-{name}" for name in arms(world)}
    await run(world, live_with(1), kill=kill)
    await run(world)
    assert budgets(world) == {"bot-router", f"bot-{status_of(world)['liveArm']}"}, "the old arm's is gone with it"

    edit(world, serving={"replicas": 1})
    await run(world)
    assert budgets(world) == {"bot-router"}
    edit(world, serving={"replicas": 3})
    await run(world)
    assert budgets(world) == {"bot-router", f"bot-{status_of(world)['liveArm']}"}
    edit(world, serving=None)
    await run(world)
    assert budgets(world) == set()


CPU = {"resources": {"requests": {"cpu": "2"}}}
SCALED = {"serving": {**CPU, "autoscaling": {"minReplicas": 2, "maxReplicas": 8}}}
STEPS = {"steps": [{"weight": 50, "hold": "4s"}, {"weight": 100}], "bake": "4s", "progressDeadline": "90s", "guards": {"minRequests": 0}}
NEW_RATE = {"learningRate": "1e-3"}


def scaler(**autoscaling: Any) -> Manifest:
    spec = Spec.model_validate(make_spec(serving={**CPU, "autoscaling": {"maxReplicas": 8, **autoscaling}}))
    assert spec.serving is not None
    assert spec.serving.autoscaling is not None
    return dict(arm.autoscaler(OWNER, "aaa11111", spec.serving.autoscaling, 3)["spec"])


def test_an_autoscaler_follows_the_cpu_or_a_metric_of_the_pods() -> None:
    assert scaler() == {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot-aaa11111"},
        "minReplicas": 3, "maxReplicas": 8,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
    }  # fmt: skip
    assert scaler(targetCPUUtilizationPercentage=50)["metrics"][0]["resource"]["target"]["averageUtilization"] == 50
    (metric,) = scaler(metric={"name": "vllm_requests_waiting", "averageValue": "4"})["metrics"]
    assert metric == {
        "type": "Pods", "pods": {"metric": {"name": "vllm_requests_waiting"}, "target": {"type": "AverageValue", "averageValue": "4"}},
    }  # fmt: skip


def replicas(world: World) -> dict[str, int]:
    found = {d["metadata"]["labels"].get(names.ARM): d["spec"]["replicas"] for d in world.api.all(kinds.DEPLOYMENT)}
    return {name: count for name, count in found.items() if name}


def least(world: World) -> dict[str, int]:
    return {h["metadata"]["labels"][names.ARM]: h["spec"]["minReplicas"] for h in world.api.all(kinds.HPA)}


def load(world: World, name: str, count: int) -> None:
    """The autoscaler finds that the load needs so many."""
    found = world.api.store[kinds.DEPLOYMENT, "ml", f"bot-{name}"]
    world.api.change(kinds.DEPLOYMENT, found, {**found, "spec": {**found["spec"], "replicas": count}})


def rolling(weight: int, arms_known: int = 3) -> Callable[[Any], bool]:
    return lambda s: (s.get("rollout") or {}).get("weight") == weight and len(s["arms"]) == arms_known


async def live(**changes: Any) -> World:
    world = World(outcomes=good_outcomes())
    world.api.put(kinds.FINETUNE, make_finetune(rollout=STEPS, **changes))
    await run(world, live_with(1))
    await run(world)
    return world


async def test_what_an_autoscaler_sets_is_left_alone() -> None:
    world = await live(**SCALED)
    (name,) = arms(world)
    assert (replicas(world), least(world)) == ({name: 2}, {name: 2})
    load(world, name, 5)
    before = len(world.api.writes)
    await run(world)
    assert replicas(world) == {name: 5}
    assert [w for w in world.api.writes[before:] if w[1] == "Deployment"] == []
    assert budgets(world) == {"bot-router", f"bot-{name}"}


@pytest.mark.parametrize("kill", ["never", "every"])
async def test_while_users_move_no_arm_has_fewer_pods_than_the_load_was_seen_to_need(kill: str) -> None:
    world = await live(**SCALED)
    (old,) = arms(world)
    load(world, old, 5)
    edit(world, training=NEW_RATE)
    operator = await run(world, rolling(50), kill=kill)
    await operator.cycle()  # where the last one was killed as it had written the weight
    (new,) = set(arms(world)) - {old}
    assert status_of(world)["rollout"]["capacity"] == 5
    assert (replicas(world), least(world)) == ({old: 5, new: 5}, {old: 5, new: 5})
    load(world, old, 7)  # more users come
    await run(world, rolling(100), kill=kill, start=operator)
    assert (replicas(world), least(world)) == ({old: 7, new: 7}, {old: 7, new: 7}), "the old one could take them back"
    await run(world, live_with(2), kill=kill)
    await run(world)
    assert (replicas(world), least(world)) == ({new: 7}, {new: 2}), "from now on as the load says"
    assert "capacity" not in status_of(world)["rollout"]


async def test_until_users_are_moved_the_present_arm_and_what_the_new_one_needs_follow_the_load() -> None:
    world = await live(**SCALED)
    (old,) = arms(world)
    load(world, old, 6)
    edit(world, training=NEW_RATE)
    world.full = 5  # the new arm gets no sixth pod
    operator = await run(world, lambda s: (s.get("rollout") or {}).get("capacity") == 6)
    await operator.cycle()
    (new,) = set(arms(world)) - {old}
    assert least(world) == {old: 2, new: 6}
    load(world, old, 3)
    load(world, new, 3)
    operator = await run(world, lambda s: s["rollout"]["capacity"] == 3, start=operator)
    await operator.cycle()
    assert least(world)[new] == 3
    await run(world, rolling(50), start=operator)


# how an autoscaler of somebody else's changes the present arm at that weight → what the load is taken to need, of 6 before
FALLS: dict[str, tuple[int, int, str, int]] = {
    "half of the users, half of the pods": (50, 3, "External", 6),
    "fewer than these users took": (50, 2, "External", 4),
    "rounded up": (40, 2, "External", 4),
    "more load": (50, 7, "External", 7),
    "no more than was needed": (90, 2, "External", 6),
    "nobody is left to tell": (100, 1, "External", 6),
    "never below the least": (10, 1, "External", 2),
    "never above the most": (10, 99, "External", 8),
    "what the operator itself holds tells nothing": (50, 2, "HPA", 6),
}


@pytest.mark.parametrize("case", FALLS)
def test_what_the_load_needs_falls_with_the_present_arm_by_the_users_that_it_has(case: str) -> None:
    weight, wanted, autoscaler, expected = FALLS[case]
    scaling = {**CPU, "autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": autoscaler}}
    o = make_observed(changes={"serving": scaling}, arms={"old": ArmHealth(wanted=wanted), "new": ArmHealth(wanted=6)})
    assert with_capacity(o, at(states.HOLDING, weight, capacity=6)).capacity == expected


@pytest.mark.parametrize(("weight", "wanted", "expected"), [(50, 100, 200), (99, 2, 200)])
def test_of_many_pods_too_as_many_are_kept_as_the_share_of_the_users_says(weight: int, wanted: int, expected: int) -> None:
    scaling = {"autoscaling": {"maxReplicas": 1000, "autoscaler": "External"}}
    o = make_observed(changes={"serving": scaling}, arms={"old": ArmHealth(wanted=wanted), "new": ArmHealth(wanted=400)})
    assert with_capacity(o, at(states.HOLDING, weight, capacity=400)).capacity == expected


# weight, what the new arm's autoscaler has set and finds needed → what the load is taken to need, of 6 before
GROWN: dict[str, tuple[int, ArmHealth, int]] = {
    "all users are on it, and more come": (100, ArmHealth(wanted=8, needed=8), 8),
    "with fewer users it tells nothing of all": (99, ArmHealth(wanted=8, needed=8), 6),
    "it has only not taken back what it had": (100, ArmHealth(wanted=8, needed=6), 6),
}


@pytest.mark.parametrize("case", GROWN)
def test_the_new_arm_tells_of_more_load_once_it_has_all_users(case: str) -> None:
    weight, new, expected = GROWN[case]
    o = make_observed(changes={"serving": SCALED["serving"]}, arms={"old": ArmHealth(wanted=6, needed=0), "new": new})
    assert with_capacity(o, at(states.HOLDING, weight, capacity=6)).capacity == expected


def _kept(*seen: tuple[int, int], kept: int = 6) -> list[int | None]:
    """Half of the users are moved; (second, pods that each arm's autoscaler finds needed) → pods that are kept."""
    r, found = at(states.HOLDING, 50, capacity=kept), []
    scaling = {**CPU, "autoscaling": {"maxReplicas": 8}}
    for second, each in seen:
        arm = ArmHealth(wanted=kept, needed=each)
        o = make_observed(changes={"serving": scaling}, arms={"old": arm, "new": arm}, now=NOW + timedelta(seconds=second))
        r = with_capacity(o, r)
        found.append(r.capacity)
    return found


def test_pods_are_kept_for_five_minutes_in_which_none_of_them_was_needed() -> None:
    assert _kept((0, 2), (300, 2), (301, 2)) == [6, 6, 4]


def test_load_that_comes_again_begins_the_time_anew() -> None:
    assert _kept((0, 2), (200, 3), (400, 2), (700, 2), (701, 2)) == [6, 6, 6, 6, 4]


def test_after_pods_have_gone_more_go_by_what_was_needed_since() -> None:
    assert _kept((0, 2), (301, 2), (302, 1), (602, 1), (603, 1)) == [6, 4, 4, 4, 2]


def test_an_autoscaler_that_is_taken_out_while_users_move_leaves_no_capacity_behind() -> None:
    """The pods are spec.serving.replicas again, and no step waits for others."""
    assert with_capacity(make_observed(), at(states.HOLDING, 50, capacity=6)).capacity is None


@pytest.mark.parametrize(("needed", "expected"), [(None, 4), (1, 4), (0, 2)])
def test_an_autoscaler_that_comes_while_users_move_begins_with_what_is_there_unless_it_finds_nothing_to_do(
    needed: int | None, expected: int
) -> None:
    arm = ArmHealth(wanted=4, needed=needed)
    o = make_observed(changes={"serving": SCALED["serving"]}, arms={"old": arm, "new": arm})
    assert with_capacity(o, at(states.HOLDING, 50)).capacity == expected


@pytest.mark.parametrize("autoscaler", ["HPA", "External"])
@pytest.mark.parametrize(("wanted", "expected"), [(2, 6), (7, 7)])
def test_while_users_are_taken_back_what_is_kept_may_grow_and_does_not_fall(wanted: int, expected: int, autoscaler: str) -> None:
    scaling = {**CPU, "autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": autoscaler}}
    health = {"old": ArmHealth(wanted=wanted, needed=wanted), "new": ArmHealth(wanted=6, needed=1)}
    o = make_observed(changes={"serving": scaling}, arms=health)
    fewer = {"fewer": ["2020-01-01T00:00:00Z", 2]}
    assert with_capacity(o, at(states.ROLLING_BACK, 0, capacity=6, memory=fewer)).capacity == expected


async def test_after_a_rollback_nothing_is_kept_and_what_serves_has_what_its_load_needs() -> None:
    world = await live(**SCALED)
    (old,) = arms(world)
    load(world, old, 6)
    edit(world, training=NEW_RATE, rollout={**STEPS, "steps": [{"weight": 50, "hold": "1h"}, {"weight": 100}]})
    operator = await run(world, rolling(50))
    assert (status_of(world)["rollout"]["capacity"], least(world)[old]) == (6, 6)
    edit(world, annotations={names.CONTROL: f"abort:{status_of(world)['rollout']['name']}"})
    await run(world, lambda s: s["phase"] == "Rejected", start=operator)
    await run(world)
    assert "capacity" not in status_of(world)["rollout"]
    assert (replicas(world), least(world)) == ({old: 6}, {old: 2}), "its autoscaler takes from it what it does not need"


CURRENT_CPU = {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 30, "averageValue": "600m"}}}
CURRENT_METRIC = {"type": "Pods", "pods": {"metric": {"name": "m"}, "current": {"averageValue": "1500m"}}}
# what is asked for, what the autoscaler found of six pods, whether that is so now → how many it finds needed
FIGURES: dict[str, tuple[dict[str, Any], list[Any] | None, str, int | None]] = {
    "by the CPU": ({}, [CURRENT_CPU], "True", 3),
    "by a metric": ({"metric": {"name": "m", "averageValue": "4"}}, [CURRENT_METRIC], "True", 3),
    "its figures are old": ({}, [CURRENT_CPU], "False", None),
    "of what was asked for before": ({}, [CURRENT_METRIC], "True", None),
    "it found nothing": ({}, None, "True", None),
    "it found an empty figure": ({}, [{"type": ""}], "True", None),
}


@pytest.mark.parametrize("case", FIGURES)
def test_an_autoscalers_figures_tell_what_is_needed_below_the_least_that_it_may_set(case: str) -> None:
    asked, found, active, expected = FIGURES[case]
    said = [{"type": "AbleToScale", "status": "True"}, {"type": "ScalingActive", "status": active}]
    status = {"currentReplicas": 6, "currentMetrics": found, "conditions": said}
    assert autoscalers.needed({"spec": scaler(**asked), "status": status}) == expected
    assert autoscalers.needed({"spec": scaler(**asked)}) is None, "it has not looked yet"


def both(world: World, percent: int) -> None:
    """What both autoscalers find of their pods."""
    found = {**CURRENT_CPU, "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}
    for old in list(world.api.all(kinds.HPA)):
        target = world.api.store[kinds.DEPLOYMENT, "ml", old["spec"]["scaleTargetRef"]["name"]]
        status = {
            "currentReplicas": target["spec"]["replicas"],
            "currentMetrics": [found],
            "conditions": [{"type": "ScalingActive", "status": "True"}],
        }
        world.api.change(kinds.HPA, old, {**old, "status": status})


async def test_while_users_are_moved_the_pods_fall_with_the_load_of_both_arms_once_it_lasts() -> None:
    world = await live(**SCALED)
    (old,) = arms(world)
    load(world, old, 6)
    edit(world, training=NEW_RATE, rollout={**STEPS, "steps": [{"weight": 50, "hold": "1h"}, {"weight": 100}]})
    operator = await run(world, rolling(50))
    (new,) = set(arms(world)) - {old}

    async def after(seconds: float) -> int:
        world.clock.seconds += seconds
        await operator.cycle()
        world.turn()
        return int(status_of(world)["rollout"]["capacity"])

    both(world, 40)  # of 80: three pods each, as if all were on one of six
    assert await after(400) == 6
    both(world, 20)
    assert await after(1) == 6
    assert await after(290) == 6, "it may come again"
    both(world, 26)
    assert await after(5) == 6
    both(world, 10)
    assert await after(10) == 4, "the most of that time"
    assert least(world) == {old: 4, new: 4}
    assert await after(2) == 4, "what the autoscaler has not taken back yet is no new load"
    load(world, old, 4)
    load(world, new, 4)
    both(world, 100)
    load(world, old, 5)
    assert await after(2) == 5
    both(world, 1)
    assert await after(2) == 5
    assert await after(400) == 2, "never below the least"


async def test_nobody_is_moved_to_fewer_pods_than_the_load_needs() -> None:
    world = await live(**SCALED)
    (old,) = arms(world)
    edit(world, training=NEW_RATE)
    operator = await run(world, rolling(50))
    (new,) = set(arms(world)) - {old}
    world.full = 2  # no node has room for more
    load(world, old, 6)
    operator = await run(world, lambda s: "pods that the load needs" in condition(s, "Ready").get("message", ""), start=operator)
    assert status_of(world)["rollout"]["weight"] == 50
    message = condition(status_of(world), "Ready")["message"]
    assert "held at 50 %: 2 of the 6 pods that the load needs are ready on the new arm" in message
    assert "progressDeadline" not in message, "it is not over"
    before = len(world.api.writes)
    for _ in range(20):
        await operator.cycle()
        world.turn()
        world.clock.seconds += 2
    assert len(world.api.writes) - before < 3, "it waits without a word"
    operator = await run(world, lambda s: s["phase"] == "Paused", start=operator)
    status = status_of(world)
    assert (status["reason"], status["rollout"]["weight"]) == (c.TOO_FEW_PODS, 50), "within rollout.progressDeadline it is said as a pause"
    assert "rollout.progressDeadline is over: make room" in condition(status, "Ready")["message"]
    world.full = None
    await run(world, rolling(100), start=operator)
    assert replicas(world)[new] == 6


async def test_the_most_that_is_asked_for_is_never_passed() -> None:
    world = await live(serving={**CPU, "autoscaling": {"minReplicas": 2, "maxReplicas": 3}})
    (old,) = arms(world)
    load(world, old, 9)  # by hand, before the autoscaler looks
    edit(world, training=NEW_RATE)
    await run(world, rolling(50))
    assert set(replicas(world).values()) == {3}


async def test_autoscaling_comes_and_goes_without_a_pod_being_lost() -> None:
    world = await live(serving={**CPU, "replicas": 3})
    (name,) = arms(world)
    edit(world, serving=SCALED["serving"])
    await run(world)
    assert (replicas(world), least(world), status_of(world)["extraKinds"]) == ({name: 3}, {name: 2}, ["HorizontalPodAutoscaler"])
    edit(world, serving={**CPU, "replicas": 4})
    await run(world)
    assert (replicas(world), least(world)) == ({name: 4}, {})
    assert "extraKinds" not in status_of(world)
    assert arms(world) == [name], "it is no new arm"


async def test_somebody_elses_autoscaler_is_left_alone_and_none_is_made() -> None:
    world = await live(serving={"autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": "External"}})
    (name,) = arms(world)
    load(world, name, 6)
    await run(world)
    assert (replicas(world), least(world)) == ({name: 6}, {})
    assert "extraKinds" not in status_of(world)
    edit(world, training=NEW_RATE)
    await run(world, rolling(50))
    assert set(replicas(world).values()) == {6}, "the new arm begins with what the load needs"


async def test_somebody_elses_autoscaler_that_takes_all_pods_is_told_and_left_alone() -> None:
    world = await live(serving={"autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": "External"}})
    (name,) = arms(world)
    load(world, name, 0)
    await run(world)
    assert replicas(world) == {name: 0}
    told = condition(status_of(world), "Ready")
    assert (told["status"], told["reason"]) == ("False", c.NO_READY_PODS)
    assert (
        "0 of 0 pods are ready; its Deployment was set to 0 replicas. Let its autoscaler keep at least one (KEDA: minReplicaCount)"
        in told["message"]
    )


async def test_what_was_set_to_0_has_pods_again_for_its_own_autoscaler_leaves_it_there() -> None:
    world = await live(**SCALED)
    (name,) = arms(world)
    load(world, name, 0)
    await run(world)
    assert replicas(world) == {name: 2}
    assert condition(status_of(world), "Ready")["status"] == "True"


async def test_a_new_arm_that_nobody_else_scales_grows_with_the_load_and_is_never_shrunk() -> None:
    world = await live(serving={"autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": "External"}})
    (old,) = arms(world)
    edit(world, training=NEW_RATE)
    operator = await run(world, rolling(50))
    (new,) = set(arms(world)) - {old}
    load(world, old, 6)
    operator = await run(world, rolling(100), start=operator)
    assert replicas(world) == {old: 6, new: 6}
    load(world, new, 7)  # by an autoscaler that looks after it early
    load(world, old, 2)
    await run(world, live_with(2), start=operator)
    await run(world)
    assert replicas(world) == {new: 7}
    load(world, new, 3)
    await run(world)
    assert replicas(world) == {new: 3}, "what is live is that autoscaler's alone"


async def test_an_apply_leaves_an_autoscaled_deployment_its_replicas() -> None:
    """Left out, what was once applied would be taken back, and fall to 1."""
    api = ApiServer(HandClock())
    children = Children(cast(Cluster, api), Cache(), ("ml", "bot"), "uid-bot")
    kept = {"metadata": {}, "spec": {"containers": [{"name": "server", "image": "a"}]}}
    await children.ensure(kinds.DEPLOYMENT, arm.deployment(OWNER, "aaa11111", "r1", kept, 5))
    applied: list[Manifest] = []
    changed = {**kept, "metadata": {"annotations": {"a": "1"}}}
    merge = api.apply

    async def apply(kind: Kind, obj: Manifest, **rest: Any) -> Manifest:
        applied.append(obj)
        return await merge(kind, obj, **rest)

    api.apply = apply  # type: ignore[method-assign,assignment]
    await children.ensure(kinds.DEPLOYMENT, arm.deployment(OWNER, "aaa11111", "r1", changed, None))
    assert [obj["spec"]["replicas"] for obj in applied] == [5]


@pytest.mark.parametrize(
    ("case", "rollout", "state"),
    [
        ("it waits at no users", at(states.CONNECTING), states.CONNECTING),
        ("at the weight that it has", holding(), states.HOLDING),
        ("but not where nothing else serves", at(states.CONNECTING, memory={"outage": True}), states.SHIFTING),
    ],
)
def test_a_step_waits_for_the_pods_that_the_load_needs(case: str, rollout: Rollout, state: str) -> None:
    seen = scene(serving(**{**FINE, "weight": rollout.weight}), capacity=READY.ready + 1)
    assert advance(PLAN, seen, rollout).rollout.state == state
    assert advance(PLAN, replace(seen, capacity=READY.ready), rollout).rollout.state == states.SHIFTING


@pytest.mark.parametrize(
    ("ready", "wanted", "goes_on"), [(9, 10, True), (8, 10, False), (8, 9, False), (45, 50, True), (44, 50, False), (0, 1, False)]
)
def test_one_bad_machine_among_many_holds_no_rollout(ready: int, wanted: int, goes_on: bool) -> None:
    canary = replace(READY, ready=ready, wanted=wanted)
    step = advance(PLAN, replace(scene(serving(**FINE), capacity=wanted), canary=canary), holding())
    assert step.rollout.state == (states.SHIFTING if goes_on else states.HOLDING)
    deployed = advance(PLAN, replace(scene(serving(**{**FINE, "weight": 0})), canary=canary), at(states.DEPLOYING))
    assert (deployed.rollout.state != states.DEPLOYING) == goes_on


@pytest.mark.parametrize("wish", ["", states.PROMOTE])
def test_too_few_pods_for_longer_than_the_deadline_is_said_and_forgotten_once_there_are_enough(wish: str) -> None:
    seen = scene(serving(**{**FINE, "weight": 10}), capacity=READY.ready + 1, wish=wish)
    first = advance(PLAN, seen, holding())
    assert first.reason == ""
    for seconds, reason in ((PLAN.deadline, ""), (PLAN.deadline + 1, c.TOO_FEW_PODS)):
        later = advance(PLAN, replace(seen, now=seen.now + timedelta(seconds=seconds)), first.rollout)
        assert (later.reason, later.rollout.state, later.rollout.weight) == (reason, states.HOLDING, 10)
    assert "short" not in advance(PLAN, replace(seen, capacity=0), first.rollout).rollout.memory


def test_what_a_rollout_waited_for_pods_is_not_held_against_a_router_that_comes_new() -> None:
    """A node that is drained replaces one, and for a moment not all routers serve both arms."""
    connected, longer = serving(**{**FINE, "weight": 0}), timedelta(seconds=PLAN.deadline + 1)
    seen = scene(connected, capacity=READY.ready + 1)
    waits = advance(PLAN, seen, at(states.CONNECTING))
    later = replace(seen, now=seen.now + longer, routers=(connected, replace(connected, pod="router-1", totals={})))
    new = advance(PLAN, later, advance(PLAN, replace(later, routers=seen.routers), waits.rollout).rollout)
    assert (new.rollout.state, new.message) == (states.CONNECTING, "1 of 2 routers serve both arms, the new one to nobody yet")
    assert advance(PLAN, replace(later, now=later.now + longer), new.rollout).rollout.state == states.ROLLING_BACK


def pods_of(*found: str) -> str:
    return f"finetune.dev/name=bot,finetune.dev/arm in ({','.join(found)})"


def scale(world: World) -> tuple[int | None, str | None]:
    """What the status tells whoever scales the FineTune."""
    return status_of(world).get("replicas"), status_of(world).get("selector")


@pytest.mark.parametrize("kill", ["never", "every"])
async def test_a_finetune_is_scaled_in_place_and_from_arm_to_arm(kill: str) -> None:
    world = await live(serving={"replicas": 2})
    (old,), made = arms(world), status_of(world)["revision"]
    assert scale(world) == (2, pods_of(old))
    edit(world, serving={"replicas": 3})
    await run(world, kill=kill)
    assert (replicas(world), scale(world)) == ({old: 3}, (3, pods_of(old)))
    assert (status_of(world)["phase"], status_of(world)["revision"], arms(world)) == ("Live", made, [old])
    edit(world, training=NEW_RATE)
    operator = await run(world, rolling(50), kill=kill)
    operator = await run(world, lambda s: s["replicas"] == 6, kill=kill, start=operator)
    (new,) = set(arms(world)) - {old}
    assert (replicas(world), scale(world)) == ({old: 3, new: 3}, (6, pods_of(old, new)))
    world.full = 3  # no node has room for more
    edit(world, serving={"replicas": 5})
    waits = "held at 50 %: 3 of the 5 pods that the load needs are ready on the new arm"
    operator = await run(world, lambda s: waits in condition(s, "Ready").get("message", ""), kill=kill, start=operator)
    world.full = None
    operator = await run(world, rolling(100), kill=kill, start=operator)
    assert replicas(world) == {old: 5, new: 5}, "the old one could take them back"
    await run(world, live_with(2), kill=kill, start=operator)
    await run(world, kill=kill)
    assert (replicas(world), scale(world)) == ({new: 5}, (5, pods_of(new)))


async def test_what_an_autoscaler_reads_costs_no_write() -> None:
    world = await live(serving={"replicas": 3})
    before = len(world.api.writes)
    await run(world)
    assert world.api.writes[before:] == []


@pytest.mark.parametrize("autoscaler", ["HPA", "External"])
async def test_replicas_that_do_not_count_have_no_selector(autoscaler: str) -> None:
    """An autoscaler that names the FineTune says so then, and scales nothing."""
    world = await live(serving={**CPU, "autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": autoscaler}})
    assert scale(world) == (2, None)


USED: dict[str, tuple[Rollout | None, tuple[str, ...]]] = {
    "no rollout": (None, ("old",)),
    "the new arm's pods start": (at(states.DEPLOYING), ("old",)),
    "the routers learn of it": (at(states.CONNECTING), ("old",)),
    "users are moved": (at(states.SHIFTING, 10), ("old", "new")),
    "a step is held": (at(states.HOLDING, 10), ("old", "new")),
    "all are on the new arm": (at(states.BAKING, 100), ("old", "new")),
    "some may still be there": (at(states.ROLLING_BACK, 0), ("old", "new")),
    "it was taken back": (at(states.ROLLED_BACK, 0), ("old",)),
}


@pytest.mark.parametrize("case", USED)
def test_arms_that_users_are_on(case: str) -> None:
    rollout, expected = USED[case]
    assert used_arms(Status(live_arm="old", rollout=rollout)) == expected
    assert used_arms(Status(rollout=rollout)) == ()


@pytest.mark.parametrize(
    ("serving", "expected"), [({"replicas": 3}, 3), (SCALED["serving"], 6)], ids=["as many as are asked for", "autoscaled"]
)
def test_pods_that_a_step_waits_for(serving: dict[str, Any], expected: int) -> None:
    assert capacity_of(make_observed(changes={"serving": serving}), at(states.HOLDING, 50, capacity=6)) == expected
