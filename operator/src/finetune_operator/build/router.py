"""The routers: Envoy, its documents, and the Service that users call.

The ConfigMap is the durable document (file xDS, a watched directory). Weights are pushed through Envoy's runtime, under a
key prefix of the structure's version, so that a late push to another structure is inert. Of each arm there is one cluster
for inference by users with an identity (what the guards count), one for their other calls; requests without an identity
have a route and a cluster of their own, to stable. Where identities come from: identity.py.

Invariant: routes and clusters may be read in either order. Between two documents a route names only clusters that both have
(the anonymous one has the same name in all and is warmed before it is replaced) or clusters that have no users.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_operator import kinds, names
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.api.spec import Spec
from finetune_operator.build import access, drain, exposure_log, identity, listeners, pods
from finetune_operator.build.envoy import ADMIN_PORT, CONFIG, TYPE, address, endpoints, file, lua_options
from finetune_operator.build.exposure_log import Exposures
from finetune_operator.build.pods import Manifest, Owner
from finetune_operator.build.upstreams import METADATA, arm_cluster, forwarding
from finetune_operator.kinds import Kind
from finetune_operator.traffic import Backend, Structure

REPLICAS: Final = 2
STRUCTURE_PATH: Final = "/.well-known/finetune-structure"
ARM_HEADER: Final = "x-finetune-arm"
REVISION_HEADER: Final = "x-finetune-revision"
INFERENCE: Final = "infer"
OTHER: Final = "other"
ANONYMOUS: Final = "anonymous"
INFERENCE_PATHS: Final = ("/v1/chat/completions", "/v1/completions")
MAX_CONNECTIONS: Final = 50_000
# Bounds of the latency histogram in ms, 10 ms to 600 s, 16 a decade: 15 % apart, finer than any sensible regression limit.
# Two significant digits, as Envoy counts.
LATENCY_BOUNDS: Final = tuple(float(f"{10 ** (1 + i / 16):.1e}") for i in range(77))


def children(
    owner: Owner, spec: Spec, image: str, structure: Structure, weight: int, jwks: Mapping[str, Any], exposures: Exposures | None = None
) -> Iterator[tuple[Kind, Manifest]]:
    """ConfigMap, Deployment, PodDisruptionBudget and the users' Service. `exposures`: of the log of an A/B test."""
    name = names.router(owner.name)
    yield (
        kinds.CONFIGMAP,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": owner.metadata(name, "router"),
            "data": documents(spec.serving, structure, weight, jwks, owner.uid, exposures),
        },
    )
    yield kinds.DEPLOYMENT, _deployment(owner, spec, image)
    yield kinds.PDB, pods.disruption_budget(owner.metadata(name, "router"), _selector(owner))
    yield (
        kinds.SERVICE,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": owner.metadata(names.users_service(owner.name), "router"),
            "spec": {
                "selector": _selector(owner),
                "ports": [access.service_port(spec.serving)],
            },
        },
    )


def documents(
    serving: Serving | None,
    structure: Structure,
    weight: int,
    jwks: Mapping[str, Any],
    audience: str,
    exposures: Exposures | None = None,
) -> dict[str, str]:
    """The files of the watched directory; `weight` is the canary's, in percent."""
    encrypted = {"sds.json": _resources(access.certificates())} if serving and serving.tls else {}
    users = [listeners.users(), *([listeners.encrypted()] if encrypted else [])]
    texts = {
        "lds.json": _resources([*users, listeners.control(jwks, audience), listeners.metrics()]),
        "cds.json": _resources(_clusters(structure)),
        "rds.json": _resources([_routes(serving, structure, weight, exposures)]),
        **encrypted,
    }
    return {name: _text(text) for name, text in texts.items()}


def cluster(kind: str, arm: str) -> str:
    """Name of an arm's cluster: `kind` is INFERENCE or OTHER."""
    return f"{kind}_{arm}"


def runtime_prefix(version: str) -> str:
    """Prefix of the runtime keys of one structure."""
    return f"finetune.{version}"


def runtime_values(structure: Structure, weight: int) -> dict[str, int]:
    """What a push sets: both weights of both hashed routes. Nothing where there is no canary."""
    prefix = runtime_prefix(structure.version)
    shares = _shares(structure, weight) if structure.canary else []
    return {f"{prefix}.{cluster(kind, backend.arm)}": share for kind in (INFERENCE, OTHER) for backend, share in shares}


def _selector(owner: Owner) -> dict[str, str]:
    return {names.NAME: owner.name, names.COMPONENT: "router"}


def _deployment(owner: Owner, spec: Spec, image: str) -> Manifest:
    name, annotations = names.router(owner.name), pods.pod_annotations(spec)
    added = access.container(spec.serving)
    probe = {"httpGet": {"path": "/ready", "port": "metrics"}, "timeoutSeconds": 3}
    container = {
        "name": "envoy",
        "image": image,
        "command": ["envoy"],
        "args": [
            "--config-yaml", _text(_bootstrap(owner.uid)), "--service-cluster", owner.name, "--service-node", "$(POD_NAME)",
            "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning",
        ],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, *added["env"], *exposure_log.key(spec)],
        "ports": [
            {"name": "traffic", "containerPort": names.TRAFFIC_PORT},
            {"name": "control", "containerPort": names.CONTROL_PORT},
            {"name": "metrics", "containerPort": names.ROUTER_METRICS_PORT},
            {"name": drain.PORT_NAME, "containerPort": names.DRAIN_PORT},
            *added["ports"],
        ],
        "readinessProbe": {**probe, "periodSeconds": 1, "failureThreshold": 2},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": drain.pre_stop(owner.uid)},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": pods.RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "config", "mountPath": CONFIG, "readOnly": True}, *added["volumeMounts"]],
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**owner.metadata(name, "router"), "annotations": {names.POD_ANNOTATIONS: ",".join(sorted(annotations))}},
        "spec": {
            "replicas": REPLICAS,
            "revisionHistoryLimit": 0,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": _selector(owner)},
            "template": {
                "metadata": {"labels": names.labels(owner.name, "router"), "annotations": annotations},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pods.RESTRICTED_POD,
                    "terminationGracePeriodSeconds": drain.GRACE_SECONDS,
                    "topologySpreadConstraints": pods.spread(owner, "router"),
                    "containers": [container],
                    "volumes": [{"name": "config", "configMap": {"name": name}}, *access.volumes(spec.serving)],
                    "affinity": pods.affinity(spec),
                    **pods.overrides(spec),  # said also when empty, so that they are taken back
                },
            },
        },
    }


