"""The way in from outside the cluster: what is built, when it is there, and what is said of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator import conditions as c
from finetune_operator import errors, exposures, kinds, names, status
from finetune_operator.api.blocks.expose import Expose
from finetune_operator.api.load import load_spec
from finetune_operator.api.status import Condition
from finetune_operator.build import exposure
from finetune_operator.build.envoy import REQUEST_SECONDS
from finetune_operator.build.pods import Manifest, Owner
from finetune_operator.decide import exposure as decide_exposure
from finetune_operator.decide import extras as extras_rule
from finetune_operator.decide.draft import ArmWanted, Draft, Note, Routing
from finetune_operator.extras import Extras
from finetune_operator.kinds import FINETUNE, HTTP_ROUTE, INGRESS, Kind
from finetune_operator.observed import Exposure
from finetune_operator.traffic import Backend, Structure
from finetune_operator.workloads.run import Waiting

from tests.unit.operator.helpers import (
    BY_HEADER,
    STAMP,
    condition,
    draft,
    edit,
    good_outcomes,
    make_finetune,
    make_observed,
    make_spec,
    status_of,
)
from tests.unit.operator.world import HandClock, Operator, World, run

OWNER = Owner("ml", "bot", "uid-bot")
HOST = {"className": "nginx", "host": "bot.example.com"}
BY_INGRESS = {"expose": {"ingress": HOST}}
BY_ROUTE = {
    "expose": {"httpRoute": {"parentRefs": [{"name": "gw", "namespace": "infra"}], "hostnames": ["bot.example.com", "b.example.com"]}}
}
SCALED = {"autoscaling": {"maxReplicas": 2, "metric": {"name": "m", "averageValue": "1"}}}


def built(**serving: Any) -> Manifest:
    spec = load_spec({"metadata": {"name": "bot"}, "spec": make_spec(serving=serving)}).serving
    assert spec is not None
    assert spec.expose is not None
    return exposure.child(OWNER, spec, spec.expose)


def test_an_ingress_leads_the_openai_api_to_the_routers() -> None:
    made = built(expose={"ingress": {**HOST, "tlsSecretName": "bot-tls"}})
    backend = {"service": {"name": names.users_service("bot"), "port": {"number": 80}}}
    assert (made["apiVersion"], made["kind"], made["metadata"]["name"]) == ("networking.k8s.io/v1", "Ingress", "bot")
    assert made["metadata"]["ownerReferences"] == [OWNER.reference()]
    assert made["spec"] == {
        "ingressClassName": "nginx",
        "rules": [{"host": "bot.example.com", "http": {"paths": [{"path": "/v1", "pathType": "Prefix", "backend": backend}]}}],
        "tls": [{"hosts": ["bot.example.com"], "secretName": "bot-tls"}],
    }


def test_an_http_route_leads_there_and_is_more_patient_than_the_routers() -> None:
    made = built(**BY_ROUTE)
    assert (made["apiVersion"], made["kind"], made["metadata"]["name"]) == ("gateway.networking.k8s.io/v1", "HTTPRoute", "bot")
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
        "backendRefs": [{"name": names.users_service("bot"), "port": 80}],
        "timeouts": {"request": "610s"},
    }
    assert REQUEST_SECONDS < 610
    hostnames = ["bot.example.com", "b.example.com"]
    assert made["spec"] == {"parentRefs": [{"name": "gw", "namespace": "infra"}], "hostnames": hostnames, "rules": [rule]}


@pytest.mark.parametrize("expose", [BY_INGRESS, BY_ROUTE], ids=["Ingress", "HTTPRoute"])
def test_behind_tls_of_the_routers_it_leads_to_their_port(expose: dict[str, Any]) -> None:
    assert "443" in str(built(**expose, tls={"secretName": "s"})["spec"]["rules"])


def test_whatever_is_asked_for_no_more_shows_in_the_digest() -> None:
    asked = [
        HOST,
        {**HOST, "annotations": {"cert-manager.io/issuer": "ca"}},
        {**HOST, "annotations": {"cert-manager.io/issuer": "other"}},
        {**HOST, "tlsSecretName": "s"},
    ]
    digests = [built(expose={"ingress": ingress})["metadata"]["annotations"][names.MANIFEST] for ingress in asked]
    assert len(set(digests)) == len(digests)
    assert digests[0] == built(**BY_INGRESS)["metadata"]["annotations"][names.MANIFEST]


@pytest.mark.parametrize(
    ("expose", "url"),
    [
        (BY_INGRESS["expose"], "http://bot.example.com/v1"),
        ({"ingress": {**HOST, "tlsSecretName": "s"}}, "https://bot.example.com/v1"),
        ({"ingress": HOST, "scheme": "https"}, "https://bot.example.com/v1"),
        (BY_ROUTE["expose"], "http://bot.example.com/v1"),
        ({**BY_ROUTE["expose"], "scheme": "https"}, "https://bot.example.com/v1"),
    ],
)
def test_the_url_is_what_users_call(expose: dict[str, Any], url: str) -> None:
    assert exposure.url(Expose.model_validate(expose)) == url


def test_the_charts_usual_annotations_are_enough_for_the_example() -> None:
    root = Path(__file__).resolve().parents[3]
    asked = yaml.safe_load((root / "examples" / "support-labels" / "exposed.yaml").read_text())["spec"]["serving"]["expose"]["ingress"]
    let_through = yaml.safe_load((root / "charts" / "finetune-operator" / "values.yaml").read_text())["expose"]["ingressAnnotations"]
    assert set(asked["annotations"]) <= set(let_through)


def ingress(**status: Any) -> Manifest:
    return {"metadata": {"name": "bot", "namespace": "ml"}, "spec": {"ingressClassName": "nginx"}, "status": status}


def test_an_ingress_is_exposed_once_it_has_an_address() -> None:
    assert exposures.read(INGRESS, None) == Exposure()
    assert exposures.read(INGRESS, ingress()).status == exposures.read(INGRESS, ingress(loadBalancer={})).status == "Unknown"
    assert "class nginx" in exposures.read(INGRESS, ingress()).message
    for address in ({"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}):
        seen = exposures.read(INGRESS, ingress(loadBalancer={"ingress": [address]}))
        assert (seen.there, seen.status, seen.reason) == (True, "True", "Addressed")
        assert next(iter(address.values())) in seen.message


GW, LISTENER = {"name": "gw", "namespace": "infra"}, {"name": "local", "sectionName": "web"}


def answer(ref: dict[str, Any], accepted: str, resolved: str = "True", generation: int = 2) -> dict[str, Any]:
    said = [("Accepted", accepted, "NotAllowedByListeners"), ("ResolvedRefs", resolved, "BackendNotFound")]
    return {
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", **ref},
        "conditions": [
            {"type": t, "status": s, "reason": reason if s == "False" else t, "message": "words", "observedGeneration": generation}
            for t, s, reason in said
        ],
    }  # fmt: skip


# what the Gateways answered → status and reason of Exposed
ANSWERS: dict[str, tuple[list[dict[str, Any]], tuple[str, str]]] = {
    "nobody": ([], ("Unknown", "NoGateway")),
    "one of two": ([answer(GW, "True")], ("Unknown", "NoGateway")),
    "both take it": ([answer(GW, "True"), answer({**LISTENER, "namespace": "ml"}, "True")], ("True", "Accepted")),
    "one refuses it": ([answer(GW, "True"), answer(LISTENER, "False")], ("False", "NotAllowedByListeners")),
    "the Service is not found": ([answer(GW, "True", "False"), answer(LISTENER, "True")], ("False", "BackendNotFound")),
    "what it was before": ([answer(GW, "False", generation=1), answer(LISTENER, "True")], ("Unknown", "NoGateway")),
    "another Gateway of that name": ([answer({"name": "gw"}, "True"), answer(LISTENER, "True")], ("Unknown", "NoGateway")),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_route_is_exposed_once_each_gateway_has_taken_it(case: str) -> None:
    parents, expected = ANSWERS[case]
    meta = {"name": "bot", "namespace": "ml", "generation": 2}
    seen = exposures.read(HTTP_ROUTE, {"metadata": meta, "spec": {"parentRefs": [GW, LISTENER]}, "status": {"parents": parents}})
    assert (seen.status, seen.reason) == expected
    assert seen.there


def of(world: World, kind: Kind) -> list[str]:
    return [o["metadata"]["name"] for o in world.api.all(kind)]


def said(world: World) -> tuple[str, str]:
    found = condition(status_of(world), c.EXPOSED)
    return found.get("status", ""), found.get("reason", "")


async def live(**serving: Any) -> World:
    world = World(outcomes=good_outcomes())
    world.api.put(FINETUNE, make_finetune(serving=serving))
    await run(world)
    assert status_of(world)["phase"] == "Live"
    return world


@pytest.mark.parametrize("kill", ["never", "every"])
async def test_it_is_there_once_users_are_served_and_goes_with_the_field(kill: str) -> None:
    world = World(outcomes=good_outcomes())
    world.api.put(FINETUNE, make_finetune(serving=BY_INGRESS))
    await run(world, lambda s: s.get("phase") == "Training", kill=kill)
    assert (of(world, INGRESS), said(world)) == ([], ("False", "NotYet"))
    await run(world, kill=kill)
    assert (of(world, INGRESS), said(world)) == (["bot"], ("Unknown", "NoAddress"))
    assert status_of(world)["url"] == "http://bot.example.com/v1"
    assert condition(status_of(world), c.READY)["status"] == "True"

    edit(world, serving=BY_ROUTE)
    await run(world, kill=kill)
    assert (of(world, INGRESS), of(world, HTTP_ROUTE), said(world)) == ([], ["bot"], ("Unknown", "NoGateway"))
    edit(world, serving={})
    await run(world, kill=kill)
    assert (of(world, INGRESS), of(world, HTTP_ROUTE), said(world)) == ([], [], ("", ""))
    assert "url" not in status_of(world)
    assert "extraKinds" not in status_of(world)
    assert world.api.births["Ingress", "bot"] == world.api.births["HTTPRoute", "bot"] == 1


async def test_a_field_that_went_while_the_operator_was_away_is_heard_of() -> None:
    world = await live(**BY_ROUTE)
    edit(world, serving={})
    await run(world, start=Operator(world))
    assert of(world, HTTP_ROUTE) == []


async def test_what_others_change_is_set_right_and_what_they_delete_made_again() -> None:
    world = await live(**BY_INGRESS)
    found = world.api.store[INGRESS, "ml", "bot"]
    world.api.change(INGRESS, found, {**found, "spec": {**found["spec"], "rules": []}})
    await run(world)
    assert world.api.store[INGRESS, "ml", "bot"]["spec"] == found["spec"]
    world.api.remove(INGRESS, "ml", "bot")
    await run(world)
    assert of(world, INGRESS) == ["bot"]


async def run_out(operator: Operator) -> None:
    """Until nothing but what lacks is waited for."""
    while await operator.cycle() != 50.0:
        operator.world.turn()
        operator.world.clock.seconds += 1


async def test_without_the_gateway_api_all_else_goes_on_and_it_is_made_once_that_is_there() -> None:
    world = World(outcomes=good_outcomes())
    world.lacks[HTTP_ROUTE] = lacks = Waiting(c.GATEWAY_API_MISSING, "serving.expose.httpRoute: the cluster knows no HTTPRoute")
    world.api.put(FINETUNE, make_finetune(serving=BY_ROUTE))
    operator = await run(world, lambda s: s.get("phase") == "Live")
    assert (of(world, HTTP_ROUTE), said(world)) == ([], ("False", c.GATEWAY_API_MISSING))
    ready = condition(status_of(world), c.READY)
    assert (ready["status"], ready["reason"]) == ("False", c.GATEWAY_API_MISSING)
    assert ready["message"].startswith(lacks.message)
    assert [e["message"] for e in world.api.all(kinds.EVENT) if e["reason"] == c.GATEWAY_API_MISSING] == [lacks.message]

    await run_out(operator)
    del world.lacks[HTTP_ROUTE]
    assert (await operator.cycle(), said(world)) == (1.0, ("False", "NotYet")), "no watch tells what the operator itself does"
    assert (await operator.cycle(), said(world)) == (None, ("Unknown", "NoGateway"))
    assert (of(world, HTTP_ROUTE), condition(status_of(world), c.READY)["status"]) == (["bot"], "True")


async def test_a_right_that_is_taken_away_leaves_what_was_made_and_it_is_not_forgotten() -> None:
    world = await live(**BY_INGRESS)
    world.lacks[INGRESS] = Waiting(c.EXPOSURE_FORBIDDEN, "no right")
    edit(world, serving={})
    operator = await run(world, lambda s: "url" not in s)
    assert await operator.cycle() == 50.0
    assert (of(world, INGRESS), status_of(world)["extraKinds"]) == (["bot"], ["Ingress"])
    del world.lacks[INGRESS]
    await run(world, start=operator)
    assert (of(world, INGRESS), "extraKinds" in status_of(world)) == ([], False)


async def test_an_autoscaler_that_cannot_be_looked_for_is_not_forgotten_either() -> None:
    world = await live(**SCALED)
    world.lacks[kinds.HPA] = Waiting(c.REFUSED, "cannot be listed")
    edit(world, serving={})
    operator = Operator(world)
    operator.late = {kinds.HPA: 100}  # as without a watch
    for _ in range(3):
        assert await operator.cycle() == 50.0
    assert (len(of(world, kinds.HPA)), status_of(world)["extraKinds"]) == (1, ["HorizontalPodAutoscaler"])
    del world.lacks[kinds.HPA]
    operator.late = {}
    await run(world, start=operator)
    assert (of(world, kinds.HPA), "extraKinds" in status_of(world)) == ([], False)


async def test_an_annotation_that_the_administrator_does_not_let_through_is_named() -> None:
    snippet = "nginx.ingress.kubernetes.io/configuration-snippet"
    world = World(outcomes=good_outcomes())
    asked = {"cert-manager.io/issuer": "ca", snippet: "x"}
    world.api.put(FINETUNE, make_finetune(serving={"expose": {"ingress": {**HOST, "annotations": asked}}}))
    operator = await run(world, lambda s: s.get("phase") == "Live")
    assert (of(world, INGRESS), said(world)) == ([], ("False", c.ANNOTATION_REFUSED))
    message = condition(status_of(world), c.READY)["message"]
    assert f"serving.expose.ingress.annotations: the operator's setting expose.ingressAnnotations does not list {snippet}:" in message

    edit(world, serving={"expose": {"ingress": {**HOST, "annotations": {"cert-manager.io/issuer": "ca"}}}})
    await run(world, start=operator)
    made = world.api.store[INGRESS, "ml", "bot"]["metadata"]["annotations"]
    assert (set(made), said(world)) == ({"cert-manager.io/issuer", names.MANIFEST}, ("Unknown", "NoAddress"))


async def test_a_refusal_of_the_api_server_is_told_and_what_serves_goes_on() -> None:
    world = World(outcomes=good_outcomes())
    world.api.refuses = lambda kind, _: kind is INGRESS
    world.api.put(FINETUNE, make_finetune(serving=BY_INGRESS))
    await run(world, lambda s: s.get("phase") == "Live" and s.get("reason") == c.REFUSED)
    assert said(world) == ("False", c.REFUSED)
    assert "url" not in status_of(world)


@pytest.mark.parametrize("lacks", [c.GATEWAY_API_MISSING, c.EXPOSURE_FORBIDDEN])
async def test_a_way_in_stays_until_the_other_one_that_is_asked_for_is_there(lacks: str) -> None:
    world = await live(**BY_INGRESS)
    world.lacks[HTTP_ROUTE] = Waiting(lacks, "no HTTPRoutes")
    edit(world, serving=BY_ROUTE)
    operator = await run(world, lambda s: s.get("reason") == lacks)
    for _ in range(5):
        await operator.cycle()
    assert (of(world, INGRESS), of(world, HTTP_ROUTE), said(world)) == (["bot"], [], ("False", lacks))
    assert ("url" in status_of(world), status_of(world)["extraKinds"]) == (False, ["Ingress"])
    del world.lacks[HTTP_ROUTE]
    before = len(world.api.writes)
    await run(world, start=operator)
    assert (of(world, INGRESS), of(world, HTTP_ROUTE)) == ([], ["bot"])
    done = [verb for verb, kind, _ in world.api.writes[before:] if kind in ("Ingress", "HTTPRoute")]
    assert (done[0], done[-1]) == ("create", "delete"), "at no moment there was none"


async def test_a_way_in_that_is_refused_leaves_the_one_before_it() -> None:
    world = await live(**BY_INGRESS)
    world.api.refuses = lambda kind, _: kind is HTTP_ROUTE
    edit(world, serving=BY_ROUTE)
    operator = await run(world, lambda s: s.get("reason") == c.REFUSED)
    assert (of(world, INGRESS), of(world, HTTP_ROUTE), said(world)) == (["bot"], [], ("False", c.REFUSED))
    world.api.refuses = lambda *_: False
    await run(world, start=operator)
    assert (of(world, INGRESS), of(world, HTTP_ROUTE), said(world)) == ([], ["bot"], ("Unknown", "NoGateway"))


# what the API server answers to writes of the kinds that few need
FAILS: dict[str, errors.ClusterError] = {
    "a webhook that is away": errors.Unavailable("500 failed calling webhook"),
    "a verb that is not served": errors.ClusterError("405"),
    "a kind that is gone": errors.NotFound("404"),
    "a policy": errors.Forbidden("403"),
}


@pytest.mark.parametrize("case", FAILS)
async def test_what_fails_of_the_kinds_that_few_need_holds_nothing_else_up(case: str) -> None:
    world = World(outcomes=good_outcomes())
    create, tried = world.api.create, []

    async def failing(kind: Kind, obj: Manifest) -> Manifest:
        if kind in kinds.EXTRAS:
            tried.append(kind)
            raise FAILS[case]
        return await create(kind, obj)

    world.api.create = failing  # type: ignore[method-assign,assignment]
    world.api.put(FINETUNE, make_finetune(serving={**BY_INGRESS, **SCALED}))
    operator = await run(world, lambda s: s.get("phase") == "Live")
    assert await operator.cycle() == 15.0
    before = tried.count(INGRESS)
    for _ in range(7):
        world.clock.seconds += 2
        await operator.cycle()
    assert tried.count(INGRESS) - before < 2, "a webhook that is away is not waited for in each cycle"
    ready = condition(status_of(world), c.READY)
    assert (ready["status"], ready["reason"], said(world)) == ("False", c.REFUSED, ("False", c.REFUSED))
    assert str(FAILS[case]) in ready["message"]
    world.api.create = create  # type: ignore[method-assign]
    await run(world, start=operator)
    assert (of(world, INGRESS), len(of(world, kinds.HPA)), condition(status_of(world), c.READY)["status"]) == (["bot"], 1, "True")


async def test_a_way_in_that_cannot_be_removed_holds_nothing_up() -> None:
    world = await live(**BY_INGRESS)
    delete = world.api.delete

    async def failing(kind: Kind, *where: str, **how: Any) -> None:
        if kind is INGRESS:
            raise errors.Unavailable("500 failed calling webhook")
        await delete(kind, *where, **how)

    world.api.delete = failing  # type: ignore[method-assign,assignment]
    edit(world, serving={})
    operator = await run(world, lambda s: s.get("reason") == c.REFUSED)
    world.api.delete = delete  # type: ignore[method-assign]
    await run(world, start=operator)
    assert (of(world, INGRESS), "extraKinds" in status_of(world)) == ([], False)


async def test_somebody_elses_change_in_between_ends_the_cycle_for_a_way_in_too() -> None:
    world = await live(**BY_INGRESS)
    apply = world.api.apply

    async def conflicting(kind: Kind, obj: Manifest, **rest: Any) -> Manifest:
        if kind is INGRESS:
            raise errors.Conflict("409")
        return await apply(kind, obj, **rest)

    world.api.apply = conflicting  # type: ignore[method-assign,assignment]
    edit(world, serving={"expose": {"ingress": {**HOST, "host": "other.example.com"}}})
    with pytest.raises(errors.Conflict):
        await Operator(world).cycle()


@pytest.mark.parametrize("unexposed", [True, False], ids=["what lacks", "what was refused"])
def test_a_missing_way_in_hides_no_root_cause(unexposed: bool) -> None:
    o = make_observed(changes={"serving": BY_ROUTE})
    waits = Waiting(c.ANNOTATION_REFUSED, "an annotation")
    decided, refused = (waits, None) if unexposed else (None, waits)
    for phase, expected in ((c.REJECTED, c.GUARD_FAILED), (c.PAUSED, c.GUARD_FAILED), (c.LIVE, c.ANNOTATION_REFUSED)):
        d = replace(draft(o).block(phase, "words", reason=c.GUARD_FAILED), routing=ROUTED, unexposed=decided)
        found = status.compute(o, d, None, refused)
        facts = {x.type: (x.status, x.reason) for x in found.conditions}
        assert (found.reason, facts[c.READY]) == (expected, ("False", expected)), phase
        assert facts[c.EXPOSED] == ("False", c.ANNOTATION_REFUSED)
        assert facts.get(c.STALLED, ("True", c.GUARD_FAILED)) == ("True", c.GUARD_FAILED)


ROUTED = Routing(Structure(Backend("a", "bot-a", "r1"), None, "salt", BY_HEADER), 0)
LACKS = Waiting(c.GATEWAY_API_MISSING, "no HTTPRoutes")


def decided(serving: dict[str, Any], *, status: dict[str, Any] | None = None, **seen: Any) -> Draft:
    """What comes of a FineTune that serves."""
    o = make_observed(changes={"serving": serving}, status=status, **seen)
    return decide_exposure.exposed(o, replace(draft(o), routing=ROUTED))


def saying(type_: str, reason: str) -> dict[str, Any]:
    return {"conditions": [Condition.model_validate({"type": type_, "status": "False", "reason": reason, "lastTransitionTime": STAMP})]}


def test_what_lacks_is_told_once_and_looked_for_again_in_a_minute() -> None:
    lacking = {"HTTPRoute": Exposure(missing=LACKS)}
    told = Note("Warning", LACKS.reason, LACKS.message)
    first = decided(BY_ROUTE, exposures=lacking)
    assert (first.exposed, first.unexposed, first.requeue, first.notes) == (False, LACKS, 50.0, (told,))
    assert decided(BY_ROUTE, exposures=lacking, status=saying(c.EXPOSED, LACKS.reason)).notes == ()
    assert decided(BY_ROUTE, exposures=lacking, status=saying(c.EXPOSED, "NotYet")).notes == (told,)
    assert decided(BY_ROUTE, exposures=lacking, status=saying(c.READY, LACKS.reason)).notes == (told,)


# what the setting lists → which of these two are refused
ADMITTED: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "both by name": (("a.io/x", "b.io/y"), []),
    "neither": ((), ["a.io/x", "b.io/y"]),
    "one by name": (("b.io/y",), ["a.io/x"]),
    "one by how it begins": (("a.io/*",), ["b.io/y"]),
    "both by how they begin": (("b.*", "a.*"), []),
    "a name is no beginning": (("a.io/", "b.io"), ["a.io/x", "b.io/y"]),
    "nor is another beginning": (("a.io/y*", "b.io/x*"), ["a.io/x", "b.io/y"]),
    "everything": (("*",), []),
}


@pytest.mark.parametrize("case", ADMITTED)
def test_annotations_are_let_through_by_name_or_by_how_they_begin(case: str) -> None:
    admitted, refused = ADMITTED[case]
    asked = {"expose": {"ingress": {**HOST, "annotations": {"b.io/y": "1", "a.io/x": "1"}}}}
    found = decided(asked, ingress_annotations=admitted)
    assert found.exposed is not bool(refused)
    assert [name for name in ("a.io/x", "b.io/y") if found.unexposed and name in found.unexposed.message.partition("list ")[2]] == refused
    assert found.unexposed is None or found.unexposed.reason == c.ANNOTATION_REFUSED


def remembered(serving: dict[str, Any], known: list[str] | None, *, live: bool = True, **seen: Any) -> list[str] | None:
    o = make_observed(changes={"serving": serving}, status={"extra_kinds": known}, **seen)
    d = replace(draft(o), routing=ROUTED if live else None, arms=(ArmWanted("a", "r1"),) if live else ())
    return extras_rule.remembered(o, decide_exposure.exposed(o, d)).status.extra_kinds


FORBIDDEN = Waiting(c.EXPOSURE_FORBIDDEN, "no right")
REMEMBERED: dict[str, tuple[list[str] | None, list[str] | None]] = {
    "nothing": (remembered({}, None), None),
    "what is to be made": (remembered(BY_INGRESS, None), ["Ingress"]),
    "not before users are served": (remembered({**BY_INGRESS, **SCALED}, None, live=False), None),
    "several, in order": (remembered({**BY_INGRESS, **SCALED}, None), ["HorizontalPodAutoscaler", "Ingress"]),
    "what is still there": (remembered({}, ["Ingress"], exposures={"Ingress": Exposure(there=True)}), ["Ingress"]),
    "what is gone": (remembered({}, ["Ingress"], exposures={"Ingress": Exposure()}), None),
    "what may not be looked for": (remembered({}, ["Ingress"], exposures={"Ingress": Exposure(missing=FORBIDDEN)}), ["Ingress"]),
    "what was never made": (remembered(BY_INGRESS, None, exposures={"Ingress": Exposure(missing=FORBIDDEN)}), None),
    "what cannot be there": (remembered({}, ["HTTPRoute"], exposures={"HTTPRoute": Exposure(missing=LACKS)}), None),
    "an autoscaler that is still there": (remembered({}, ["HorizontalPodAutoscaler"], autoscaled=True), ["HorizontalPodAutoscaler"]),
    "somebody else's autoscaler": (remembered({"autoscaling": {"maxReplicas": 2, "autoscaler": "External"}}, None), None),
}


@pytest.mark.parametrize("case", REMEMBERED)
def test_kinds_are_remembered_from_before_one_is_made_until_none_is_there(case: str) -> None:
    found, expected = REMEMBERED[case]
    assert found == expected


@pytest.mark.parametrize(
    ("serving", "known", "expected"),
    [
        ({}, None, []),
        (BY_INGRESS, None, [INGRESS]),
        (BY_ROUTE, ["Ingress"], [INGRESS, HTTP_ROUTE]),
        (SCALED, None, [kinds.HPA]),
        ({}, ["HorizontalPodAutoscaler"], [kinds.HPA]),
    ],
)
def test_no_kind_is_looked_for_that_nobody_asked_for(serving: dict[str, Any], known: list[str] | None, expected: list[Kind]) -> None:
    assert extras_rule.looked_for(make_observed(changes={"serving": serving}).spec, known) == expected


class Lists:
    """An API server that lists a kind, or refuses to; while it is `slow`, not before it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Kind, str | None]] = []
        self.refuses: errors.ClusterError | None = None
        self.slow: asyncio.Event | None = None
        self.clock = HandClock()

    def extras(self, *, everywhere: bool = True) -> Extras:
        return Extras(self.fill, self.clock.monotonic, everywhere=everywhere)

    async def fill(self, kind: Kind, scope: str | None) -> None:
        self.asked.append((kind, scope))
        await asyncio.sleep(0)
        if self.slow:
            await self.slow.wait()
        if self.refuses:
            raise self.refuses


