"""The only HTTP to pods: training progress, routers' state, weight pushes. Short timeouts; a pod that fails says nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp

from finetune_operator import names
from finetune_operator.build.router import INFERENCE, STRUCTURE_PATH, runtime_prefix, runtime_values
from finetune_operator.traffic import ArmTotals, Buckets, RouterState, ServerState, Structure
from finetune_operator.workloads.pods import ready

TIMEOUT: Final = aiohttp.ClientTimeout(total=3.0)
_METRIC = re.compile(r"^envoy_cluster_(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)$", re.MULTILINE)
_SERVER_METRIC = re.compile(
    r"^(?P<name>(?:finetune_server_(?:time_\w+_bucket|answers_total))"
    r"|vllm:(?:time_to_first_token_seconds_bucket|request_time_per_output_token_seconds_bucket|request_success_total"
    r"|request_generation_tokens_bucket))\{(?P<labels>[^}]*)\} (?P<value>\S+)$",
    re.MULTILINE,
)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
STATISTICS: Final = "/stats/prometheus?" + urlencode(
    {"filter": rf"^cluster\.{INFERENCE}_[^.]+\.(upstream_rq_[0-9]xx|upstream_cx_protocol_error|upstream_rq_time|membership_healthy)$"}
)

Object = Mapping[str, Any]
# (pod's IP, port) → base URL; tests put their own in.
Address = Callable[[str, int], str]


def pod_address(ip: str, port: int) -> str:
    """The pod itself."""
    return f"http://[{ip}]:{port}" if ":" in ip else f"http://{ip}:{port}"


class PodClient:
    """An HTTP client for pods."""

    def __init__(self, address: Address = pod_address) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def progress(self, ip: str) -> dict[str, Any] | None:
        """What a stage's pod says of its progress; None when it does not answer."""
        try:
            answer = json.loads(await self._get(ip, names.PROGRESS_PORT, "/progress"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    async def router_state(self, pod: Object, token: str) -> RouterState:
        """A router's structure, weight and counters; `error` is set when it cannot be asked."""
        name, status = pod["metadata"]["name"], pod["status"]
        ip, started = status["podIP"], _started(status)
        known = {"pod": name, "ip": ip, "started": started, "ready": ready(pod), "leaving": "deletionTimestamp" in pod["metadata"]}
        try:
            document, runtime, statistics = await asyncio.gather(
                self._get(ip, names.TRAFFIC_PORT, STRUCTURE_PATH),
                self._get(ip, names.CONTROL_PORT, "/runtime", token),
                self._get(ip, names.ROUTER_METRICS_PORT, STATISTICS),
            )
            served = _object(document)
            weight = _weight(served, _object(runtime))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
            return RouterState(**known, error=f"{type(error).__name__}: {error}")
        return RouterState(**known, version=served["version"], weight=weight, totals=totals(statistics))

    async def server_state(self, pod: Object, arm: str) -> ServerState:
        """What a model server counted since it started; without totals when it does not answer."""
        name, status = pod["metadata"]["name"], pod["status"]
        try:
            told = served(await self._get(status["podIP"], names.MODEL_PORT, "/metrics"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError):
            told = None
        return ServerState(name, _started(status), arm, told)

    async def push(self, ip: str, token: str, structure: Structure, weight: int) -> None:
        """Set both weights in one call; raises aiohttp.ClientError or TimeoutError."""
        values = runtime_values(structure, weight)
        if not values:
            return
        url = f"{self._address(ip, names.CONTROL_PORT)}/runtime_modify?{urlencode(values)}"
        async with self._http().post(url, headers=_bearer(token), timeout=TIMEOUT) as response:
            response.raise_for_status()

    async def _get(self, ip: str, port: int, path: str, token: str | None = None) -> str:
        headers = _bearer(token) if token else {}
        async with self._http().get(self._address(ip, port) + path, headers=headers, timeout=TIMEOUT) as response:
            response.raise_for_status()
            return await response.text()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session


def totals(statistics: str) -> dict[str, ArmTotals]:
    """Counters per arm from Envoy's Prometheus text.

    An answer of class 5 is an error, also one that Envoy gives for an arm without a healthy pod; so is an answer that began
    well and was cut, which Envoy counts as a protocol error of the connection. One both cut and of class 5 counts once.
    """
    requests: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    healthy: dict[str, int] = {}
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for found in _METRIC.finditer(statistics):
        labels = dict(_LABEL.findall(found["labels"]))
        kind, _, arm = labels.get("envoy_cluster_name", "").partition("_")
        if kind != INFERENCE:
            continue
        value = float(found["value"])
        match found["name"]:
            case "upstream_rq_xx":
                requests[arm] += int(value)
                errors[arm] += int(value) if labels.get("envoy_response_code_class") == "5" else 0
            case "upstream_cx_protocol_error":
                errors[arm] += int(value)
            case "membership_healthy":
                healthy[arm] = int(value)
            case "upstream_rq_time_bucket":
                buckets[arm].append((float(labels["le"]), value))
    arms = sorted({*requests, *errors, *healthy})
    return {a: ArmTotals(requests[a], min(errors[a], requests[a]), _sorted(buckets[a]), healthy.get(a, 0)) for a in arms}


def served(exposition: str) -> ArmTotals:
    """A model server's counters from its Prometheus text: that of our own server, or vLLM's. Seconds become milliseconds.

    Raises ValueError or KeyError for what are no counters: whatever an image tells ends no cycle.
    """
    first, output = defaultdict[float, float](float), defaultdict[float, float](float)
    answers = unusable = 0.0
    for found in _SERVER_METRIC.finditer(exposition):
        labels, value = dict(_LABEL.findall(found["labels"])), float(found["value"])
        if not 0 <= value < 2**53:
            raise ValueError(f"{found['name']} is no counter: {value}")
        match found["name"]:
            case "finetune_server_time_to_first_token_seconds_bucket" | "vllm:time_to_first_token_seconds_bucket":
                first[1000 * float(labels["le"])] += value
            case "finetune_server_time_per_output_token_seconds_bucket" | "vllm:request_time_per_output_token_seconds_bucket":
                output[1000 * float(labels["le"])] += value
            case "finetune_server_answers_total":
                answers += value
                unusable += value if labels.get("end") in ("empty", "length") else 0
            case "vllm:request_success_total":
                answers += value
                unusable += value if labels.get("finished_reason") == "length" else 0
            case "vllm:request_generation_tokens_bucket" if float(labels["le"]) == 1.0:  # nothing but the end of the turn
                unusable += value
    return ArmTotals(
        first_token=_sorted([*first.items()]), output_token=_sorted([*output.items()]),
        answers=int(answers), unusable=int(min(unusable, answers)),
    )  # fmt: skip


def _sorted(buckets: list[tuple[float, float]]) -> Buckets:
    return tuple(sorted(buckets))


def _object(text: str) -> Object:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, not {text[:40]!r}")  # noqa: TRY004
    return value


def _weight(document: Object, runtime: Object) -> int:
    """The canary's weight in force: what was pushed for this very structure, else the document's."""
    prefix = f"{runtime_prefix(document['version'])}.{INFERENCE}_"
    pushed = {k.removeprefix(prefix): v.get("final_value") for k, v in (runtime.get("entries") or {}).items() if k.startswith(prefix)}
    canary = document.get("canary")
    value = pushed.get(canary)
    return int(value) if value not in (None, "") else int(document["weight"])


def _started(status: Object) -> str:
    """When the router's container began: a restarted one counts from zero."""
    for container in status.get("containerStatuses") or ():
        if running := (container.get("state") or {}).get("running"):
            return str(running.get("startedAt", ""))
    return str(status.get("startTime", ""))


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
