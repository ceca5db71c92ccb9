"""What keeps routers and servers up while nodes are drained and lost: budgets, and pods that keep apart."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import kinds, names
from finetune_operator.api.spec import Spec
from finetune_operator.build import arm, router
from finetune_operator.build.arm import Served
from finetune_operator.build.pods import NO_DEVICES, Images, Manifest, Owner
from finetune_operator.traffic import Backend, Structure

from tests.unit.operator.helpers import BY_HEADER, edit, good_outcomes, make_finetune, make_spec, status_of
from tests.unit.operator.test_life import arms, live_with
from tests.unit.operator.world import World, run

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
