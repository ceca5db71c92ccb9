"""What was met, timed and asked → the figures, each beside its goal: pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from tests.bench.control_plane.statistics import quantile

CONFIDENCE: Final = 0.99
JSON_KEYS: Final = (
    "users", "reshuffled", "failed", "share_outside_interval", "push_p99_s", "rollback_p99_s", "added_p50_ms", "added_p95_ms",
)  # fmt: skip
Figures = dict[str, float]


@dataclass(frozen=True)
class Visit:
    """An answer that a user got; times are seconds of one clock."""

    user: str
    on_canary: bool
    began: float
    ended: float


@dataclass(frozen=True)
class Rollback:
    """When it was decided, and when the last router had said that it is in force."""

    decided: float
    in_force: float


@dataclass(frozen=True)
class Push:
    """One decision: the weight, and after how many seconds each router said that it is in force."""

    weight: int
    seconds: tuple[float, ...]

    @property
    def last(self) -> float:
        return max(self.seconds)

    @property
    def apart(self) -> float:
        """Between the first router and the last."""
        return max(self.seconds) - min(self.seconds)


@dataclass(frozen=True)
class Drain:
    """A router whose pod was deleted: streams that it carried then, how many broke off, requests of users meanwhile, how many failed, the
    seconds until the last stream's end and until the router's, and whether it had to be killed."""

    streams: int
    cut: int
    requests: int
    failed: int
    streamed: float
    ended: float
    killed: bool


@dataclass
class Found:
    """Everything that a run has seen. `shares` are (weight in percent, users on the canary), `pairs` seconds of a direct call and of one
    through a router, by how many callers there were at once, `others_cores` how much of the machine others used meanwhile, and
    `router_us` the routers' CPU for a request, in µs, of each rollout."""

    users: int
    requests: int = 0
    failed: int = 0
    reshuffled: int = 0
    shares: list[tuple[int, int]] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    structures: list[float] = field(default_factory=list)
    pairs: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    others_cores: float = 0.0
    router_us: list[float] = field(default_factory=list)
    drain: Drain | None = None