def _bootstrap(uid: str) -> Manifest:
    directory = {"path": CONFIG}
    return {
        "admin": {
            "address": address("127.0.0.1", ADMIN_PORT),
            "allow_paths": [
                {"exact": "/ready"},
                {"exact": "/runtime"},
                {"prefix": "/runtime_modify?"},
                {"prefix": "/stats/prometheus"},
            ],
        },
        "dynamic_resources": {
            "lds_config": file("lds.json", directory),
            "cds_config": file("cds.json", directory),
        },
        "layered_runtime": {"layers": [{"name": "pushed", "admin_layer": {}}]},
        "stats_flush_interval": "1s",  # how old the latency histogram may be
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"prefix": f"cluster.{INFERENCE}_"}, "buckets": [*LATENCY_BOUNDS]},
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{TYPE}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
        "static_resources": {
            "listeners": [listeners.leaving(uid)],
            "clusters": [
                {
                    "name": "admin",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": endpoints("admin", "127.0.0.1", ADMIN_PORT),
                },
                drain.cluster(),
            ],
        },
    }


def _text(document: Manifest) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _resources(resources: list[Manifest]) -> Manifest:
    return {"resources": resources}


def _routes(serving: Serving | None, structure: Structure, weight: int, exposures: Exposures | None) -> Manifest:
    canary = structure.canary.arm if structure.canary else None
    document = {"version": structure.version, "weight": weight, "canary": canary}
    says: Manifest = {
        "match": {"path": STRUCTURE_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": json.dumps(document, sort_keys=True)}},
    }
    routes = [says]
    for header in identity.headers(structure):
        for path in INFERENCE_PATHS:
            routes.append(_hashed(structure, weight, INFERENCE, {"path": path}, header))
        routes.append(_hashed(structure, weight, OTHER, {"prefix": "/"}, header))
    anonymous = {"cluster": ANONYMOUS, **forwarding()}
    routes.append({"match": {"prefix": "/"}, "route": anonymous, "response_headers_to_add": _says_upstream()})
    return {
        "@type": f"{TYPE}.config.route.v3.RouteConfiguration",
        "name": "traffic",
        "virtual_hosts": [
            {
                "name": "users",
                "domains": ["*"],
                "routes": routes,
                "request_headers_to_remove": [identity.USER_HEADER, *access.removed_headers(serving)],
                "typed_per_filter_config": {
                    access.FILTER: lua_options(access.context(serving, STRUCTURE_PATH)),
                    identity.FILTER: lua_options(identity.context(structure)),
                    exposure_log.FILTER: lua_options(exposure_log.context(exposures, structure, INFERENCE_PATHS)),
                },
            }
        ],
    }


def _hashed(structure: Structure, weight: int, kind: str, match: Manifest, header: str) -> Manifest:
    """The split: canary first, the sum is 100, the user's hash decides, so growth is monotone and users stick."""
    salted = {"pattern": {"regex": "^(.*)$"}, "substitution": f"{structure.salt}:\\1"}
    action: Manifest = {"hash_policy": [{"header": {"header_name": header, "regex_rewrite": salted}}], **forwarding()}
    action["weighted_clusters"] = {
        "clusters": [
            {"name": cluster(kind, backend.arm), "weight": share, "response_headers_to_add": _says_arm(backend)}
            for backend, share in _shares(structure, weight)
        ],
        "runtime_key_prefix": runtime_prefix(structure.version),
        "use_hash_policy": True,
    }
    identified = [
        {"name": header, "present_match": True},
        {"name": header, "string_match": {"exact": ""}, "invert_match": True},  # an empty one would be one and the same user
    ]
    post = [{"name": ":method", "string_match": {"exact": "POST"}}] if kind == INFERENCE else []
    return {"match": {**match, "headers": [*identified, *post]}, "route": action}


def _shares(structure: Structure, weight: int) -> list[tuple[Backend, int]]:
    if structure.canary is None:
        return [(structure.stable, 100)]
    return [(structure.canary, weight), (structure.stable, 100 - weight)]


def _says_arm(backend: Backend) -> list[Manifest]:
    return _headers(backend.arm, backend.revision)


def _says_upstream() -> list[Manifest]:
    """The arm of the pod that answered: the anonymous cluster may change a moment before or after its route."""
    return _headers(f"%UPSTREAM_METADATA({METADATA}:arm)%", f"%UPSTREAM_METADATA({METADATA}:revision)%")


def _headers(arm: str, revision: str) -> list[Manifest]:
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in ((ARM_HEADER, arm), (REVISION_HEADER, revision))
    ]


def _clusters(structure: Structure) -> list[Manifest]:
    backends = [b for b in (structure.canary, structure.stable) if b is not None]
    made = [arm_cluster(cluster(kind, b.arm), b) for kind in (INFERENCE, OTHER) for b in backends]
    return [*made, arm_cluster(ANONYMOUS, structure.stable)]
