"""The ScaledObject of docs/serving.md on a real KEDA, which asks a real Prometheus: the replicas of a FineTune, and a rollout of them.

No model serves here: how many requests wait is told at one address, by the test.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from finetune_operator import conditions as c
from finetune_operator import kinds, names

from devcluster.controlplane import ControlPlane
from devcluster.shell import CommandError
from tests import aggregated
from tests.integration.engine import ROOT, Operator, Space, administrator, install, ready, until
from tests.integration.kubelet import Admin, Kubelet
from tests.integration.told import as_pod
from tests.keda import running
from tests.watching import Watching

Object = dict[str, Any]
NAME, NAMESPACE, HPA = "support-bot", "ml", "keda-hpa-support-bot"
SCALED_OBJECT = kinds.Kind("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject")
ROLLOUT = {"steps": [{"weight": 50, "hold": "20s"}, {"weight": 100}], "bake": "15s", "progressDeadline": "2m", "guards": {"minRequests": 0}}
AT_ONCE = {**ROLLOUT, "steps": [{"weight": 100}], "bake": "1s"}
ADDRESS = "127.1.250.1"


def documented() -> Object:
    """The ScaledObject as the documentation has it."""
    (block,) = re.findall(r"```yaml\n((?:(?!```).)*?kind: ScaledObject.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    scaled: Object = yaml.safe_load(block)
    return scaled


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    running.certificates(folder := tmp_path_factory.mktemp("keda"))
    hurried = ["--horizontal-pod-autoscaler-sync-period=1s", "--horizontal-pod-autoscaler-downscale-stabilization=2s"]
    with ControlPlane(flags={"kube-apiserver": aggregated.flags(folder), "controller-manager": hurried}) as started:
        install(started)
        running.install(started, folder)
        yield started
        print(*(f"--- {name}\n{started.log(name)[-6000:]}" for name in ("keda-operator", "keda-adapter")), sep="\n")


@pytest.fixture
async def admin(plane: ControlPlane) -> AsyncIterator[Admin]:
    async with administrator(plane) as made, Kubelet(made):
        yield made


class Load:
    """How many requests wait at all servers of the FineTune, whatever their number, as vLLM says it."""

    def __init__(self) -> None:
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def told(self) -> AsyncIterator[Object]:
        """The pod that discovery would find."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._answer)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, ADDRESS, names.MODEL_PORT).start()
        try:
            yield {
                "metadata": {"namespace": NAMESPACE, "name": "told", "labels": names.labels(NAME, "arm")},
                "spec": {"containers": [{"name": "server", "ports": [{"name": "http", "containerPort": names.MODEL_PORT}]}]},
                "status": {"phase": "Running", "podIP": ADDRESS},
            }
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(text=f'vllm:num_requests_waiting{{model_name="{NAME}"}} {self.waiting}\n')


@dataclass(frozen=True)
class World:
    """A FineTune, its load, and the Prometheus that KEDA asks."""

    plane: ControlPlane
    space: Space
    load: Load
    watching: Watching

    def apply(self, scaled: Object) -> None:
        """As a careful user does."""
        self.plane.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(scaled))

    async def replicas(self) -> dict[str, int]:
        """Of each arm."""
        found = await self.space.admin.list(kinds.DEPLOYMENT, NAMESPACE, names.SELECTOR)
        return {o["metadata"]["labels"][names.ARM]: o["spec"]["replicas"] for o in found if names.ARM in o["metadata"]["labels"]}

    async def are(self, wanted: dict[str, int]) -> None:
        """Wait for that many pods of each arm."""

        async def so() -> bool:
            return await self.replicas() == wanted

        with contextlib.suppress(AssertionError):
            await until(so, seconds=60)
        assert await self.replicas() == wanted

    async def autoscaler(self) -> Object:
        """The spec of the only one there is."""
        (found,) = await self.space.admin.list(kinds.HPA, NAMESPACE)
        assert found["metadata"]["name"] == HPA
        spec: Object = found["spec"]
        return spec

    async def says(self, kind: kinds.Kind, name: str, *wanted: str) -> None:
        """Wait for the condition (type, status, reason)."""

        async def so() -> bool:
            found = await self.space.admin.get(kind, NAMESPACE, name) or {}
            return wanted in [(told["type"], told["status"], told.get("reason")) for told in found.get("status", {}).get("conditions", ())]

        await until(so, what=f"{wanted} of {name}")


@pytest.fixture
async def world(plane: ControlPlane, admin: Admin, tmp_path: Path) -> AsyncIterator[World]:
    load = Load()
    async with load.told() as told:

        def pods() -> list[Object] | None:
            found = plane.pods()
            return None if found is None else [as_pod(operator), told, *found]

        (home := tmp_path / "prometheus").mkdir()
        watching, operator = Watching(home, pods), Operator(plane, tmp_path, "scaled")
        with watching:
            async with operator:
                await operator.leading()
                yield World(plane, await Space.new(admin, NAMESPACE), load, watching)