async def test_a_kind_is_listed_and_watched_from_when_the_first_one_asks() -> None:
    lists = Lists()
    extras = lists.extras()
    assert not extras.watched(INGRESS, None)
    assert await asyncio.gather(*(extras.missing(INGRESS, namespace) for namespace in ("a", "b"))) == [None, None]
    assert extras.watched(INGRESS, None)
    assert not extras.watched(HTTP_ROUTE, None)
    assert lists.asked == [(INGRESS, None)]


async def test_with_rights_in_some_namespaces_it_is_there_alone() -> None:
    lists = Lists()
    extras = lists.extras(everywhere=False)
    assert await extras.missing(INGRESS, "a") is None
    assert (extras.watched(INGRESS, "a"), extras.watched(INGRESS, "b"), lists.asked) == (True, False, [(INGRESS, "a")])


@pytest.mark.parametrize(
    ("kind", "error", "reason", "words"),
    [
        (HTTP_ROUTE, errors.NotFound("404"), c.GATEWAY_API_MISSING, ["serving.expose.httpRoute:", HTTP_ROUTE.api_version, "the CRDs"]),
        (HTTP_ROUTE, errors.Forbidden("403"), c.EXPOSURE_FORBIDDEN, ["serving.expose.httpRoute:", "expose.httpRoute=true"]),
        (INGRESS, errors.Forbidden("403"), c.EXPOSURE_FORBIDDEN, ["serving.expose.ingress:", "expose.ingress=true"]),
        (INGRESS, errors.Unavailable("504"), c.REFUSED, ["serving.expose.ingress:", "kind Ingress cannot be listed: 504"]),
        (kinds.HPA, errors.ClusterError("405"), c.REFUSED, ["serving.autoscaling:", "cannot be listed: 405"]),
    ],
)  # fmt: skip
async def test_what_is_lacking_is_told_with_its_field_and_asked_for_again(
    kind: Kind, error: errors.ClusterError, reason: str, words: list[str]
) -> None:
    lists = Lists()
    extras, lists.refuses = lists.extras(), error
    found = await extras.missing(kind, "ml")
    assert found is not None
    assert found.reason == reason
    assert [word for word in words if word not in found.message] == []
    assert not extras.watched(kind, None)
    lists.refuses = None
    assert await extras.missing(kind, "other") == found, "of many FineTunes at once, one asks"
    assert len(lists.asked) == 1
    lists.clock.seconds += 10
    assert await extras.missing(kind, "ml") is None
    assert extras.watched(kind, None)


