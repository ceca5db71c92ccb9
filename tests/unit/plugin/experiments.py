"""Logs and outcomes of A/B tests that were never run: users of two kinds, with known differences, from a fixed seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator.build.exposure_log import LOG
from kubectl_finetune.ab.compare import hashed, key_id

KEY = b"correct horse battery staple"
BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)
ROLLOUT, STABLE, CANARY = "a1b2c3d4", "aaa11111", "bbb22222"


def line(name: str, on: str = STABLE, /, **changes: Any) -> str:
    """A line of the log, as a router writes it."""
    document: dict[str, Any] = {
        "log": LOG, "time": BEGAN.isoformat(), "user": hashed(KEY, name), "key": key_id(KEY), "rollout": ROLLOUT, "canary": CANARY,
        "split": 50, "arm": on, "revision": "0a0b0c0d" if on == STABLE else "1f2e3d4c", "status": 200, "flags": "-",
        "duration_ms": 800, "first_ms": 100, "prompt_tokens": 12, "completion_tokens": 200, "response": "chatcmpl-1",
    }  # fmt: skip
    return json.dumps({**document, **changes}) + "\n"


def arm_of(user: str, split: float = 50) -> str:
    """As the routers' hash would have it."""
    return CANARY if int(hashed(b"salt of the split", user), 16) % 10_000 < 100 * split else STABLE


def log(users: int, seed: int = 17, split: float = 50, faster: float = 0.0) -> Iterator[str]:
    """Users with one to many requests each, slow ones and quick ones; the canary is `faster` by that share."""
    random_ = random.Random(seed)
    for number in range(users):
        user = f"user-{number}"
        arm, pace = arm_of(user, split), random_.lognormvariate(0, 0.4)
        for request in range(1 + int(random_.expovariate(0.3))):
            ms = 800 * pace * random_.lognormvariate(0, 0.5) * (1 - faster * (arm == CANARY))
            failed = random_.random() < 0.01
            at = BEGAN + timedelta(minutes=random_.uniform(0, 14 * 24 * 60))
            yield line(
                user, arm, time=at.isoformat(timespec="milliseconds"), split=split, duration_ms=round(ms), first_ms=round(ms / 7),
                completion_tokens=None if failed else max(1, round(random_.gauss(200, 60))), status=503 if failed else 200,
                response=f"chatcmpl-{number}-{request}",
            )  # fmt: skip


def solved(users: int, seed: int = 18, better: float = 0.0, split: float = 50) -> Iterator[tuple[str, int]]:
    """User and whether it was solved: three in five on stable, `better` more on the canary."""
    random_ = random.Random(seed)
    for number in range(users):
        user = f"user-{number}"
        yield user, int(random_.random() < 0.6 + better * (arm_of(user, split) == CANARY))


def normal(z: float) -> float:
    """Share of a normal distribution below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2))
