"""Who may do what on a router's ports."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import aiohttp
import jwt
import pytest
from finetune_operator import names, tokens
from finetune_operator.build import envoy
from finetune_operator.build import router as documents

from tests.router.conftest import NEW, OLD, World
from tests.router.harness import KEY, UID, structure, token

SPLIT = structure(OLD, NEW)
MODIFY = "/runtime_modify?finetune.x.infer_y=100"
NOW = datetime.now(UTC)


def unsigned() -> str:
    """A token of the right content whose algorithm is "none"."""
    claims = {"iss": tokens.ISSUER, "aud": UID, "exp": int(NOW.timestamp()) + 60}
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in ({"alg": "none", "typ": "JWT"}, claims)]
    return ".".join([*parts, ""])


def claiming(**changes: object) -> str:
    """A token of the operator's key with other claims; None leaves one out."""
    claims = {"iss": tokens.ISSUER, "aud": UID, "iat": NOW, "exp": NOW + timedelta(seconds=60), **changes}
    kid = tokens.jwks(KEY)["keys"][0]["kid"]
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, KEY, algorithm="ES256", headers={"kid": kid})


REFUSED: Mapping[str, Mapping[str, str]] = {
    "no token": {},
    "not a token": {"Authorization": "Bearer nonsense"},
    "the right token, but not as a bearer's": {"Authorization": f"Basic {token()}"},
    "an expired one": {"Authorization": f"Bearer {token(now=NOW - timedelta(seconds=tokens.LIFETIME_SECONDS + 6))}"},
    "one without an end": {"Authorization": f"Bearer {claiming(exp=None)}"},
    "one of another key": {"Authorization": f"Bearer {token(key=tokens.generate_key())}"},
    "one for another FineTune": {"Authorization": f"Bearer {token(audience='another-uid')}"},
    "one for nobody": {"Authorization": f"Bearer {claiming(aud=None)}"},
    "one of another issuer": {"Authorization": f"Bearer {claiming(iss='somebody')}"},
    "an unsigned one": {"Authorization": f"Bearer {unsigned()}"},
}


async def test_a_push_needs_a_fresh_token_of_the_operator_for_this_very_finetune(world: World) -> None:
    router = await world.started(SPLIT)
    for what, headers in REFUSED.items():
        for method, path in (("POST", MODIFY), ("GET", "/runtime")):
            status = await router.status(path, names.CONTROL_PORT, method, headers=headers)
            assert status in (401, 403), f"{what}: {method} {path} answered {status}"
    bearer = {"Authorization": f"Bearer {token()}"}
    assert await router.status(MODIFY, names.CONTROL_PORT, "POST", headers=bearer) == 200
    assert await router.status("/runtime", names.CONTROL_PORT, headers=bearer) == 200


async def test_a_refused_push_changes_nothing_and_the_client_is_told(world: World) -> None:
    router = await world.started(SPLIT)
    with pytest.raises(aiohttp.ClientResponseError):
        await router.client.push("127.0.0.1", token(audience="another-uid"), SPLIT, 100)
    assert (await router.state()).weight == 0
    refused = await router.client.router_state(router.pod(), token(key=tokens.generate_key()))
    assert "401" in refused.error
    assert refused.weight is None


async def test_a_good_token_opens_the_runtime_and_nothing_else_of_admin(world: World) -> None:
    router = await world.started(SPLIT)
    bearer = {"Authorization": f"Bearer {token()}"}
    for path in (
        "/quitquitquit", "/config_dump", "/clusters", "/logging?level=trace", "/stats", "/server_info", "/", "/runtime/../config_dump",
        "/runtime/../quitquitquit", "/runtime_modify", "/drain_listeners", "/runtimex", "/runtime?x=/config_dump",
    ):  # fmt: skip
        for method in ("GET", "POST"):
            status = await router.status(path, names.CONTROL_PORT, method, headers=bearer)
            assert status in (403, 404, 405), f"{method} {path} answered {status}"
    assert await router.status("/ready", names.ROUTER_METRICS_PORT) == 200


async def test_the_metrics_port_tells_health_and_statistics_only(world: World) -> None:
    router = await world.started(SPLIT)
    assert await router.status("/ready", names.ROUTER_METRICS_PORT) == 200
    assert await router.status("/stats/prometheus", names.ROUTER_METRICS_PORT) == 200
    for path in (
        "/stats",
        "/runtime",
        MODIFY,
        "/config_dump",
        "/quitquitquit",
        "/ready/../quitquitquit",
        "/stats/prometheus/../../runtime",
    ):
        for method in ("GET", "POST"):
            assert await router.status(path, names.ROUTER_METRICS_PORT, method) in (403, 404, 405), f"{method} {path}"


async def test_the_users_port_shows_nothing_of_the_router_but_its_structure(world: World) -> None:
    router = await world.started(SPLIT)
    for path in ("/runtime", "/stats", "/stats/prometheus", "/ready", "/config_dump", "/quitquitquit"):
        async with router.request("POST", path, headers={"x-user-id": "ada"}) as answer:
            assert (await answer.json())["pod"].startswith("old"), f"{path} must be the model server's"
    async with router.request("GET", documents.STRUCTURE_PATH) as answer:
        assert set(await answer.json(content_type=None)) == {"version", "weight", "canary"}


async def test_admin_is_not_reachable_from_outside_the_pod(world: World) -> None:
    router = await world.started(SPLIT)
    port = router.ports[envoy.ADMIN_PORT]
    outside = next(iter({a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}), "127.0.0.2")
    with pytest.raises(OSError):
        await asyncio.open_connection(outside, port)
    reader, writer = await asyncio.open_connection(outside, router.ports[names.TRAFFIC_PORT])  # while users are served there
    writer.close()
    assert reader is not None
