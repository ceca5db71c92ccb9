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
from finetune_operator.api.spec import Serving, Spec
from finetune_operator.build import access, identity, lua, pods
from finetune_operator.build.pods import Manifest, Owner
from finetune_operator.kinds import Kind
from finetune_operator.tokens import ISSUER
from finetune_operator.traffic import Backend, Structure

CONFIG: Final = "/etc/envoy"
ADMIN_PORT: Final = 9901
REPLICAS: Final = 2
STRUCTURE_PATH: Final = "/.well-known/finetune-structure"
ARM_HEADER: Final = "x-finetune-arm"
REVISION_HEADER: Final = "x-finetune-revision"
INFERENCE: Final = "infer"
OTHER: Final = "other"
ANONYMOUS: Final = "anonymous"
METADATA: Final = "finetune"  # of endpoints: which arm they are
INFERENCE_PATHS: Final = ("/v1/chat/completions", "/v1/completions")
REQUEST_TIMEOUT: Final = "600s"
DRAIN_SECONDS: Final = 30  # a router that is taken away goes on for so long: nobody new comes, answers begun are ended
CONNECTION_SECONDS: Final = 15  # users' connections are renewed after this, so that they leave a draining router by themselves
MAX_CONNECTIONS: Final = 50_000
# Bounds of the latency histogram in ms, 10 ms to 600 s, 16 a decade: 15 % apart, finer than any sensible regression limit.
# Two significant digits, as Envoy counts.
LATENCY_BOUNDS: Final = tuple(float(f"{10 ** (1 + i / 16):.1e}") for i in range(77))
_TYPE: Final = "type.googleapis.com/envoy"


def children(
    owner: Owner, spec: Spec, image: str, structure: Structure, weight: int, jwks: Mapping[str, Any]
) -> Iterator[tuple[Kind, Manifest]]:
    """ConfigMap, Deployment, PodDisruptionBudget and the users' Service."""
    name = names.router(owner.name)
    yield (
        kinds.CONFIGMAP,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": owner.metadata(name, "router"),
            "data": documents(spec.serving, structure, weight, jwks, owner.uid),
        },
    )
    yield kinds.DEPLOYMENT, _deployment(owner, spec, image)
    yield (
        kinds.PDB,
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": owner.metadata(name, "router"),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": _selector(owner)},
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        },
    )
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


def documents(serving: Serving | None, structure: Structure, weight: int, jwks: Mapping[str, Any], audience: str) -> dict[str, str]:
    """The files of the watched directory; `weight` is the canary's, in percent."""
    encrypted = {"sds.json": _resources(access.certificates())} if serving and serving.tls else {}
    users = [_traffic_listener(), *([_tls_listener()] if encrypted else [])]
    texts = {
        "lds.json": _resources([*users, _control_listener(jwks, audience), _metrics_listener()]),
        "cds.json": _resources(_clusters(structure)),
        "rds.json": _resources([_routes(serving, structure, weight)]),
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
    name = names.router(owner.name)
    added = access.container(spec.serving)
    probe = {"httpGet": {"path": "/ready", "port": "metrics"}, "timeoutSeconds": 3}
    container = {
        "name": "envoy",
        "image": image,
        "command": ["envoy"],
        "args": [
            "--config-yaml", _text(_bootstrap()), "--service-cluster", owner.name, "--service-node", "$(POD_NAME)",
            "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning",
        ],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, *added["env"]],
        "ports": [
            {"name": "traffic", "containerPort": names.TRAFFIC_PORT},
            {"name": "control", "containerPort": names.CONTROL_PORT},
            {"name": "metrics", "containerPort": names.ROUTER_METRICS_PORT},
            *added["ports"],
        ],
        "readinessProbe": {**probe, "periodSeconds": 1, "failureThreshold": 2},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}},
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": pods.RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "config", "mountPath": CONFIG, "readOnly": True}, *added["volumeMounts"]],
    }  # fmt: skip
    spread = {
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _selector(owner)},
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": owner.metadata(name, "router"),
        "spec": {
            "replicas": REPLICAS,
            "revisionHistoryLimit": 0,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": _selector(owner)},
            "template": {
                "metadata": {"labels": names.labels(owner.name, "router"), "annotations": pods.pod_annotations(spec)},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pods.RESTRICTED_POD,
                    "terminationGracePeriodSeconds": DRAIN_SECONDS + 20,
                    "topologySpreadConstraints": [spread],
                    "containers": [container],
                    "volumes": [{"name": "config", "configMap": {"name": name}}, *access.volumes(spec.serving)],
                    "affinity": pods.affinity(spec),
                    **pods.overrides(spec),
                },
            },
        },
    }