def interval(n: int, share: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Between which counts a binomial's lies, with no more than half of what is left to the confidence on either side."""
    if share in (0.0, 1.0):
        return (round(n * share),) * 2
    tail, below, low = (1 - confidence) / 2, 0.0, -1
    for count in range(n + 1):
        log_mass = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        below += math.exp(log_mass + count * math.log(share) + (n - count) * math.log1p(-share))
        if low < 0 and below > tail:
            low = count
        if below >= 1 - tail:
            return low, count
    return low, n


def outside(n: int, weight: int, count: int) -> bool:
    """Is the count of users on the canary beyond chance?"""
    low, high = interval(n, weight / 100)
    return not low <= count <= high


def reshuffled(visits: Iterable[Visit], rollback: Rollback) -> set[str]:
    """Users who left the canary before the rollback was decided, or met it after the rollback was in force.

    A visit counts as later than another if it began after that had ended; one that was under way while the rollback was being
    told may have met either arm.
    """
    met: dict[str, float] = {}  # user → when the first answer of the canary was complete
    found = set()
    for visit in sorted(visits, key=lambda v: v.began):
        if visit.on_canary:
            met[visit.user] = min(met.get(visit.user, visit.ended), visit.ended)
            if visit.began >= rollback.in_force:
                found.add(visit.user)
        elif visit.began >= met.get(visit.user, math.inf) and visit.ended <= rollback.decided:
            found.add(visit.user)
    return found


def elsewhere(visits: Iterable[Visit], canary: frozenset[str] | set[str], since: float, until: float) -> set[str]:
    """Users who, between the last router's word and the next decision, met another arm than the one that is theirs at this weight."""
    return {v.user for v in visits if v.began >= since and v.ended <= until and v.on_canary != (v.user in canary)}


def figures(found: Found) -> Figures:
    """All that is printed; `JSON_KEYS` of it are the last line. Of several numbers of callers at once the worst is the one that counts."""
    made: Figures = {
        "users": found.users,
        "requests": found.requests,
        "reshuffled": found.reshuffled,
        "failed": found.failed,
        "shares": len(found.shares),
        "share_outside_interval": sum(outside(found.users, weight, count) for weight, count in found.shares),
        "pushes": len(found.pushes),
        "apart_p99_s": quantile([p.apart for p in found.pushes], 0.99),
        "structure_max_s": max(found.structures),
        "others_cores": found.others_cores,
        "router_us": quantile(found.router_us, 0.5),
    }
    for name, taken in (("push", [p for p in found.pushes if p.weight]), ("rollback", [p for p in found.pushes if not p.weight])):
        made |= {f"{name}_p50_s": quantile([p.last for p in taken], 0.5), f"{name}_p99_s": quantile([p.last for p in taken], 0.99)}
    for callers, pairs in found.pairs.items():
        made |= {f"{key}_{callers}_ms": 1000 * value for key, value in _latencies(pairs).items()}
    if found.drain:
        made |= {f"drain_{key}": float(value) for key, value in asdict(found.drain).items()}
    worst = {f"added_{p}_ms": max(made[f"added_{p}_{callers}_ms"] for callers in found.pairs) for p in ("p50", "p95")}
    return {key: int(value) if float(value).is_integer() else round(value, 4) for key, value in {**made, **worst}.items()}


def _latencies(pairs: Sequence[tuple[float, float]]) -> Mapping[str, float]:
    """Seconds: of direct calls, of calls through a router, and of what each of the latter took longer than its neighbour."""
    sides = {"direct": [d for d, _ in pairs], "routed": [r for _, r in pairs], "added": [r - d for d, r in pairs]}
    return {f"{side}_{name}": quantile(values, q) for side, values in sides.items() for name, q in (("p50", 0.5), ("p95", 0.95))}


@dataclass(frozen=True)
class Row:
    """A figure, and what it must not exceed."""

    title: str
    key: str
    goal: float | None = None

    def met(self, value: float) -> bool | None:
        """Is the goal met? None where there is none."""
        return None if self.goal is None else value <= self.goal


DRAINED: Final = (
    Row("a router that goes: streams on it", "drain_streams"),
    Row("- cut", "drain_cut", 0),
    Row("- requests meanwhile", "drain_requests"),
    Row("- failed", "drain_failed", 0),
    Row("- deletion to the last stream's end (s)", "drain_streamed"),
    Row("- deletion to its own end (s)", "drain_ended"),
    Row("- killed when the grace was over", "drain_killed", 0),
)


def rows(callers: Iterable[int]) -> list[Row]:
    """The table's lines, in their order."""
    sides = ("direct", "routed", "added")
    latency = [
        Row(f"{side}, {n} at once: {p} (ms)", f"{side}_{p}_{n}_ms", 1.0 if (side, p) == ("added", "p95") else None)
        for n in callers for side in sides for p in ("p50", "p95")
    ]  # fmt: skip
    return [
        Row("users", "users"),
        Row("requests", "requests"),
        Row("users reshuffled", "reshuffled", 0),
        Row("requests failed", "failed", 0),
        Row("shares looked at", "shares"),
        Row("- outside the binomial 99 % interval", "share_outside_interval", 0),
        Row("pushes", "pushes"),
        Row("decision to the last router: p50 (s)", "push_p50_s"),
        Row("decision to the last router: p99 (s)", "push_p99_s", 1),
        Row("rollback to the last router: p50 (s)", "rollback_p50_s"),
        Row("rollback to the last router: p99 (s)", "rollback_p99_s", 1),
        Row("first router to the last: p99 (s)", "apart_p99_s"),
        Row("a new structure in every router: max (s)", "structure_max_s"),
        *latency,
        Row("routers' CPU for a request (µs)", "router_us"),
        Row("cores that others used meanwhile", "others_cores"),
    ]


def shares(found: Found) -> str:
    """Who was on the canary at each weight, in one line a weight."""
    counts = {weight: [count for w, count in found.shares if w == weight] for weight in sorted({w for w, _ in found.shares})}
    return "\n".join(f"on the canary at {weight} %: {', '.join(map(str, counted))} of {found.users}" for weight, counted in counts.items())


def missed(found: Figures, callers: Iterable[int]) -> list[str]:
    """The figures that miss their goals."""
    return [row.key for row in _shown(found, callers) if row.met(found[row.key]) is False]


def table(found: Figures, callers: Iterable[int]) -> str:
    """Every figure beside its goal."""
    lines = [("", "measured", "goal", ""), *(_line(row, found[row.key]) for row in _shown(found, callers))]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.ljust(widths[2])}  {d}".rstrip() for a, b, c, d in lines)


def _shown(found: Figures, callers: Iterable[int]) -> list[Row]:
    return [*rows(callers), *(DRAINED if DRAINED[0].key in found else ())]


def _line(row: Row, value: float) -> tuple[str, str, str, str]:
    goal = "" if row.goal is None else f"<= {row.goal:g}"
    verdict = {True: "met", False: "MISSED", None: ""}[row.met(value)]
    return row.title, f"{value:.4g}" if isinstance(value, float) else str(value), goal, verdict
