"""Replicas that an autoscaler sets, on a real API server with its controllers: who owns them, and what is there before users are moved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import kinds, names

from devcluster.controlplane import ControlPlane
from tests.integration.engine import Operator, Space, install, ready, until
from tests.integration.kubelet import Admin, Kubelet

ROLLOUT = {"steps": [{"weight": 50, "hold": "12s"}, {"weight": 100}], "bake": "6s", "progressDeadline": "2m", "guards": {"minRequests": 0}}
SERVING = {"resources": {"requests": {"cpu": "100m"}}, "autoscaling": {"minReplicas": 2, "maxReplicas": 6}}
SHARED = {"accessMode": "ReadWriteMany"}
Object = dict[str, Any]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(flags={"controller-manager": ["--horizontal-pod-autoscaler-sync-period=1s"]}) as started:
        install(started)
        yield started


@pytest.fixture
async def operator(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Operator]:
    async with Operator(plane, tmp_path, "scaling") as started:
        await started.leading()
        yield started


async def arms(space: Space, kind: kinds.Kind) -> dict[str, Object]:
    """Objects of the kind by the arm that they belong to."""
    found = await space.admin.list(kind, space.name, names.SELECTOR)
    return {o["metadata"]["labels"][names.ARM]: o for o in found if names.ARM in o["metadata"]["labels"]}


async def replicas(space: Space) -> dict[str, int]:
    return {name: obj["spec"]["replicas"] for name, obj in (await arms(space, kinds.DEPLOYMENT)).items()}


async def least(space: Space) -> dict[str, int]:
    return {name: obj["spec"]["minReplicas"] for name, obj in (await arms(space, kinds.HPA)).items()}


async def scale(space: Space, arm: str, count: int) -> None:
    """As an autoscaler does."""
    await space.admin.patch(kinds.DEPLOYMENT, space.name, f"bot-{arm}", {"spec": {"replicas": count}}, "scale")


async def are(space: Space, wanted: dict[str, int], at_least: dict[str, int]) -> None:
    async def so() -> bool:
        return (await replicas(space), await least(space)) == (wanted, at_least)

    await until(so, what=f"{wanted} pods, at least {at_least}")


async def test_replicas_follow_the_load_and_both_arms_keep_up_while_users_move(admin: Admin, kubelet: Kubelet, operator: Operator) -> None:
    space = await Space.new(admin, "load")
    await space.make(serving=SERVING, rollout={**ROLLOUT, "steps": [{"weight": 100}], "bake": "1s"}, storage=SHARED)
    status = await space.phase("Live")
    old = status["liveArm"]
    await are(space, {old: 2}, {old: 2})
    deployment = (await arms(space, kinds.DEPLOYMENT))[old]
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [c["topologyKey"] for c in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert {c["matchLabelKeys"][0] for c in spread} == {"pod-template-hash"}
    assert set(await arms(space, kinds.PDB)) == {old}

    await scale(space, old, 4)
    await off_and_right_again(space, old)
    assert await replicas(space) == {old: 4}

    await space.edit(rollout=ROLLOUT, training={"learningRate": "1e-3"})
    status = await space.wait(lambda s: (s.get("rollout") or {}).get("weight") == 50)
    new = status["rollout"]["arm"]
    assert status["rollout"]["capacity"] == 4
    assert (await replicas(space), await least(space)) == ({old: 4, new: 4}, {old: 4, new: 4})
    await scale(space, old, 5)
    await are(space, {old: 5, new: 5}, {old: 5, new: 5})
    status = await space.phase("Baking")
    assert (await replicas(space), await least(space)) == ({old: 5, new: 5}, {old: 5, new: 5}), "it could take everybody back"
    status = await space.phase("Live")
    await are(space, {new: 5}, {new: 2})
    assert status["extraKinds"] == ["HorizontalPodAutoscaler"]

    await space.edit(serving={"autoscaling": None, "replicas": 3})
    await are(space, {new: 3}, {})
    await space.edit(serving={"autoscaling": {"minReplicas": 1, "maxReplicas": 6}})
    await are(space, {new: 3}, {new: 1})
    await off_and_right_again(space, new)  # the replicas were applied last: an apply without them would take them back
    assert await replicas(space) == {new: 3}
    await scale(space, new, 0)  # by hand: an autoscaler leaves it there
    await are(space, {new: 1}, {new: 1})
    status = await space.phase("Live")
    assert (ready(status)["status"], status["liveArm"]) == ("True", new)


async def off_and_right_again(space: Space, arm: str) -> None:
    """Something else of the Deployment is changed, and the operator sets it right."""
    await space.admin.patch(kinds.DEPLOYMENT, space.name, f"bot-{arm}", {"spec": {"progressDeadlineSeconds": 800}})

    async def right() -> bool:
        return bool((await arms(space, kinds.DEPLOYMENT))[arm]["spec"]["progressDeadlineSeconds"] == 900)

    await until(right, what="setting it right")
