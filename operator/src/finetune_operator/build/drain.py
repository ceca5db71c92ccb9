"""How a router goes: nobody new comes, what is under way is ended, then it exits.

Envoy exits at once on SIGTERM, whatever streams it has. So the kubelet's preStop asks the router itself, and waits: the request stays
open while the answer to another one, which a script gives (drain.lua), is that users' requests are under way. Who asks says the
FineTune's uid, which the pod's template has; to others there is nothing here. The listeners stay open: kube-proxy and name servers
lead new users elsewhere within LEAST_SECONDS, and those who keep a connection are told to come again within
listeners.CONNECTION_SECONDS. Why: docs/adr/0017.

All of it stands in the pod's template: a hook finds what it asks whatever documents the ConfigMap has, an earlier operator's too.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from finetune_operator import names
from finetune_operator.build.envoy import RECEIVE_SECONDS, REQUEST_SECONDS, endpoints, lua_filter, lua_options, script

LEAST_SECONDS: Final = 30
MARGIN_SECONDS: Final = 10
# Whoever comes at the end of LEAST_SECONDS is received and answered to the end.
GRACE_SECONDS: Final = LEAST_SECONDS + RECEIVE_SECONDS + REQUEST_SECONDS + MARGIN_SECONDS
FILTER: Final = "finetune.drain"
PORT_NAME: Final = "drain"
PATH: Final = "/drain"
HEADER: Final = "x-finetune-drain"
CLUSTER: Final = "self"
_ANSWER: Final = "/drained"  # 200 when it may end, else 503
_SINCE: Final = "x-finetune-drain-since"
_ACTIVE: Final = "/stats/prometheus?" + urlencode({"filter": r"^http\.traffic.*\.downstream_rq_active$"})
_UNLIMITED: Final = 2**32 - 1


def pre_stop(uid: str) -> dict[str, Any]:
    """The container's hook: ends when the router may."""
    return {"httpGet": {"path": PATH, "port": PORT_NAME, "httpHeaders": [{"name": HEADER, "value": uid}]}}


def http_filter() -> dict[str, Any]:
    """Runs for the route that has options for it alone."""
    return {**lua_filter(FILTER, script("drain.lua")), "disabled": True}


def routes(uid: str) -> list[dict[str, Any]]:
    """What the hook asks, and what that asks over and over, up to a second apart. Others find neither."""
    asked = {"headers": [{"name": HEADER, "string_match": {"exact": uid}}]}
    since = {"header": {"key": _SINCE, "value": "%START_TIME(%s)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    again = {
        "retry_on": "retriable-status-codes,connect-failure,reset",
        "retriable_status_codes": [503],
        "num_retries": _UNLIMITED,
        "retry_back_off": {"base_interval": "1s", "max_interval": "1s"},
    }
    asks = {"cluster": CLUSTER, "prefix_rewrite": _ANSWER, "timeout": "0s", "idle_timeout": "0s", "retry_policy": again}
    told = lua_options({"since": _SINCE, "seconds": LEAST_SECONDS, "active": _ACTIVE})
    not_yet = {"status": 503}  # where the script fails
    return [
        {"match": {"path": PATH, **asked}, "route": asks, "request_headers_to_add": [since]},
        {"match": {"path": _ANSWER, **asked}, "direct_response": not_yet, "typed_per_filter_config": {FILTER: told}},
    ]


def cluster() -> dict[str, Any]:
    """The router's own listener that the hook asks: however many ask, none is refused."""
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": endpoints(CLUSTER, "127.0.0.1", names.DRAIN_PORT),
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _UNLIMITED)]},
    }
