"""What is read from routers and stages. The statistics are a sample of Envoy 1.40's answer; tests/router asks a real one."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from aiohttp import web
from finetune_operator.names import CONTROL_PORT, MODEL_PORT, PROGRESS_PORT, ROUTER_METRICS_PORT, TRAFFIC_PORT
from finetune_operator.pods import STATISTICS, PodClient, pod_address, served, totals
from finetune_operator.traffic import ArmTotals, Backend, ServerState, Source, Structure

SAMPLE = """\
# TYPE envoy_cluster_external_upstream_rq_xx counter
envoy_cluster_external_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="infer_bbb22222"} 10
# TYPE envoy_cluster_upstream_cx_protocol_error counter
envoy_cluster_upstream_cx_protocol_error{envoy_cluster_name="infer_aaa11111"} 0
envoy_cluster_upstream_cx_protocol_error{envoy_cluster_name="infer_bbb22222"} 1
# TYPE envoy_cluster_upstream_rq_xx counter
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="infer_aaa11111"} 11
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="infer_bbb22222"} 10
envoy_cluster_upstream_rq_xx{envoy_response_code_class="4",envoy_cluster_name="infer_bbb22222"} 1
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="infer_bbb22222"} 3
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="other_bbb22222"} 500
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="anonymous"} 500
# TYPE envoy_cluster_membership_healthy gauge
envoy_cluster_membership_healthy{envoy_cluster_name="infer_aaa11111"} 2
envoy_cluster_membership_healthy{envoy_cluster_name="infer_bbb22222"} 1
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="infer_bbb22222",le="10"} 6
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="infer_bbb22222",le="100000"} 12
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="infer_bbb22222",le="+Inf"} 13
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="infer_bbb22222"} 4.0967993754879001855329079262447
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="infer_bbb22222"} 13
"""
STRUCTURE = Structure(Backend("aaa11111", "a", "r1"), Backend("bbb22222", "b", "r2"), "salt", (Source(header="x-user-id"),))
POD = {"metadata": {"name": "router-0"}, "status": {"podIP": "10.0.0.7", "startTime": "t0"}}


def test_counters_per_arm() -> None:
    assert totals(SAMPLE) == {
        "aaa11111": ArmTotals(11, 0, (), 2),
        "bbb22222": ArmTotals(14, 4, ((10.0, 6.0), (100000.0, 12.0), (math.inf, 13.0)), 1),
    }


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a new Envoy has none", ""),
        ("an error page", "<html>no</html>"),
        ("another program's metrics", 'http_requests_total{code="200"} 7\n'),
    ],
)
def test_no_counters(what: str, text: str) -> None:
    assert totals(text) == {}


def test_an_answer_that_is_cut_and_of_class_5_is_one_error() -> None:
    counter = 'protocol_error{envoy_cluster_name="infer_bbb22222"} '
    garbage = SAMPLE.replace(f"{counter}1", f"{counter}99")
    assert totals(garbage)["bbb22222"].errors == 14


class Fake:
    """The HTTP of one pod; `answers` are by port and path."""

    def __init__(self) -> None:
        self.answers: dict[tuple[int, str], tuple[int, str]] = {}
        self.seen: list[tuple[str, str, dict[str, list[str]], str]] = []

    async def start(self) -> int:
        application = web.Application()
        application.router.add_route("*", "/{port}/{path:.*}", self._answer)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        port, path = int(request.match_info["port"]), "/" + request.match_info["path"]
        self.seen.append((request.method, path, parse_qs(request.query_string), request.headers.get("Authorization", "")))
        status, text = self.answers.get((port, path), (404, ""))
        return web.Response(status=status, text=text)


@pytest.fixture
async def pod() -> AsyncIterator[tuple[Fake, PodClient]]:
    fake = Fake()
    address = await fake.start()
    client = PodClient(lambda ip, port: f"http://127.0.0.1:{address}/{port}")
    yield fake, client
    await client.close()
    await fake.stop()


def _router(fake: Fake, runtime: dict[str, Any]) -> None:
    said = {"version": STRUCTURE.version, "weight": 10, "canary": "bbb22222"}
    fake.answers = {
        (TRAFFIC_PORT, "/.well-known/finetune-structure"): (200, json.dumps(said)),
        (CONTROL_PORT, "/runtime"): (200, json.dumps({"layers": ["pushed"], "entries": runtime})),
        (ROUTER_METRICS_PORT, "/stats/prometheus"): (200, SAMPLE),
    }


def entry(value: str) -> dict[str, Any]:
    return {"final_value": value, "layer_values": [value]}


KEY = f"finetune.{STRUCTURE.version}.infer_bbb22222"
WEIGHTS: dict[str, tuple[dict[str, Any], int]] = {
    "nothing pushed: the document's": ({}, 10),
    "pushed for this structure": ({KEY: entry("50")}, 50),
    "pushed back to nobody": ({KEY: entry("0")}, 0),
    "pushed for another structure": ({KEY.replace(STRUCTURE.version, "feedbeef0000"): entry("50")}, 10),
    "pushed for another arm": ({KEY.replace("bbb22222", "ccc33333"): entry("50")}, 10),
    "taken out of the runtime again": ({KEY: entry("")}, 10),
}


@pytest.mark.parametrize("what", WEIGHTS)
async def test_the_weight_in_force(what: str, pod: tuple[Fake, PodClient]) -> None:
    fake, client = pod
    runtime, weight = WEIGHTS[what]
    _router(fake, runtime)
    state = await client.router_state(POD, "token")
    assert (state.error, state.version, state.weight) == ("", STRUCTURE.version, weight)
    assert state.totals == totals(SAMPLE)
    assert {path: bearer for _, path, _, bearer in fake.seen if bearer} == {"/runtime": "Bearer token"}, "the token goes nowhere else"


@pytest.mark.parametrize(
    ("what", "key", "answer"),
    [
        ("refuses the token", (CONTROL_PORT, "/runtime"), (401, "Jwt is expired")),
        ("has no document yet", (TRAFFIC_PORT, "/.well-known/finetune-structure"), (503, "")),
        ("is not Envoy", (CONTROL_PORT, "/runtime"), (200, "<html>")),
        ("says something else", (TRAFFIC_PORT, "/.well-known/finetune-structure"), (200, "{}")),
        ("says a list", (TRAFFIC_PORT, "/.well-known/finetune-structure"), (200, "[]")),
        ("has no statistics", (ROUTER_METRICS_PORT, "/stats/prometheus"), (500, "")),
    ],
)
async def test_a_router_that_cannot_be_asked_says_why(
    what: str, key: tuple[int, str], answer: tuple[int, str], pod: tuple[Fake, PodClient]
) -> None:
    fake, client = pod
    _router(fake, {})
    fake.answers[key] = answer
    state = await client.router_state(POD, "token")
    assert state.error
    assert (state.pod, state.version, state.weight, state.totals) == ("router-0", None, None, {})


async def test_a_push_sets_both_weights_of_both_routes_in_one_call(pod: tuple[Fake, PodClient]) -> None:
    fake, client = pod
    fake.answers = {(CONTROL_PORT, "/runtime_modify"): (200, "OK")}
    await client.push("10.0.0.7", "token", STRUCTURE, 10)
    prefix = f"finetune.{STRUCTURE.version}"
    values = {
        f"{prefix}.infer_bbb22222": ["10"], f"{prefix}.infer_aaa11111": ["90"],
        f"{prefix}.other_bbb22222": ["10"], f"{prefix}.other_aaa11111": ["90"],
    }  # fmt: skip
    assert fake.seen == [("POST", "/runtime_modify", values, "Bearer token")]


async def test_a_push_that_is_refused_raises(pod: tuple[Fake, PodClient]) -> None:
    fake, client = pod
    fake.answers = {(CONTROL_PORT, "/runtime_modify"): (401, "")}
    with pytest.raises(aiohttp.ClientResponseError):
        await client.push("10.0.0.7", "token", STRUCTURE, 10)


# vLLM's own names and labels (its docs/design/metrics.md); the other server's are in tests/contract.
VLLM = """\
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="bot"} 6.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="bot"} 10.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="bot-base"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="bot-base"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="bot"} 3.25
vllm:request_time_per_output_token_seconds_bucket{engine="0",le="0.025",model_name="bot"} 8.0
vllm:request_time_per_output_token_seconds_bucket{engine="0",le="+Inf",model_name="bot"} 9.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.025",model_name="bot"} 800.0
vllm:request_generation_tokens_bucket{engine="0",le="1.0",model_name="bot"} 2.0
vllm:request_generation_tokens_bucket{engine="0",le="2.0",model_name="bot"} 5.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="bot"} 7.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="bot"} 2.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="bot"} 1.0
"""


def test_what_vllm_counts() -> None:
    assert served(VLLM) == ArmTotals(
        first_token=((250.0, 7.0), (math.inf, 12.0)), output_token=((25.0, 8.0), (math.inf, 9.0)), answers=10, unusable=4
    )


def test_no_more_answers_are_unusable_than_were_given() -> None:
    """An answer of one token that may have no more is in both of vLLM's counts."""
    one = "\n".join(
        f"vllm:{n}" for n in ('request_generation_tokens_bucket{le="1.0"} 3.0', 'request_success_total{finished_reason="length"} 3.0')
    )
    assert (served(one).answers, served(one).unusable) == (3, 3)