def _bootstrap() -> Manifest:
    directory = {"path": CONFIG}
    return {
        "admin": {
            "address": _address("127.0.0.1", ADMIN_PORT),
            "allow_paths": [
                {"exact": "/ready"},
                {"exact": "/runtime"},
                {"prefix": "/runtime_modify?"},
                {"prefix": "/stats/prometheus"},
            ],
        },
        "dynamic_resources": {
            "lds_config": _file("lds.json", directory),
            "cds_config": _file("cds.json", directory),
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
                        "@type": f"{_TYPE}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "admin",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": _endpoints("admin", "127.0.0.1", ADMIN_PORT),
                }
            ]
        },
    }


def _text(document: Manifest) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _file(name: str, directory: Mapping[str, str]) -> Manifest:
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": f"{CONFIG}/{name}", "watched_directory": dict(directory)},
    }


def _resources(resources: list[Manifest]) -> Manifest:
    return {"resources": resources}


def _address(host: str, port: int) -> Manifest:
    return {"socket_address": {"address": host, "port_value": port}}


def _endpoints(name: str, host: str, port: int) -> Manifest:
    endpoint = {"endpoint": {"address": _address(host, port)}}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}


def _listener(name: str, port: int, manager: Manifest, **options: Any) -> Manifest:
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        **manager,
    }
    return {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": name,
        "address": _address("0.0.0.0", port),
        **options,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }


def _router_filter() -> Manifest:
    return {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"}}


def _traffic_listener() -> Manifest:
    return _users_listener("traffic", names.TRAFFIC_PORT)


def _tls_listener() -> Manifest:
    listener = _users_listener("traffic-tls", names.TLS_PORT)
    listener["filter_chains"][0]["transport_socket"] = access.transport_socket(_file("sds.json", {"path": CONFIG}))
    return listener


def _users_listener(name: str, port: int) -> Manifest:
    return _listener(
        name,
        port,
        {
            "rds": {"route_config_name": "traffic", "config_source": _file("rds.json", {"path": CONFIG})},
            "use_remote_address": True,
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
            "internal_address_config": {"cidr_ranges": []},  # nobody may steer retries and timeouts by x-envoy- headers
            "common_http_protocol_options": {"max_connection_duration": f"{CONNECTION_SECONDS}s"},
            "http1_safe_max_connection_duration": True,
            "stream_idle_timeout": REQUEST_TIMEOUT,
            "early_header_mutation_extensions": identity.without_forgery(),
            "http_filters": [
                lua.http_filter(access.FILTER, access.SCRIPT),
                lua.http_filter(identity.FILTER, identity.SCRIPT),
                _router_filter(),
            ],
        },
        per_connection_buffer_limit_bytes=identity.BODY_BYTES,
    )


def _control_listener(jwks: Mapping[str, Any], audience: str) -> Manifest:
    provider = {
        "issuer": ISSUER,
        "audiences": [audience],
        "local_jwks": {"inline_string": json.dumps(jwks, sort_keys=True)},
        "require_expiration": True,
        "clock_skew_seconds": 5,
        "forward": False,
    }
    authentication = {
        "@type": f"{_TYPE}.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"operator": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "operator"}}],
    }
    jwt_filter = {"name": "envoy.filters.http.jwt_authn", "typed_config": authentication}
    return _listener(
        "control",
        names.CONTROL_PORT,
        {"route_config": _admin_routes("control", "/runtime", "/runtime_modify"), "http_filters": [jwt_filter, _router_filter()]},
        ignore_global_conn_limit=True,  # users, however many, never shut the operator out
    )


def _metrics_listener() -> Manifest:
    return _listener(
        "metrics",
        names.ROUTER_METRICS_PORT,
        {"route_config": _admin_routes("metrics", "/ready", "/stats/prometheus"), "http_filters": [_router_filter()]},
        ignore_global_conn_limit=True,
    )


def _admin_routes(name: str, *paths: str) -> Manifest:
    routes = [{"match": {"path": path}, "route": {"cluster": "admin"}} for path in paths]
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _routes(serving: Serving | None, structure: Structure, weight: int) -> Manifest:
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
    anonymous = {"cluster": ANONYMOUS, **_forwarding()}
    routes.append({"match": {"prefix": "/"}, "route": anonymous, "response_headers_to_add": _says_upstream()})
    return {
        "@type": f"{_TYPE}.config.route.v3.RouteConfiguration",
        "name": "traffic",
        "virtual_hosts": [
            {
                "name": "users",
                "domains": ["*"],
                "routes": routes,
                "request_headers_to_remove": [identity.USER_HEADER, *access.removed_headers(serving)],
                "typed_per_filter_config": {
                    access.FILTER: lua.options(access.context(serving, STRUCTURE_PATH)),
                    identity.FILTER: lua.options(identity.context(structure)),
                },
            }
        ],
    }


def _hashed(structure: Structure, weight: int, kind: str, match: Manifest, header: str) -> Manifest:
    """The split: canary first, the sum is 100, the user's hash decides, so growth is monotone and users stick."""
    salted = {"pattern": {"regex": "^(.*)$"}, "substitution": f"{structure.salt}:\\1"}
    action: Manifest = {"hash_policy": [{"header": {"header_name": header, "regex_rewrite": salted}}], **_forwarding()}
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


def _forwarding() -> Manifest:
    return {
        "timeout": REQUEST_TIMEOUT,
        "retry_policy": {
            "retry_on": "connect-failure,reset-before-request,refused-stream",
            "num_retries": 3,
            # The least busy pod is the dead one: another pick must be nearly sure to find another pod.
            "host_selection_retry_max_attempts": 30,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
        },
    }


def _clusters(structure: Structure) -> list[Manifest]:
    backends = [b for b in (structure.canary, structure.stable) if b is not None]
    made = [_arm_cluster(cluster(kind, b.arm), b) for kind in (INFERENCE, OTHER) for b in backends]
    return [*made, _arm_cluster(ANONYMOUS, structure.stable)]


def _arm_cluster(name: str, backend: Backend) -> Manifest:
    load = _endpoints(name, backend.host, names.MODEL_PORT)
    load["endpoints"][0]["lb_endpoints"][0]["metadata"] = {
        "filter_metadata": {METADATA: {"arm": backend.arm, "revision": backend.revision}}
    }
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": name,
        "cluster_type": {
            "name": "envoy.clusters.dns",
            "typed_config": {
                "@type": f"{_TYPE}.extensions.clusters.dns.v3.DnsCluster",
                "dns_refresh_rate": "1s",
                "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "2s"},
                "dns_lookup_family": "V4_PREFERRED",
            },
        },
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        "ignore_health_on_host_removal": True,
        "load_assignment": load,
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            "update_merge_window": "0s",  # else what a health check found waits another second
        },
        "health_checks": [
            {
                "timeout": "5s",  # as patient as the kubelet's probe: a busy server is not a dead one
                "interval": "1s",
                "no_traffic_interval": "1s",  # else a canary that nobody calls yet is looked at once a minute
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": backend.ready_path},
            }
        ],
        "circuit_breakers": {
            "thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096, "max_retries": 1024}]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                # Shorter than the servers' own (uvicorn's is 5 s): a request must not meet a connection that is being closed.
                "common_http_protocol_options": {"idle_timeout": "3s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }
