"""How a router goes: nobody new comes, what is under way is ended, then it exits.

Envoy exits at once on SIGTERM, whatever streams it has. So the kubelet's preStop asks the router itself, and waits: the request stays
open while the answer to another one, which a script gives (drain.lua), is that users' requests are under way. Asking changes nothing,
so anybody may. The listeners stay open: kube-proxy and name servers lead new users elsewhere within LEAST_SECONDS, and those who keep
a connection are told to come again within listeners.CONNECTION_SECONDS. Why: docs/adr/0017.
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
PATH: Final = "/drain"
CLUSTER: Final = "self"
_ANSWER: Final = "/drained"  # 200 when it may end, else 503
_SINCE: Final = "x-finetune-drain-since"
_ACTIVE: Final = "/stats/prometheus?" + urlencode({"filter": r"^http\.traffic.*\.downstream_rq_active$"})
_RETRIES: Final = 100_000  # more than there is time for
_WAITING: Final = 100  # how many may ask at once


def pre_stop() -> dict[str, Any]:
    """The container's hook: ends when the router may."""
    return {"httpGet": {"path": PATH, "port": "metrics"}}


def http_filter() -> dict[str, Any]:
    """Of the listener of probes; it runs for its route alone."""
    return lua_filter(FILTER, script("drain.lua"))


def disabled() -> dict[str, Any]:
    """For the other routes of that listener."""
    return {FILTER: lua_options(None)}


def routes() -> list[dict[str, Any]]:
    """What the hook asks, and what that asks over and over, up to a second apart."""
    since = {"header": {"key": _SINCE, "value": "%START_TIME(%s)%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    again = {
        "retry_on": "retriable-status-codes,connect-failure,reset",
        "retriable_status_codes": [503],
        "num_retries": _RETRIES,
        "retry_back_off": {"base_interval": "1s", "max_interval": "1s"},
    }
    asks = {"cluster": CLUSTER, "prefix_rewrite": _ANSWER, "timeout": "0s", "idle_timeout": "0s", "retry_policy": again}
    told = lua_options({"since": _SINCE, "seconds": LEAST_SECONDS, "active": _ACTIVE})
    return [
        {"match": {"path": PATH}, "route": asks, "request_headers_to_add": [since]},
        {"match": {"path": _ANSWER}, "direct_response": {"status": 500}, "typed_per_filter_config": {FILTER: told}},
    ]


def cluster() -> dict[str, Any]:
    """The router's own listener of probes."""
    return {
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": endpoints(CLUSTER, "127.0.0.1", names.ROUTER_METRICS_PORT),
        "circuit_breakers": {"thresholds": [{"max_retries": _WAITING}]},
    }
