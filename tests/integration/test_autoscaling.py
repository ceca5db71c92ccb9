"""Replicas that an autoscaler sets, on a real API server with its controllers: who owns them, and what is there before users are moved."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import kinds, names

from devcluster.controlplane import ControlPlane
from devcluster.shell import CommandError
from tests import aggregated
from tests.integration import figures
from tests.integration.engine import Operator, Space, install, ready, until
from tests.integration.kubelet import Admin, Kubelet

ROLLOUT = {"steps": [{"weight": 50, "hold": "12s"}, {"weight": 100}], "bake": "6s", "progressDeadline": "2m", "guards": {"minRequests": 0}}
SERVING = {"resources": {"requests": {"cpu": "100m"}}, "autoscaling": {"minReplicas": 2, "maxReplicas": 6}}
SHARED = {"accessMode": "ReadWriteMany"}
Object = dict[str, Any]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    figures.certificates(folder := tmp_path_factory.mktemp("figures"))
    return folder


@pytest.fixture(scope="module")
def plane(authority: Path) -> Iterator[ControlPlane]:
    hurried = ["--horizontal-pod-autoscaler-sync-period=1s", "--horizontal-pod-autoscaler-downscale-stabilization=2s"]
    with ControlPlane(flags={"kube-apiserver": aggregated.flags(authority), "controller-manager": hurried}) as started:
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
    assert (await replicas(space))[new] == 4, "before its users come"
    await are(space, {old: 4, new: 4}, {old: 4, new: 4})
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


def asked(plane: ControlPlane, space: Space, *words: str) -> str:
    """As somebody who may edit what is in the namespace."""
    return plane.kubectl("-n", space.name, "--as=amy", *words)


def told(plane: ControlPlane, space: Space, name: str = "bot") -> tuple[int, int, str]:
    """By the subresource: (replicas that are asked for, that are there, their selector)."""
    found = json.loads(asked(plane, space, "get", "finetune", name, "--subresource=scale", "-o", "json"))
    return found["spec"]["replicas"], found["status"].get("replicas", 0), found["status"].get("selector", "")


def pods(*names_: str) -> str:
    return f"finetune.dev/name=bot,finetune.dev/arm in ({','.join(names_)})"


async def scaled(space: Space, wanted: dict[str, int], ready: int) -> None:
    """Wait for that many pods of each arm, and for the status to tell of all that are ready."""

    async def so() -> bool:
        return await replicas(space) == wanted and (await space.status()).get("replicas") == ready

    await until(so, what=f"{wanted}")


async def autoscaler(space: Space, least: int) -> None:
    """One of a user's, that names the FineTune: no metrics are there, so it sets the least."""
    target = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "bot"}
    made = {
        "apiVersion": kinds.HPA.api_version, "kind": kinds.HPA.kind, "metadata": {"name": "mine", "namespace": space.name},
        "spec": {"scaleTargetRef": target, "minReplicas": least, "maxReplicas": 6},
    }  # fmt: skip
    await space.admin.apply(kinds.HPA, made)


async def says(space: Space, type_: str, status: str, reason: str) -> None:
    async def so() -> bool:
        found = await space.admin.get(kinds.HPA, space.name, "mine") or {}
        said = {c["type"]: (c["status"], c["reason"]) for c in found.get("status", {}).get("conditions", ())}
        return said.get(type_) == (status, reason)

    await until(so, what=f"{type_} {status} {reason}")


async def test_the_finetune_itself_is_scaled_whatever_arm_serves(
    plane: ControlPlane, admin: Admin, kubelet: Kubelet, operator: Operator
) -> None:
    space = await Space.new(admin, "scaled")
    plane.kubectl("-n", space.name, "create", "rolebinding", "amy", "--clusterrole=edit", "--user=amy")
    await space.make(serving={"replicas": 2}, rollout={**ROLLOUT, "steps": [{"weight": 100}], "bake": "1s"}, storage=SHARED)
    old = (await space.phase("Live"))["liveArm"]
    await scaled(space, {old: 2}, 2)
    assert told(plane, space) == (2, 2, pods(old))

    before = await space.status()
    asked(plane, space, "scale", "finetune", "bot", "--replicas=3")
    await scaled(space, {old: 3}, 3)
    status = await space.status()
    assert (status["phase"], status["revision"], status["liveArm"]) == ("Live", before["revision"], old)
    assert status["observedGeneration"] == before["observedGeneration"] + 1
    assert status.get("rollout") == before.get("rollout"), "it is no rollout"
    with pytest.raises(CommandError, match="greater than or equal to 1"):
        asked(plane, space, "scale", "finetune", "bot", "--replicas=0")

    await autoscaler(space, 4)
    await says(space, "AbleToScale", "True", "SucceededGetScale")
    await scaled(space, {old: 4}, 4)
    await says(space, "ScalingActive", "False", "FailedGetResourceMetric")
    await space.edit(rollout=ROLLOUT, training={"learningRate": "1e-3"})
    status = await space.wait(lambda s: (s.get("rollout") or {}).get("weight") == 50)
    new = status["rollout"]["arm"]
    assert (await replicas(space), told(plane, space)) == ({old: 4, new: 4}, (4, 8, pods(old, new)))
    await autoscaler(space, 5)
    await scaled(space, {old: 5, new: 5}, 10)
    await space.phase("Live")
    await scaled(space, {new: 5}, 5)
    assert told(plane, space) == (5, 5, pods(new))
    await autoscaler(space, 6)
    await scaled(space, {new: 6}, 6)

    await space.edit(serving={"autoscaling": {"minReplicas": 1, "maxReplicas": 8, "autoscaler": "External"}})
    await says(space, "ScalingActive", "False", "InvalidSelector")
    await space.edit(serving=None)
    await space.wait(lambda s: "replicas" not in s)
    with pytest.raises(CommandError, match="replicas"):
        told(plane, space)


