"""What the routers serve and what they report: values shared by builders, decisions and the pods' client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

# Histogram of latencies: (upper bound in milliseconds, cumulative count); the last bound is infinite.
Buckets = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Backend:
    """An arm as the routers see it: its name, the DNS name of its pods, what it serves, where it says that it is ready."""

    arm: str
    host: str
    revision: str
    ready_path: str = "/readyz"


@dataclass(frozen=True)
class Source:
    """Where a user's identity is read from: a header, or a field at the top of the JSON body."""

    header: str = ""
    body_field: str = ""


@dataclass(frozen=True)
class Structure:
    """What a document says besides its weight: arms, salt, where the user's identity is read from (the first that names one)."""

    stable: Backend
    canary: Backend | None
    salt: str
    identity: tuple[Source, ...]
    rollout: str = ""  # names the rollout: weights that routers remember of an earlier one between the same arms are inert

    @cached_property
    def version(self) -> str:
        """Names the structure; weights pushed for another version are inert."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ArmTotals:
    """Counters of one arm: in one router, of the inference requests of users with an identity, since that router started; in one of
    its model servers, of all answers since that server started (from `first_token` on; without bounds the server does not tell it)."""

    requests: int = 0
    errors: int = 0
    latency: Buckets = ()
    healthy: int = 0  # members of its cluster that pass the health check
    first_token: Buckets = ()
    output_token: Buckets = ()  # time per output token, the mean of each answer
    answers: int = 0
    unusable: int = 0  # of the answers: empty, or cut off at their longest


@dataclass(frozen=True)
class ServerState:
    """A model server's own word; without totals it could not be asked."""

    pod: str
    started: str
    arm: str
    totals: ArmTotals | None = None


@dataclass(frozen=True)
class RouterState:
    """A router's own word; `error` says why it could not be asked. Whoever is `leaving` has users until they have left it, and nobody waits
    for what it is to learn: it may learn nothing any more."""

    pod: str
    ip: str
    started: str
    ready: bool
    version: str | None = None
    weight: int | None = None
    totals: Mapping[str, ArmTotals] = field(default_factory=dict)
    error: str = ""
    leaving: bool = False
