"""The ScaledObject of docs/serving.md on a real KEDA, which asks a real Prometheus: the replicas of an arm, and a rollout of them.

No model serves here: how many requests wait is told at one address, by the test.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from finetune_operator import kinds, names

from devcluster.controlplane import ControlPlane
from devcluster.shell import CommandError
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


def documented() -> tuple[Object, Object]:
    """(autoscaling of the FineTune, ScaledObject) as the documentation has them."""
    (block,) = re.findall(r"```yaml\n((?:(?!```).)*?kind: ScaledObject.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    serving, scaled = yaml.safe_load_all(block)
    return serving["autoscaling"], scaled


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    running.certificates(folder := tmp_path_factory.mktemp("keda"))
    hurried = ["--horizontal-pod-autoscaler-sync-period=1s", "--horizontal-pod-autoscaler-downscale-stabilization=2s"]
    with ControlPlane(flags={"kube-apiserver": running.api_server(folder), "controller-manager": hurried}) as started:
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


async def replicas(space: Space) -> dict[str, int]:
    found = await space.admin.list(kinds.DEPLOYMENT, space.name, names.SELECTOR)
    return {o["metadata"]["labels"][names.ARM]: o["spec"]["replicas"] for o in found if names.ARM in o["metadata"]["labels"]}


async def are(space: Space, **wanted: int) -> None:
    async def so() -> bool:
        return await replicas(space) == wanted

    with contextlib.suppress(AssertionError):
        await until(so, seconds=60)
    assert await replicas(space) == wanted


async def hpa(space: Space) -> Object:
    """The only one there is."""
    (found,) = await space.admin.list(kinds.HPA, space.name)
    assert found["metadata"]["name"] == HPA
    return found


async def condition(space: Space, kind: kinds.Kind, name: str, wanted: str) -> tuple[str, str]:
    """(status, reason) of a condition, once it is known."""

    async def known() -> Object | None:
        found = await space.admin.get(kind, space.name, name)
        assert found is not None
        said = next((c for c in found.get("status", {}).get("conditions", ()) if c["type"] == wanted), {})
        return said if said.get("status") in ("True", "False") else None

    said = await until(known, what=f"{wanted} of {name}")
    return said["status"], said["reason"]


def owners(deployment: Object) -> set[str]:
    """Who has set its replicas, by the API server's word."""
    return {entry["manager"] for entry in deployment["metadata"]["managedFields"] if "f:replicas" in entry["fieldsV1"].get("f:spec", {})}


async def test_the_documented_scaled_object_scales_what_is_live_and_the_next_arm_has_its_pods_before_users(
    admin: Admin, plane: ControlPlane, tmp_path: Path
) -> None:
    def apply(scaled: Object) -> None:
        plane.kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(scaled))

    load = Load()
    async with load.told() as told:

        def pods() -> list[Object] | None:
            found = plane.pods()
            return None if found is None else [as_pod(operator), told, *found]

        (home := tmp_path / "prometheus").mkdir()
        watching = Watching(home, pods)
        operator = Operator(plane, tmp_path, "scaled")
        autoscaling, scaled = documented()
        scaled["spec"]["triggers"][0]["metadata"]["serverAddress"] = watching.url
        with watching:
            async with operator:
                await operator.leading()
                space = await Space.new(admin, NAMESPACE)
                await space.make(NAME, serving={"autoscaling": autoscaling}, rollout=AT_ONCE, storage={"accessMode": "ReadWriteMany"})
                old = (await space.phase("Live", NAME))["liveArm"]
                assert await replicas(space) == {old: 2}
                assert await admin.list(kinds.HPA, NAMESPACE) == []
                scaled["spec"]["scaleTargetRef"]["name"] = names.arm(NAME, old)

                with pytest.raises(CommandError, match="minReplicas"):
                    apply({**scaled, "spec": {**scaled["spec"], "minReplicas": 2}})
                apply(scaled)
                assert await condition(space, SCALED_OBJECT, NAME, "Ready") == ("True", "ScaledObjectReady")
                await until(lambda: watching.query(f'vllm:num_requests_waiting{{namespace="{NAMESPACE}", name="{NAME}"}}'))
                assert await condition(space, kinds.HPA, HPA, "ScalingActive") == ("True", "ValidMetricFound")
                made = (await hpa(space))["spec"]
                assert made["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.arm(NAME, old)}
                assert (made["minReplicas"], made["maxReplicas"]) == (autoscaling["minReplicas"], autoscaling["maxReplicas"])
                assert made["metrics"][0]["external"]["target"] == {"type": "AverageValue", "averageValue": "4"}

                load.waiting = 20
                await are(space, **{old: 5})
                deployment = await admin.get(kinds.DEPLOYMENT, NAMESPACE, names.arm(NAME, old))
                assert deployment is not None
                assert names.FIELD_MANAGER not in owners(deployment)
                load.waiting = 1000
                await are(space, **{old: 8})
                load.waiting = 12
                await are(space, **{old: 3})

                await space.edit(NAME, rollout=ROLLOUT, training={"learningRate": "1e-3"})
                status = await space.wait(lambda s: (s.get("rollout") or {}).get("weight") == 50, NAME)
                new = status["rollout"]["arm"]
                assert status["rollout"]["capacity"] == 3
                assert await replicas(space) == {old: 3, new: 3}
                load.waiting = 20
                await are(space, **{old: 5, new: 5})
                status = await space.phase("Baking", NAME)
                assert await replicas(space) == {old: 5, new: 5}, "it could take everybody back"
                status = await space.phase("Live", NAME)
                await are(space, **{new: 5})
                assert (ready(status)["status"], status["liveArm"]) == ("True", new)

                assert (await condition(space, kinds.HPA, HPA, "AbleToScale")) == ("False", "FailedGetScale")
                scaled["spec"]["scaleTargetRef"]["name"] = names.arm(NAME, new)
                apply(scaled)
                load.waiting = 0
                await are(space, **{new: 2})
                assert (await hpa(space))["spec"]["scaleTargetRef"]["name"] == names.arm(NAME, new)
                load.waiting = 24
                await are(space, **{new: 6})
                status = await space.status(NAME)
                assert (status["phase"], ready(status)["status"], status["liveArm"]) == ("Live", "True", new)