@pytest.mark.parametrize(
    ("what", "answer", "expected"),
    [
        ("tells it", (200, VLLM), served(VLLM)),
        ("has other metrics", (200, "http_requests_total 7\n"), ArmTotals()),
        ("has none", (404, ""), None),
        ("tells nonsense", (200, 'vllm:request_success_total{a="b"} many'), None),
        ("tells no number", (200, 'vllm:request_success_total{a="b"} NaN'), None),
        ("tells more than there can be", (200, 'vllm:request_success_total{a="b"} 1e300'), None),
        ("tells less than none", (200, 'vllm:request_success_total{a="b"} -1'), None),
        ("tells a histogram without bounds", (200, 'vllm:time_to_first_token_seconds_bucket{a="b"} 1'), None),
    ],
)
async def test_what_a_server_counts(what: str, answer: tuple[int, str], expected: ArmTotals | None, pod: tuple[Fake, PodClient]) -> None:
    fake, client = pod
    fake.answers = {(MODEL_PORT, "/metrics"): answer}
    assert await client.server_state(POD, "bbb22222") == ServerState("router-0", "t0", "bbb22222", expected)
    assert fake.seen == [("GET", "/metrics", {}, "")]


@pytest.mark.parametrize(
    ("what", "answer", "expected"),
    [
        ("tells it", (200, '{"step": 7}'), {"step": 7}),
        ("is not ready", (503, ""), None),
        ("tells nonsense", (200, "<html>"), None),
        ("tells a list", (200, "[]"), None),
    ],
)
async def test_progress(what: str, answer: tuple[int, str], expected: dict[str, Any] | None, pod: tuple[Fake, PodClient]) -> None:
    fake, client = pod
    fake.answers = {(PROGRESS_PORT, "/progress"): answer}
    assert await client.progress("10.0.0.7") == expected


def test_addresses() -> None:
    assert pod_address("10.0.0.7", 8080) == "http://10.0.0.7:8080"
    assert pod_address("fd00::7", 8080) == "http://[fd00::7]:8080"


def test_the_statistics_asked_for_are_few() -> None:
    pattern = parse_qs(urlsplit(STATISTICS).query)["filter"][0]
    assert pattern.startswith("^cluster")
    assert pattern.endswith("$")