async def test_what_has_gone_is_asked_for_again() -> None:
    lists = Lists()
    extras = lists.extras(everywhere=False)
    for namespace in ("a", "b"):
        await extras.missing(HTTP_ROUTE, namespace)
    extras.forget("a")
    assert (extras.watched(HTTP_ROUTE, "a"), extras.watched(HTTP_ROUTE, "b")) == (False, True)
    lists.refuses = errors.NotFound("404")
    assert await extras.missing(HTTP_ROUTE, "a") is not None


async def test_a_list_that_takes_long_is_waited_for_by_nobody_who_need_not() -> None:
    lists = Lists()
    extras, lists.refuses = lists.extras(), errors.Unavailable("504")
    refused = await extras.missing(INGRESS, "a")
    lists.clock.seconds += 11
    lists.refuses, lists.slow = None, asyncio.Event()
    asking = asyncio.create_task(extras.missing(INGRESS, "a"))
    while len(lists.asked) < 2:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await extras.missing(INGRESS, "b") == refused, "as was told last"
        other = asyncio.create_task(extras.missing(HTTP_ROUTE, "b"))
        while len(lists.asked) < 3:
            await asyncio.sleep(0)
    lists.slow.set()
    assert await asyncio.gather(asking, other) == [None, None]
    assert await extras.missing(INGRESS, "a") is None
    assert len(lists.asked) == 3, "what is watched is not listed"
