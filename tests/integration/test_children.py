"""What the user takes out of the spec is taken out of the children too, on the real API server: made with it, they keep it as theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator import kinds
from finetune_operator.api.load import load_spec
from finetune_operator.apply import Children
from finetune_operator.build import router
from finetune_operator.build.pods import Owner
from finetune_operator.cache import Cache
from finetune_operator.kinds import Kind
from finetune_operator.traffic import Backend, Source, Structure

from devcluster.controlplane import ControlPlane
from tests.integration.kubelet import Admin
from tests.unit.operator.helpers import make_finetune

Object = dict[str, Any]
PODS = {
    "nodeSelector": {"pool": "a", "zone": "b"}, "tolerations": [{"key": "mine", "operator": "Exists"}], "serviceAccountName": "bot",
    "imagePullSecrets": ["one", "two"], "annotations": {"mesh": "off", "team": "ml"},
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}
    ]}}},
}  # fmt: skip
FULL: Object = {
    "pods": PODS, "serving": {"apiKeys": {"secretName": "keys"}, "tls": {"secretName": "tls"}},
    "rollout": {"experiment": {"weight": 50, "log": {"secretName": "ab"}}},
}  # fmt: skip
LESS: Object = {**FULL, "pods": {**PODS, "nodeSelector": {"pool": "a"}, "imagePullSecrets": ["two"], "annotations": {"team": "ml"}}}
BARE: Object = {"serving": {}}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(controllers=False, scheduler=False) as started:
        started.kubectl("create", "namespace", "ml")
        yield started


class Counted(Admin):
    """Remembers its writes."""

    writes: list[str]

    async def _write(self, verb: str, method: str, kind: Kind, path: str, body: Any, **how: Any) -> Object:
        self.writes.append(f"{verb} {kind.kind}")
        return await super()._write(verb, method, kind, path, body, **how)


async def brought(cluster: Counted, cache: Cache, changes: Object) -> tuple[Object, Object, list[str]]:
    """The routers' Deployment and Service once they are as the spec says; and what is written when nothing has changed."""
    structure, children = (
        Structure(Backend("a", "bot-a", "base"), None, "salt", (Source(header="x-user-id"),)),
        Children(cluster, cache, ("ml", "bot"), "uid"),
    )
    for _ in range(2):
        cluster.writes = []
        for kind, manifest in router.children(Owner("ml", "bot", "uid"), load_spec(make_finetune(**changes)), "router:1", structure, 0, {}):
            await children.ensure(kind, manifest)
    made = [await cluster.get(kind, "ml", name) for kind, name in ((kinds.DEPLOYMENT, "bot-router"), (kinds.SERVICE, "bot"))]
    assert made[0], made[1]
    return made[0], made[1] or {}, cluster.writes


@pytest.mark.parametrize("before", [FULL, LESS], ids=["all of it", "less"])
async def test_what_is_taken_out_of_the_spec_goes_and_then_nothing_is_written(admin: Admin, before: Object) -> None:
    cluster, cache = Counted(admin._connection), Cache()
    await brought(cluster, cache, before)
    fewer, _, idle = await brought(cluster, cache, LESS)
    meta, pod = (fewer["spec"]["template"][key] for key in ("metadata", "spec"))
    assert (pod["nodeSelector"], pod["imagePullSecrets"], idle) == ({"pool": "a"}, [{"name": "two"}], [])
    assert meta["annotations"] == {"team": "ml"}
    bare, service, idle = await brought(cluster, cache, BARE)
    pod = bare["spec"]["template"]["spec"]
    assert idle == []
    assert "annotations" not in bare["spec"]["template"]["metadata"]
    assert not any(pod.get(key) for key in ("nodeSelector", "affinity", "tolerations", "imagePullSecrets", "serviceAccountName")), pod
    assert [v["name"] for v in pod["volumes"]] == ["config"]
    assert [e["name"] for e in pod["containers"][0]["env"]] == ["POD_NAME"]
    assert [p["port"] for p in service["spec"]["ports"]] == [80]
    for kind, name in (
        (kinds.DEPLOYMENT, "bot-router"),
        (kinds.SERVICE, "bot"),
        (kinds.CONFIGMAP, "bot-router"),
        (kinds.PDB, "bot-router"),
    ):
        await admin.remove(kind, "ml", name)