async def test_one_that_only_trains_is_served_once_somebody_scales_it(
    plane: ControlPlane, admin: Admin, kubelet: Kubelet, operator: Operator
) -> None:
    """An autoscaler does not: it cannot read how many there are."""
    space = await Space.new(admin, "trains")
    plane.kubectl("-n", space.name, "create", "rolebinding", "amy", "--clusterrole=edit", "--user=amy")
    await space.make(rollout={**ROLLOUT, "steps": [{"weight": 100}], "bake": "1s"}, storage=SHARED)
    before = await space.phase("Trained")
    with pytest.raises(CommandError, match=r"\.spec\.serving\.replicas\W+ does not exist"):
        told(plane, space)
    await autoscaler(space, 3)
    await says(space, "AbleToScale", "False", "FailedGetScale")
    assert (await space.status())["phase"] == "Trained"

    await admin.delete(kinds.HPA, space.name, "mine")
    asked(plane, space, "scale", "finetune", "bot", "--replicas=2")
    status = await space.phase("Live")
    await scaled(space, {status["liveArm"]: 2}, 2)
    assert (status["liveRevision"], len(status["attempts"])) == (before["revision"], len(before["attempts"])), "it is not trained again"
    await space.edit(serving=None)
    await space.phase("Trained")


async def test_an_autoscaler_of_the_finetune_finds_what_the_load_of_all_users_needs_on_whichever_arm_they_are(
    plane: ControlPlane, admin: Admin, kubelet: Kubelet, operator: Operator, authority: Path
) -> None:
    """80 of the 100 thousandths of a CPU that a pod asks for."""
    users = figures.Figures(plane, admin, authority)
    async with users.told():
        space = await Space.new(admin, "cpu")
        await space.make(serving={"replicas": 1}, rollout={**ROLLOUT, "steps": [{"weight": 100}], "bake": "1s"}, storage=SHARED)
        old = (await space.phase("Live"))["liveArm"]
        users.load = {old: 240}
        await autoscaler(space, 1)
        await scaled(space, {old: 3}, 3)

        slow = {**ROLLOUT, "steps": [{"weight": 50, "hold": "1h"}, {"weight": 100}], "bake": "30s"}
        await space.edit(rollout=slow, training={"learningRate": "1e-3"})
        rollout = (await space.wait(lambda s: (s.get("rollout") or {}).get("weight") == 50))["rollout"]
        new = rollout["arm"]
        users.load = {old: 114, new: 114}
        await finds(space, 38)
        assert await replicas(space) == {old: 3, new: 3}, "half of the users on each, which must bear all"
        users.load = {old: 192, new: 192}
        await scaled(space, {old: 5, new: 5}, 10)
        users.load = {old: 152, new: 152}
        await scaled(space, {old: 4, new: 4}, 8)
        await admin.annotate(kinds.FINETUNE, space.name, "bot", {names.CONTROL: f"promote:{rollout['name']}"})
        await space.phase("Baking")
        users.load = {new: 296}
        await finds(space, 37)
        assert await replicas(space) == {old: 4, new: 4}, "it could take everybody back"
        await space.phase("Live")
        await scaled(space, {new: 4}, 4)
        users.load = {new: 480}
        await scaled(space, {new: 6}, 6)


async def finds(space: Space, percent: int) -> None:
    """Wait until the autoscaler sees pods that take so much on average; then it has set what it finds."""

    async def so() -> bool:
        found = (await space.admin.get(kinds.HPA, space.name, "mine") or {}).get("status", {})
        return [m["resource"]["current"].get("averageUtilization") for m in found.get("currentMetrics") or ()] == [percent]

    await until(so, what=f"{percent} % of the request")
