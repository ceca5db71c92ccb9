"""The routers' manifests and documents. What Envoy makes of them: tests/router."""

from __future__ import annotations

import json
from typing import Any

from finetune_operator import names, tokens
from finetune_operator.api.fields import REDEPLOY, extract
from finetune_operator.api.spec import Spec
from finetune_operator.build import access, drain, exposure_log, identity, router
from finetune_operator.build.envoy import REQUEST_SECONDS
from finetune_operator.build.exposure_log import Exposures
from finetune_operator.build.pods import Owner
from finetune_operator.traffic import Backend, Source, Structure

from tests.unit.operator.helpers import BY_HEADER, make_spec

OWNER = Owner("ml", "bot", "uid-bot")
OLD, NEW = Backend("aaa11111", "bot-aaa11111", "r1"), Backend("bbb22222", "bot-bbb22222", "r2", "/health")
SPLIT = Structure(OLD, NEW, "salt", BY_HEADER)
SPEC = Spec.model_validate(make_spec())
JWKS = tokens.jwks(tokens.generate_key())


def built(structure: Structure = SPLIT, weight: int = 10, spec: Spec = SPEC) -> dict[str, Any]:
    return {kind.kind: manifest for kind, manifest in router.children(OWNER, spec, "envoy:1", structure, weight, JWKS)}


def document(name: str, structure: Structure = SPLIT, weight: int = 10) -> list[dict[str, Any]]:
    resources: list[dict[str, Any]] = json.loads(built(structure, weight)["ConfigMap"]["data"][name])["resources"]
    return resources


def test_the_same_values_make_the_same_bytes() -> None:
    assert json.dumps(built(), sort_keys=True) == json.dumps(built(), sort_keys=True)


def test_a_weight_changes_the_routes_alone_and_never_the_pods() -> None:
    before, after = built(weight=10), built(weight=50)
    assert {name for name, text in before["ConfigMap"]["data"].items() if text != after["ConfigMap"]["data"][name]} == {"rds.json"}
    del before["ConfigMap"], after["ConfigMap"]
    assert before == after


def test_a_new_structure_restarts_no_router() -> None:
    assert built()["Deployment"] == built(Structure(NEW, None, "salt-2", BY_HEADER), 0)["Deployment"]


def test_everything_belongs_to_the_finetune() -> None:
    for manifest in built().values():
        assert manifest["metadata"]["ownerReferences"] == [OWNER.reference()]
        assert manifest["metadata"]["namespace"] == "ml"
    assert built()["Service"]["metadata"]["name"] == names.users_service("bot")


