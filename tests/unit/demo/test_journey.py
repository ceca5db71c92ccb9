"""The whole journey against a small world: a router that splits by user, and a kubectl that tells its status."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from demo import journey, traffic
from demo.example import Example
from demo.journey import Journey, travel
from demo.kube import Kubectl
from demo.report import problems
from demo.view import View

EXAMPLE = Example(name="shop-sql", namespace="demo", model="shop-sql", weights=(10, 50, 100), replicas=2)
QUESTION = {"messages": [{"role": "user", "content": "Price of the kite?"}], "reference": "SELECT 1", "id": "aa"}
EVALUATION = {"baseline": {"score": "0.0"}, "tuned": {"score": "0.9"}}


@dataclass
class World:
    """The truth: a weight, and what goes wrong. Users below the weight by hash are on the new arm."""

    weight: int = 0
    failing: bool = False
    forgetful: bool = False  # at 50 % other users are moved than at 10 %
    requests: int = 0
    port: int = 0

    def arm(self, user: str) -> str:
        salt = "other" if self.forgetful and self.weight == 50 else ""
        bucket = int(hashlib.sha256((salt + user).encode()).hexdigest(), 16) % 100
        return "new" if bucket < self.weight else "old"

    async def answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        arm = self.arm(request.headers.get("x-user-id", ""))
        if self.failing and arm == "new" and request.path == "/v1/completions":
            return web.Response(status=500, text="broken")
        body = {"choices": [{"message": {"content": "SELECT 1" if arm == "new" else "I do not know"}}]}
        return web.json_response(body, headers={"x-finetune-arm": arm})


def status(phase: str, weight: int = 0) -> dict[str, Any]:
    return {
        "status": {
            "phase": phase,
            "revision": "1f2e3d4c",
            "evaluation": EVALUATION,
            "rollout": {"arm": "new", "weight": weight, "state": "Holding"},
            "conditions": [{"type": "DataPrepared", "status": "True"}],
        }
    }


@dataclass(frozen=True)
class FakeKubectl(Kubectl):
    """Tells what the operator would, moving on once the users have called enough."""

    world: World = field(default_factory=World)
    end: str = "Live"
    leaked: int = 0

    def __call__(self, *args: str, stdin: str | None = None, seconds: float = 180) -> str:
        if "logs" in args:
            return json.dumps({"rows": [QUESTION] * 50, "trained": 300, "leaked": self.leaked})
        if "service" in args:
            return json.dumps({"spec": {"clusterIP": "127.0.0.1", "ports": [{"port": self.world.port}]}})
        if "jobs" in args:
            container = {"image": "trainer:1"}
            return json.dumps({"items": [{"spec": {"template": {"spec": {"containers": [container]}}}}]})
        return ""

    async def watch(self, *args: str) -> AsyncIterator[dict[str, Any]]:
        yield status("Training")
        for weight in EXAMPLE.weights:
            before = self.world.requests
            self.world.weight = weight
            yield status("RollingOut", weight)
            while self.world.requests < before + len(traffic.USERS) + 20:
                await asyncio.sleep(0.02)
        yield status(self.end, 100)
        await asyncio.Event().wait()


async def go(world: World, limit: float = 60, **kubectl: Any) -> tuple[Journey, str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", world.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    world.port = runner.addresses[0][1]
    out = io.StringIO()
    try:
        return await travel(FakeKubectl(world=world, **kubectl), EXAMPLE, View(out), limit), out.getvalue()
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journey, "SPLIT_PAUSE", 0.05)
    monkeypatch.setattr(journey, "FEED_PER_ARM", 20)
    monkeypatch.setattr(traffic, "USERS", traffic.USERS[:200])


async def test_a_good_rollout_holds() -> None:
    done, shown = await go(World())
    assert done.in_time
    assert problems(done.outcome) == []
    assert [share.weight for share in done.outcome.shares] == [10, 50, 100]
    assert done.outcome.answers["tuned"].right == done.outcome.answers["tuned"].asked > 0
    assert done.outcome.answers["base"].right == 0
    assert "0 of them among the 300 training rows" in shown
    assert "at 100 %: 200 of 200 users" in shown


async def test_users_who_are_moved_back_are_seen() -> None:
    done, _ = await go(World(forgetful=True))
    assert any("were taken back to the old model" in line for line in problems(done.outcome))


async def test_failed_requests_are_seen() -> None:
    done, _ = await go(World(failing=True))
    assert any("requests failed" in line and "500: broken" in line for line in problems(done.outcome))


async def test_a_leak_is_seen() -> None:
    done, _ = await go(World(), leaked=3)
    assert problems(done.outcome) == ["3 test rows are in the training data"]


async def test_a_rollback_is_no_success() -> None:
    done, _ = await go(World(), end="Rejected")
    assert problems(done.outcome) == ["the FineTune is Rejected, not Live"]


async def test_a_run_without_an_end_stops_at_the_limit() -> None:
    done, _ = await go(World(), limit=1.5, end="Paused")
    assert not done.in_time