def asking(world: World, **changes: Any) -> Object:
    """The documented ScaledObject with this Prometheus, and fields of its spec replaced (None: left out)."""
    scaled = documented()
    scaled["spec"]["triggers"][0]["metadata"]["serverAddress"] = world.watching.url
    return {**scaled, "spec": {key: value for key, value in {**scaled["spec"], **changes}.items() if value is not None}}


async def test_the_documented_scaled_object_scales_the_finetune_and_a_new_arm_has_its_pods_before_its_users(world: World) -> None:
    space, scaled = world.space, asking(world)
    await space.make(NAME, serving={"replicas": 2}, rollout=AT_ONCE, storage={"accessMode": "ReadWriteMany"})
    old = (await space.phase("Live", NAME))["liveArm"]
    await world.are({old: 2})

    await taken_under_strict_validation(world, scaled)
    made = await world.autoscaler()
    assert made["scaleTargetRef"] == {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": NAME}
    assert (made["minReplicas"], made["maxReplicas"]) == (2, 8)
    assert [m["external"]["target"] for m in made["metrics"]] == [{"type": "AverageValue", "averageValue": "4"}]

    await follow_the_load(world, old)
    await stay_while_prometheus_is_away(world, old)
    new = await keep_up_while_users_move(world, old)

    world.load.waiting = 24
    await world.are({new: 6})
    await world.says(SCALED_OBJECT, NAME, "Ready", "True", "ScaledObjectReady")
    await world.says(kinds.HPA, HPA, "AbleToScale", "True", "ReadyForNewScale")
    world.load.waiting = 0
    await world.are({new: 2})
    await keep_the_last_pod(world, new)
    await the_arm_itself_may_be_named(world, new)


async def taken_under_strict_validation(world: World, scaled: Object) -> None:
    with pytest.raises(CommandError, match="minReplicas"):
        world.apply({**scaled, "spec": {**scaled["spec"], "minReplicas": 2}})
    world.apply(scaled)
    await world.says(SCALED_OBJECT, NAME, "Ready", "True", "ScaledObjectReady")
    await world.says(kinds.HPA, HPA, "ScalingActive", "True", "ValidMetricFound")


async def follow_the_load(world: World, arm: str) -> None:
    for waiting, pods in ((20, 5), (1000, 8), (12, 3)):
        world.load.waiting = waiting
        await world.are({arm: pods})


async def stay_while_prometheus_is_away(world: World, arm: str) -> None:
    world.watching.stop()
    await world.says(kinds.HPA, HPA, "ScalingActive", "False", "FailedGetExternalMetric")
    assert await world.replicas() == {arm: 3}
    world.watching.start()
    await world.says(kinds.HPA, HPA, "ScalingActive", "True", "ValidMetricFound")
    assert await world.replicas() == {arm: 3}


async def keep_the_last_pod(world: World, arm: str) -> None:
    """KEDA's own default is to take all pods: of a FineTune it may not."""
    world.apply(asking(world, minReplicaCount=None, cooldownPeriod=1, pollingInterval=1))
    await world.are({arm: 1})
    await world.says(SCALED_OBJECT, NAME, "Ready", "False", "ErrorScalingTarget")
    assert await world.replicas() == {arm: 1}
    world.apply(asking(world))
    await world.are({arm: 2})


async def the_arm_itself_may_be_named(world: World, arm: str) -> None:
    """By `autoscaler: External`: the operator then leaves its replicas alone. What takes the last pod is told."""
    await world.space.edit(NAME, serving={"autoscaling": {"minReplicas": 2, "maxReplicas": 8, "autoscaler": "External"}})
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.arm(NAME, arm)}
    world.apply(asking(world, scaleTargetRef=target))
    world.load.waiting = 20
    await world.are({arm: 5})
    assert await world.space.admin.list(kinds.HPA, NAMESPACE, names.SELECTOR) == []
    world.apply(asking(world, scaleTargetRef=target, minReplicaCount=None, cooldownPeriod=1, pollingInterval=1))
    world.load.waiting = 0
    await world.are({arm: 0})
    status = await world.space.wait(lambda s: ready(s).get("status") == "False", NAME)
    assert ready(status)["reason"] == c.NO_READY_PODS
    assert "its Deployment was set to 0 replicas. Let its autoscaler keep at least one (KEDA: minReplicaCount)" in ready(status)["message"]


async def keep_up_while_users_move(world: World, old: str) -> str:
    """The new arm, once it is live: three pods wait for its users, and two more come with more load."""
    await world.space.edit(NAME, rollout=ROLLOUT, training={"learningRate": "1e-3"})
    status = await world.space.wait(lambda s: (s.get("rollout") or {}).get("weight") == 50, NAME)
    new: str = status["rollout"]["arm"]
    assert await world.replicas() == {old: 3, new: 3}
    world.load.waiting = 20
    await world.are({old: 5, new: 5})
    await world.space.phase("Baking", NAME)
    assert await world.replicas() == {old: 5, new: 5}, "it could take everybody back"
    status = await world.space.phase("Live", NAME)
    await world.are({new: 5})
    assert (ready(status)["status"], status["liveArm"]) == ("True", new)
    return new