def test_routers_run_restricted_without_a_token_and_spread() -> None:
    spec = built()["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 2
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["command"] == ["envoy"]
    assert all(v["configMap"]["name"] == "bot-router" for v in pod["volumes"])


def test_a_router_that_goes_asks_itself_whether_it_may_and_has_the_time_of_the_longest_answer() -> None:
    pod = built()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hook = container["lifecycle"]["preStop"]["httpGet"]
    assert (hook["path"], hook["port"]) == ("/drain", "drain"), "a sleep ends too early or too late"
    assert pod["terminationGracePeriodSeconds"] > drain.LEAST_SECONDS + REQUEST_SECONDS
    text = container["args"][container["args"].index("--config-yaml") + 1]
    assert "$" not in text, "the kubelet puts variables there"
    bootstrap = json.loads(text)["static_resources"]
    (listener,) = bootstrap["listeners"]
    (port,) = (p["containerPort"] for p in container["ports"] if p["name"] == hook["port"])
    assert listener["address"]["socket_address"]["port_value"] == port
    (asked, answered) = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    (header,) = hook["httpHeaders"]
    for route in (asked, answered):
        assert route["match"]["headers"] == [{"name": header["name"], "string_match": {"exact": header["value"]}}]
    assert header["value"] == OWNER.uid
    assert asked["match"]["path"] == hook["path"]
    asks = asked["route"]
    assert asks["cluster"] in {c["name"] for c in bootstrap["clusters"]}
    assert (asks["timeout"], asks["idle_timeout"]) == ("0s", "0s"), "it waits for as long as the grace lasts"
    assert answered["direct_response"]["status"] in asks["retry_policy"]["retriable_status_codes"], "a script that fails ends no hook"


def test_what_a_router_asks_itself_is_in_its_pod_so_that_no_document_takes_it_away() -> None:
    assert [name for name, text in built()["ConfigMap"]["data"].items() if "drain" in text] == []


def test_the_canary_comes_first_and_the_shares_sum_to_100() -> None:
    for weight in (0, 10, 50, 100):
        (routes,) = document("rds.json", weight=weight)
        split = [
            r["route"]["weighted_clusters"]["clusters"]
            for r in routes["virtual_hosts"][0]["routes"]
            if "weighted_clusters" in r.get("route", {})
        ]
        assert len(split) == 3
        for clusters in split:
            assert [c["weight"] for c in clusters] == [weight, 100 - weight]
            assert clusters[0]["name"].endswith(NEW.arm)


def test_every_cluster_that_a_route_names_is_in_the_document() -> None:
    for structure in (SPLIT, Structure(OLD, None, "s", (*BY_HEADER, Source(header="x-tenant")))):
        known = {c["name"] for c in document("cds.json", structure)}
        text = json.dumps(document("rds.json", structure))
        named = {f"{kind}_{b.arm}" for kind in ("infer", "other") for b in (OLD, NEW) if f'"{kind}_{b.arm}"' in text} | {"anonymous"}
        assert named == known


def test_what_is_pushed_are_the_keys_that_the_routes_read() -> None:
    (routes,) = document("rds.json")
    read = set()
    for route in routes["virtual_hosts"][0]["routes"]:
        if split := route.get("route", {}).get("weighted_clusters"):
            read |= {f"{split['runtime_key_prefix']}.{c['name']}" for c in split["clusters"]}
    assert set(router.runtime_values(SPLIT, 50)) == read
    assert sorted(router.runtime_values(SPLIT, 30).values()) == [30, 30, 70, 70]


def test_arms_are_probed_where_they_say_that_they_are_ready() -> None:
    probed = {c["name"]: c["health_checks"][0]["http_health_check"]["path"] for c in document("cds.json")}
    assert probed["infer_bbb22222"] == "/health"
    assert probed["infer_aaa11111"] == "/readyz"


def test_every_change_of_a_structure_changes_its_version() -> None:
    versions = {
        s.version
        for s in (
            SPLIT,
            Structure(OLD, None, "salt", BY_HEADER),
            Structure(NEW, OLD, "salt", BY_HEADER),
            Structure(OLD, NEW, "salt-2", BY_HEADER),
            Structure(OLD, NEW, "salt", (Source(header="x-tenant"),)),
            Structure(OLD, NEW, "salt", BY_HEADER, rollout="2"),
            Structure(OLD, NEW, "salt", (Source(body_field="x-user-id"),)),
            Structure(OLD, NEW, "salt", (*BY_HEADER, Source(body_field="user"))),
            Structure(OLD, NEW, "salt", (Source(body_field="user"), *BY_HEADER)),
        )
    }
    assert len(versions) == 9


def test_the_documents_are_far_smaller_than_a_config_map_may_be() -> None:
    large = Structure(OLD, NEW, "s" * 64, tuple(Source(header=f"x-identity-header-number-{i}-{'n' * 200}") for i in range(8)))
    assert sum(len(t) for t in built(large)["ConfigMap"]["data"].values()) < 200_000


def test_the_users_service_sends_to_routers_alone() -> None:
    children = built()
    labels = children["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        children["Service"]["spec"]["selector"],
        children["Deployment"]["spec"]["selector"]["matchLabels"],
        children["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
        assert selector[names.COMPONENT] == "router"


def serving(**blocks: Any) -> Spec:
    return Spec.model_validate(make_spec(serving=blocks))


KEYED, ENCRYPTED = serving(apiKeys={"secretName": "bot-keys"}), serving(tls={"secretName": "bot-tls"})


def test_a_secret_is_mounted_and_a_pod_without_it_does_not_start() -> None:
    refs = {"tls": [{"name": "bot-tls", "key": "tls.crt"}], "keys": []}  # a variable has room for 128 KiB alone
    sources: dict[str, dict[str, Any]] = {
        "keys": {"secretName": "bot-keys", "items": [{"key": "keys", "path": "keys"}], "optional": False},
        "tls": {"secretName": "bot-tls", "optional": True},
    }
    for spec, name, folder in ((KEYED, "keys", access.KEYS_FOLDER), (ENCRYPTED, "tls", access.TLS_FOLDER)):
        pod = built(spec=spec)["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "secretKeyRef" in v.get("valueFrom", {})] == refs[name]
        volume = next(v for v in pod["volumes"] if "secret" in v)
        assert volume["secret"] == sources[name]
        assert {"name": volume["name"], "mountPath": folder, "readOnly": True} in container["volumeMounts"]
    assert [v for v in built()["Deployment"]["spec"]["template"]["spec"]["volumes"] if "secret" in v] == []


def test_the_key_of_an_experiments_log_is_a_variable_that_a_pod_waits_for() -> None:
    spec = Spec.model_validate(make_spec(rollout={"experiment": {"weight": 50, "log": {"secretName": "bot-ab"}}}))
    (container,) = built(spec=spec)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["env"][-1] == {
        "name": "FINETUNE_EXPOSURE_KEY",
        "valueFrom": {"secretKeyRef": {"name": "bot-ab", "key": "key", "optional": True}},
    }
    unlogged = Spec.model_validate(make_spec(rollout={"experiment": {"weight": 50}}))
    assert built(spec=unlogged)["Deployment"] == built()["Deployment"]


def test_tls_has_a_port_of_its_own_and_the_service_no_other() -> None:
    made = built(spec=ENCRYPTED)
    assert made["Service"]["spec"]["ports"] == [{"name": "https", "port": 443, "targetPort": "traffic-tls"}]
    assert {"name": "traffic-tls", "containerPort": names.TLS_PORT} in made["Deployment"]["spec"]["template"]["spec"]["containers"][0][
        "ports"
    ]
    assert built()["Service"]["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "traffic"}]
    assert set(made["ConfigMap"]["data"]) - set(built()["ConfigMap"]["data"]) == {"sds.json"}


def test_users_meet_the_same_filters_and_routes_with_tls_and_without() -> None:
    listeners = {r["name"]: r for r in json.loads(built(spec=ENCRYPTED)["ConfigMap"]["data"]["lds.json"])["resources"]}
    plain, encrypted = (listeners[name]["filter_chains"][0] for name in ("traffic", "traffic-tls"))
    assert "transport_socket" not in plain
    del encrypted["transport_socket"]
    manager = encrypted["filters"][0]["typed_config"]
    assert manager.pop("stat_prefix") == "traffic-tls"
    assert {**manager, "stat_prefix": "traffic"} == plain["filters"][0]["typed_config"]


def test_filters_run_only_where_they_are_asked_for() -> None:
    def disabled(spec: Spec, structure: Structure, exposures: Exposures | None = None) -> dict[str, bool]:
        made = {k.kind: m for k, m in router.children(OWNER, spec, "envoy:1", structure, 10, JWKS, exposures)}
        (routes,) = json.loads(made["ConfigMap"]["data"]["rds.json"])["resources"]
        return {name: options.get("disabled", False) for name, options in routes["virtual_hosts"][0]["typed_per_filter_config"].items()}

    reads = Structure(OLD, NEW, "salt", (Source(body_field="user"),))
    none = {access.FILTER: True, identity.FILTER: True, exposure_log.FILTER: True}
    assert disabled(SPEC, SPLIT) == none
    assert disabled(KEYED, SPLIT) == {**none, access.FILTER: False}
    assert disabled(SPEC, reads) == {**none, identity.FILTER: False}
    assert disabled(SPEC, SPLIT, Exposures("a1b2c3d4", 50)) == {**none, exposure_log.FILTER: False}


def test_neither_keys_nor_tls_are_part_of_what_an_arm_is() -> None:
    fields = [
        extract(make_spec(serving=blocks), Spec, REDEPLOY) for blocks in ({}, {"apiKeys": {"secretName": "a"}, "tls": {"secretName": "b"}})
    ]
    assert fields[0] == fields[1]
