"""How the routers reach an arm's pods: names, health, retries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from finetune_operator import names
from finetune_operator.build.envoy import REQUEST_TIMEOUT, TYPE, endpoints
from finetune_operator.build.pods import Manifest
from finetune_operator.traffic import Backend

METADATA: Final = "finetune"  # of endpoints and clusters: which arm they are


def forwarding() -> Manifest:
    """Of every route to an arm: what is tried again is what no server has seen."""
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
                    "typed_config": {"@type": f"{TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
        },
    }


def hosts(clusters: Manifest) -> Iterator[str]:
    """The names under which a document of clusters looks for their pods."""
    for cluster in clusters["resources"]:
        (host,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        yield host["endpoint"]["address"]["socket_address"]["address"]


def arm_cluster(name: str, backend: Backend) -> Manifest:
    """An arm's pods by their headless Service, as a cluster of that name."""
    load = endpoints(name, backend.host, names.MODEL_PORT)
    which = {"filter_metadata": {METADATA: {"arm": backend.arm, "revision": backend.revision}}}
    load["endpoints"][0]["lb_endpoints"][0]["metadata"] = which
    return {
        "@type": f"{TYPE}.config.cluster.v3.Cluster",
        "name": name,
        "metadata": which,
        "cluster_type": {
            "name": "envoy.clusters.dns",
            "typed_config": {
                "@type": f"{TYPE}.extensions.clusters.dns.v3.DnsCluster",
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
                "@type": f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                # Shorter than the servers' own (uvicorn's is 5 s): a request must not meet a connection that is being closed.
                "common_http_protocol_options": {"idle_timeout": "3s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }
