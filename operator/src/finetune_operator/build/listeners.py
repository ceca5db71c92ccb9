"""The routers' listeners: users (plain, and over TLS), the operator's pushes, probes and statistics, the kubelet's hook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from finetune_operator import names
from finetune_operator.build import access, drain, exposure_log, identity
from finetune_operator.build.envoy import CONFIG, RECEIVE_SECONDS, REQUEST_TIMEOUT, TYPE, address, file, lua_filter
from finetune_operator.build.pods import Manifest
from finetune_operator.tokens import ISSUER

CONNECTION_SECONDS: Final = 15  # users' connections are renewed after this, so that they leave a draining router by themselves


def _listener(name: str, port: int, manager: Manifest, **options: Any) -> Manifest:
    """A resource of the ConfigMap's documents."""
    return {"@type": f"{TYPE}.config.listener.v3.Listener", **_static(name, port, manager, **options)}


def _static(name: str, port: int, manager: Manifest, **options: Any) -> Manifest:
    """A listener of the bootstrap."""
    manager = {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        **manager,
    }
    return {
        "name": name,
        "address": address("0.0.0.0", port),
        **options,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }


def _router_filter() -> Manifest:
    return {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPE}.extensions.filters.http.router.v3.Router"}}


def users() -> Manifest:
    """The users', without TLS; the operator asks here too which structure is served."""
    return _users_listener("traffic", names.TRAFFIC_PORT)


def encrypted() -> Manifest:
    """The same over TLS."""
    listener = _users_listener("traffic-tls", names.TLS_PORT)
    listener["filter_chains"][0]["transport_socket"] = access.transport_socket(file("sds.json", {"path": CONFIG}))
    return listener


def _users_listener(name: str, port: int) -> Manifest:
    return _listener(
        name,
        port,
        {
            "rds": {"route_config_name": "traffic", "config_source": file("rds.json", {"path": CONFIG})},
            "use_remote_address": True,
            "normalize_path": True,
            "merge_slashes": True,
            "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
            "internal_address_config": {"cidr_ranges": []},  # nobody may steer retries and timeouts by x-envoy- headers
            "common_http_protocol_options": {"max_connection_duration": f"{CONNECTION_SECONDS}s"},
            "http1_safe_max_connection_duration": True,
            "http_protocol_options": {"accept_http_10": True},  # what an nginx before it speaks by default
            "stream_idle_timeout": REQUEST_TIMEOUT,
            "request_headers_timeout": "10s",
            "request_timeout": f"{RECEIVE_SECONDS}s",  # to receive it: a body that is waited for, for an identity, is held
            "early_header_mutation_extensions": identity.without_forgery(),
            "access_log": [exposure_log.access_log()],
            "http_filters": [
                lua_filter(access.FILTER, access.SCRIPT),
                lua_filter(identity.FILTER, identity.SCRIPT),
                lua_filter(exposure_log.FILTER, exposure_log.SCRIPT),
                _router_filter(),
            ],
        },
        per_connection_buffer_limit_bytes=identity.BODY_BYTES,
    )


def control(jwks: Mapping[str, Any], audience: str) -> Manifest:
    """The operator's pushes: admits tokens of these keys for this audience."""
    provider = {
        "issuer": ISSUER,
        "audiences": [audience],
        "local_jwks": {"inline_string": json.dumps(jwks, sort_keys=True)},
        "require_expiration": True,
        "clock_skew_seconds": 5,
        "forward": False,
    }
    authentication = {
        "@type": f"{TYPE}.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
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


def metrics() -> Manifest:
    """Probes and statistics."""
    return _listener(
        "metrics",
        names.ROUTER_METRICS_PORT,
        {"route_config": _admin_routes("metrics", "/ready", "/stats/prometheus"), "http_filters": [_router_filter()]},
        ignore_global_conn_limit=True,
    )


def leaving(uid: str) -> Manifest:
    """What the kubelet waits for before it ends a router of the FineTune with that uid; part of the bootstrap."""
    return _static(
        "drain",
        names.DRAIN_PORT,
        {"route_config": _route_config("drain", drain.routes(uid)), "http_filters": [drain.http_filter(), _router_filter()]},
        ignore_global_conn_limit=True,
    )


def _admin_routes(name: str, *paths: str) -> Manifest:
    return _route_config(name, [{"match": {"path": path}, "route": {"cluster": "admin"}} for path in paths])


def _route_config(name: str, routes: list[Manifest]) -> Manifest:
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}
