"""The way in from outside the cluster on a real API server: made, edited, set right, taken away; with and without the Gateway API."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import errors, kinds, names
from finetune_operator.kinds import HTTP_ROUTE, INGRESS, Kind

from devcluster.controlplane import ControlPlane
from tests.integration import gatewayapi
from tests.integration.engine import ACCOUNT, NAMESPACE, ROOT, Audit, Operator, Space, install, ready, until
from tests.integration.kubelet import Admin, Kubelet

ROLLOUT = {"steps": [{"weight": 100}], "bake": "1s", "progressDeadline": "2m", "guards": {"minRequests": 0}}
HOST = {"className": "nginx", "host": "bot.example.com"}
GATEWAY = {"name": "gw", "namespace": "infra"}
ROUTE = {"parentRefs": [GATEWAY], "hostnames": ["bot.example.com"]}
ISSUER = "cert-manager.io/issuer"
SETTINGS = {"FINETUNE_INGRESS_ANNOTATIONS": "cert-manager.io/*"}
Object = dict[str, Any]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as started:
        install(started)
        yield started


@pytest.fixture
async def operator(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Operator]:
    async with Operator(plane, tmp_path, "exposing", settings=SETTINGS) as started:
        await started.leading()
        yield started


def allow(plane: ControlPlane, *values: str) -> None:
    """Upgrade the chart, with those of its ways in switched on alone."""
    command = [sys.executable, str(ROOT / "charts" / "helm.py"), "--kubeconfig", str(plane.kubeconfig), "-n", NAMESPACE]
    switched = [word for value in values for word in ("--set", f"expose.{value}=true")]
    images = ["--set", "images.operator=example.com/operator:1", "--set", "images.trainer=example.com/trainer:1"]
    chart = str(ROOT / "charts" / "finetune-operator")
    done = subprocess.run([*command, "upgrade", ACCOUNT, chart, *images, *switched], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def exposed(status: Object) -> tuple[str, str]:
    found: Object = next((c for c in status.get("conditions") or () if c["type"] == "Exposed"), {})
    return found.get("status", ""), found.get("reason", "")


def is_exposed(*expected: str) -> Callable[[Object], bool]:
    return lambda status: exposed(status) == expected


async def becomes(admin: Admin, kind: Kind, space: Space, holds: Callable[[Object], Any], what: str) -> Object:
    """The object that exposes it, once it is so."""

    async def found() -> Object | None:
        try:
            obj = await admin.get(kind, space.name, "bot")
        except errors.NotFound:
            return None
        return obj if obj is not None and holds(obj) else None

    return dict(await until(found, what=what))


async def is_gone(admin: Admin, kind: Kind, space: Space) -> None:
    async def gone() -> bool:
        return await admin.get(kind, space.name, "bot") is None

    await until(gone, what=f"the end of the {kind.kind}")


def annotations(obj: Object) -> Object:
    return {key: value for key, value in (obj["metadata"].get("annotations") or {}).items() if key != names.MANIFEST}


def backend(ingress: Object) -> Object:
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    return {"host": rule["host"], "path": path["path"], "service": path["backend"]["service"]["name"]}


async def serve(space: Space, expose: Object) -> None:
    """A FineTune that serves, and is to be exposed."""
    await space.make(serving={"expose": expose}, rollout=ROLLOUT)


async def test_what_may_not_be_made_or_is_unknown_holds_nothing_up_and_is_made_once_it_may(
    plane: ControlPlane, admin: Admin, kubelet: Kubelet, operator: Operator
) -> None:
    by_ingress, by_route = await Space.new(admin, "forbidden"), await Space.new(admin, "unknown")
    await serve(by_ingress, {"ingress": HOST})
    status = await by_ingress.wait(lambda s: s.get("phase") == "Live" and exposed(s) == ("False", "ExposureForbidden"))
    assert (ready(status)["status"], ready(status)["reason"]) == ("False", "ExposureForbidden")
    assert "serving.expose.ingress: the operator may not make" in ready(status)["message"]
    assert "expose.ingress=true" in ready(status)["message"]

    allow(plane, "ingress", "httpRoute")
    await serve(by_route, {"httpRoute": ROUTE})
    status = await by_route.wait(lambda s: s.get("phase") == "Live" and exposed(s) == ("False", "GatewayApiMissing"))
    assert "serving.expose.httpRoute: the cluster knows no HTTPRoute" in ready(status)["message"]
    plane.kubectl("apply", "--server-side", "-f", str(gatewayapi.crds()))
    plane.kubectl("wait", "--for=condition=Established", "crd/httproutes.gateway.networking.k8s.io", "--timeout=60s")

    status = await by_ingress.wait(is_exposed("Unknown", "NoAddress"))
    assert (ready(status)["status"], status["url"], status["extraKinds"]) == ("True", "http://bot.example.com/v1", ["Ingress"])
    status = await by_route.wait(is_exposed("Unknown", "NoGateway"))
    assert (ready(status)["status"], status["url"], status["extraKinds"]) == ("True", "http://bot.example.com/v1", ["HTTPRoute"])
    assert operator.process.poll() is None


async def test_an_ingress_from_its_making_to_its_end(
    plane: ControlPlane, admin: Admin, kubelet: Kubelet, tmp_path: Path, audit: Audit
) -> None:
    allow(plane, "ingress")
    space = await Space.new(admin, "ingress")
    async with Operator(plane, tmp_path, "exposing", settings=SETTINGS) as operator:
        await operator.leading()
        await serve(space, {"ingress": {**HOST, "tlsSecretName": "bot-tls", "annotations": {ISSUER: "ca"}}})
        made = await becomes(admin, INGRESS, space, annotations, "the Ingress")
        assert backend(made) == {"host": "bot.example.com", "path": "/v1", "service": "bot"}
        assert (made["spec"]["ingressClassName"], made["spec"]["tls"]) == (
            "nginx",
            [{"hosts": ["bot.example.com"], "secretName": "bot-tls"}],
        )
        assert annotations(made) == {ISSUER: "ca"}
        status = await space.wait(lambda s: s.get("phase") == "Live" and exposed(s) == ("Unknown", "NoAddress"))
        assert status["url"] == "https://bot.example.com/v1"

        await space.edit(serving={"expose": {"ingress": {"host": "other.example.com", "tlsSecretName": None, "annotations": None}}})
        made = await becomes(admin, INGRESS, space, lambda o: not annotations(o), "the edit")
        assert (backend(made)["host"], made["spec"].get("tls")) == ("other.example.com", None)
        await space.wait(lambda s: s["url"] == "http://other.example.com/v1")

        theirs = {
            "metadata": {"annotations": {"theirs": "1"}},
            "spec": {"rules": [], "defaultBackend": {"service": {"name": "bot-arm", "port": {"number": 1}}}},
        }
        await admin.patch(INGRESS, "ingress", "bot", theirs)
        made = await becomes(admin, INGRESS, space, lambda o: o["spec"].get("rules"), "setting it right")
        assert (backend(made)["host"], annotations(made)) == ("other.example.com", {"theirs": "1"})
        await admin.delete(INGRESS, "ingress", "bot")
        await becomes(admin, INGRESS, space, lambda o: o["metadata"]["uid"] != made["metadata"]["uid"], "another one")

        await admin.patch(INGRESS, "ingress", "bot", {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}, "status")
        status = await space.wait(is_exposed("True", "Addressed"))
        await asyncio.sleep(3)
        audit.mark()
        await operator.signal(signal.SIGKILL)
        operator.start()
        await until(lambda: operator.log.read_text().count('"event": "filled"') == 2, what="the second life")
        await asyncio.sleep(4)
        assert [r for r in audit.writes() if r.resource != "secrets"] == [], "a restart writes nothing"

        await operator.signal(signal.SIGKILL)
        await space.edit(serving={"expose": None})
        operator.start()
        await is_gone(admin, INGRESS, space)
        status = await space.wait(lambda s: "extraKinds" not in s)
        assert ("url" in status, exposed(status)) == (False, ("", ""))

        await space.edit(serving={"expose": {"ingress": HOST}})
        await becomes(admin, INGRESS, space, bool, "the Ingress again")
        assert {r.code for r in audit.writes("ingress")} <= {200, 201}, "no write was refused, none was in vain"
        await admin.delete(kinds.FINETUNE, "ingress", "bot")
        await is_gone(admin, INGRESS, space)


async def test_an_http_route_from_its_making_to_its_end(plane: ControlPlane, admin: Admin, kubelet: Kubelet, operator: Operator) -> None:
    allow(plane, "httpRoute")
    plane.kubectl("apply", "--server-side", "-f", str(gatewayapi.crds()))
    plane.kubectl("wait", "--for=condition=Established", "crd/httproutes.gateway.networking.k8s.io", "--timeout=60s")
    space = await Space.new(admin, "route")
    await serve(space, {"httpRoute": ROUTE, "scheme": "https"})
    made = await becomes(admin, HTTP_ROUTE, space, bool, "the HTTPRoute")
    (rule,) = made["spec"]["rules"]
    assert rule["backendRefs"] == [{"group": "", "kind": "Service", "name": "bot", "port": 80, "weight": 1}]
    assert (rule["matches"], rule["timeouts"]) == ([{"path": {"type": "PathPrefix", "value": "/v1"}}], {"request": "610s"})
    (parent,) = made["spec"]["parentRefs"]
    assert (parent["name"], parent["namespace"], made["spec"]["hostnames"]) == ("gw", "infra", ["bot.example.com"])
    status = await space.wait(lambda s: s.get("phase") == "Live" and exposed(s) == ("Unknown", "NoGateway"))
    assert status["url"] == "https://bot.example.com/v1"

    for accepted, reason in (("False", "NotAllowedByListeners"), ("True", "Accepted")):
        await admin.patch(HTTP_ROUTE, "route", "bot", {"status": {"parents": [answer(made, accepted, reason)]}}, "status")
        status = await space.wait(is_exposed(accepted, reason))
        assert ready(status)["status"] == "True"
    await space.edit(serving={"expose": {"httpRoute": {"hostnames": ["a.example.com", "b.example.com"]}}})
    await becomes(admin, HTTP_ROUTE, space, lambda o: o["spec"]["hostnames"] == ["a.example.com", "b.example.com"], "the edit")
    await space.wait(is_exposed("Unknown", "NoGateway"))
    theirs = {"rules": [{"backendRefs": [{"name": "bot-arm", "port": 8000}]}]}
    await admin.patch(HTTP_ROUTE, "route", "bot", {"spec": theirs})
    await becomes(admin, HTTP_ROUTE, space, lambda o: o["spec"]["rules"] == made["spec"]["rules"], "setting it right")

    plane.kubectl("delete", "crd", "httproutes.gateway.networking.k8s.io", "--timeout=60s")
    status = await space.wait(is_exposed("False", "GatewayApiMissing"))
    assert (status["phase"], ready(status)["reason"], "url" in status) == ("Live", "GatewayApiMissing", False)
    await space.edit(serving={"expose": None})
    status = await space.wait(lambda s: ready(s)["status"] == "True")
    assert exposed(status) == ("", "")
    assert operator.process.poll() is None


def answer(route: Object, accepted: str, reason: str) -> Object:
    """What a controller says of the route."""
    said = [("Accepted", accepted, reason), ("ResolvedRefs", "True", "ResolvedRefs")]
    common = {"lastTransitionTime": "2026-01-01T00:00:00Z", "message": "words", "observedGeneration": route["metadata"]["generation"]}
    conditions = [{"type": t, "status": s, "reason": r, **common} for t, s, r in said]
    return {"parentRef": GATEWAY, "controllerName": "example.com/controller", "conditions": conditions}


@pytest.fixture
def audit(plane: ControlPlane) -> Audit:
    made = Audit(plane.audit_log)
    made.mark()
    return made
