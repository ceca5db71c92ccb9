"""What the operator counts as requests and errors of an arm, from a real Envoy's statistics."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import yaml
from finetune_operator import names
from finetune_operator.decide.guards import quantile
from finetune_operator.pods import STATISTICS, totals
from finetune_operator.traffic import ArmTotals

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import CHAT, Router, structure, until

FILES = Path(__file__).resolve().parents[2] / "charts" / "finetune-operator" / "files"
SPLIT = structure(OLD, NEW)
USER = {"x-user-id": "ada"}


async def counted(router: Router) -> Mapping[str, ArmTotals]:
    state = await router.state()
    assert not state.error
    return state.totals


async def counts(router: Router, arm: str) -> tuple[int, int]:
    """(requests, errors) of the arm."""
    found = (await counted(router))[arm]
    return found.requests, found.errors


async def test_only_inference_by_users_with_an_identity_is_counted(world: World) -> None:
    router = await world.started(SPLIT, 100)
    assert (await counted(router))[NEW.arm] == ArmTotals(healthy=2), "nothing is counted before anybody calls"
    for method, path, headers in (
        ("GET", "/v1/models", USER), ("POST", CHAT, {}), ("GET", CHAT, USER), ("POST", "/v1/embeddings", USER), ("GET", "/readyz", USER),
    ):  # fmt: skip
        assert await router.status(path, method=method, headers=headers, json={}) == 200
    assert await counts(router, NEW.arm) == await counts(router, OLD.arm) == (0, 0)
    for path in (CHAT, "/v1/completions", f"{CHAT}?api-version=1", "/v1//chat/completions", "/v1/x/../completions", "/v1%2fcompletions"):
        assert await router.status(path, method="POST", headers=USER, json={}) == 200
    assert await counts(router, NEW.arm) == (6, 0)
    assert await counts(router, OLD.arm) == (0, 0)


async def test_answers_of_class_5_are_errors_and_those_of_class_4_are_not(world: World) -> None:
    router = await world.started(SPLIT, 100)
    for status in (200, 400, 404, 429, 500, 503):
        for pod in world.pods["new"]:
            pod.status = status
        assert await router.status(CHAT, method="POST", headers=USER, json={}) == status
    assert await counts(router, NEW.arm) == (6, 2)


async def test_an_answer_cut_after_its_200_is_an_error_and_one_that_the_client_leaves_is_none(world: World) -> None:
    router = await world.started(SPLIT, 100)
    async with router.request("POST", CHAT, headers=USER, json={"stream": True, "cut": True}) as answer:
        assert answer.status == 200
        with suppress(aiohttp.ClientPayloadError):
            await answer.read()
    assert await counts(router, NEW.arm) == (1, 1)
    async with router.request("POST", CHAT, headers=USER, json={"stream": True}) as answer:
        assert await answer.content.readuntil(b"\n\n")
        answer.close()
    for pod in world.pods["new"]:
        pod.gate.set()
    assert await router.status(CHAT, method="POST", headers=USER, json={"stream": True}) == 200
    assert await counts(router, NEW.arm) == (3, 1)


async def test_a_connection_closed_instead_of_an_answer_is_one_error(world: World) -> None:
    router = await world.started(SPLIT, 100)
    for pod in world.pods["new"]:
        pod.abort = True
    assert await router.status(CHAT, method="POST", headers=USER, json={}) == 503
    assert await counts(router, NEW.arm) == (1, 1)


async def test_an_arm_without_a_healthy_pod_fails_its_own_users_and_counts_their_errors(world: World) -> None:
    router = await world.started(SPLIT, 100)
    for pod in world.pods["new"]:
        pod.ready = False

    async def unhealthy() -> bool:
        return (await counted(router))[NEW.arm].healthy == 0

    await until(unhealthy, "the arm has no healthy pod")
    for _ in range(5):
        async with router.request("POST", CHAT, headers=USER, json={}) as answer:
            assert answer.status == 503
            assert answer.headers["x-finetune-arm"] == NEW.arm, "the error too says whose it is"
    assert await counts(router, NEW.arm) == (5, 5)
    assert await counts(router, OLD.arm) == (0, 0)


async def test_an_arm_whose_name_does_not_exist_counts_errors_too(world: World) -> None:
    router = await world.started(SPLIT, 100)
    world.resolve(NEW, None)

    async def gone() -> bool:
        return (await counted(router))[NEW.arm].healthy == 0

    await until(gone, "the arm has no pods")
    assert await router.status(CHAT, method="POST", headers=USER, json={}) == 503
    assert await counts(router, NEW.arm) == (1, 1)
    assert await router.arm_of(None) == OLD.arm


async def test_latency_is_told_as_finely_as_a_limit_of_25_percent_needs(world: World) -> None:
    router = await world.started(SPLIT, 100)
    seen: tuple[tuple[float, float], ...] = ()
    for seconds in (0.09, 0.11):  # on either side of a bound of Envoy's own coarse buckets
        for pod in world.pods["new"]:
            pod.delay = seconds
        waited = [await timed(router.arm_of("ada")) for _ in range(11)]
        expected = sum(count for _, count in seen[-1:]) + len(waited)

        async def complete(count: float = expected) -> bool:
            latency = (await counted(router))[NEW.arm].latency
            return bool(latency) and latency[-1][1] == count

        await until(complete, "the histogram has them all")
        before, seen = dict(seen), (await counted(router))[NEW.arm].latency
        median = quantile(tuple((bound, count - before.get(bound, 0)) for bound, count in seen), 0.5) / 1000
        assert 0.87 * seconds <= median <= 1.15 * sorted(waited)[len(waited) // 2], (seconds, median, waited)


async def timed(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


async def test_the_statistics_asked_for_are_those_of_arms_and_no_more(world: World) -> None:
    router = await world.started(SPLIT, 100)
    await router.arm_of("ada")
    async with router.request("GET", STATISTICS, names.ROUTER_METRICS_PORT) as answer:
        text = await answer.text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    clusters = {line.split('envoy_cluster_name="')[1].split('"')[0] for line in lines}
    assert clusters == {f"infer_{OLD.arm}", f"infer_{NEW.arm}"}
    assert len(lines) < 250, "a poll of every router every two seconds stays small"
    assert totals(text)[NEW.arm].requests == 1


async def test_what_prometheus_scrapes_is_what_dashboard_and_alerts_ask_for(world: World) -> None:
    """By arm, requests without a user apart, and nothing else of the hundreds that Envoy counts."""
    endpoint = next(e for e in yaml.safe_load((FILES / "endpoints.yaml").read_text()) if e["port"] == "metrics")
    asked = set(re.findall(r"envoy_cluster_\w+", (FILES / "alerts.yaml").read_text() + (FILES / "dashboard.json").read_text()))
    router = await world.started(SPLIT, 100)
    for headers in (USER, {}):
        assert await router.status(CHAT, method="POST", headers=headers, json={}) == 200
    found: dict[str, set[str]] = {}

    async def scraped() -> bool:
        path = f"{endpoint['path']}?{urlencode({'filter': endpoint['params']['filter'][0]})}"
        async with router.request("GET", path, names.ROUTER_METRICS_PORT) as answer:
            text = await answer.text()
        for name, cluster in re.findall(r'^(\w+)\{.*envoy_cluster_name="(\w+)"', text, re.MULTILINE):
            found.setdefault(name, set()).add(cluster)
        return "envoy_cluster_upstream_rq_time_bucket" in found

    await until(scraped, "a histogram, which Envoy counts once a second")
    arms = {f"infer_{OLD.arm}", f"infer_{NEW.arm}"}
    assert asked <= set(found)
    assert set(found) - asked == {"envoy_cluster_upstream_rq_time_sum", "envoy_cluster_upstream_rq_time_count"}
    assert found["envoy_cluster_upstream_rq_xx"] == {f"infer_{NEW.arm}", "anonymous"}
    assert found["envoy_cluster_membership_healthy"] == arms | {"anonymous"}
