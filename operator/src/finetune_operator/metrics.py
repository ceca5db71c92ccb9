"""Prometheus metrics of the operator, each once (docs/observability.md). Of a FineTune they follow its status, so a restart loses none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator import conditions
from finetune_operator.decide.rollout.states import ACTIVE, DEPLOYING
from finetune_operator.decide.stages import BASE

Key = tuple[str, str]
# Gauge of a FineTune → what it says, and its labels beside namespace and name.
GAUGES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "finetune_phase": ("1 for the phase that a FineTune is in", ("phase",)),
    "finetune_not_ready": ("1 for the reason why a FineTune is not ready", ("reason",)),
    "finetune_available": ("1 while a pod of what is live is ready, 0 while none is", ()),
    "finetune_arm": ("1 for each arm that users are on or are moved to", ("role", "arm", "revision")),
    "finetune_rollout_state": ("1 for the state of the last rollout", ("state",)),
    "finetune_rollout_weight_percent": ("Share of users on the newest arm", ()),
    "finetune_training_step": ("Optimizer step of the last training attempt", ()),
    "finetune_training_total_steps": ("Optimizer steps in all", ()),
    "finetune_training_loss": ("Training loss", ()),
    "finetune_training_attempts": ("Attempts that ended, by how; of failures the class", ("outcome",)),
    "finetune_training_hours": ("Hours of training, of all attempts", ()),
    "finetune_training_gpu_hours": ("Hours of training times accelerators", ()),
    "finetune_training_cost": ("Cost of training by the profiles' hourly prices", ()),
    "finetune_scoring_gpu_hours": ("Hours of scoring times accelerators, of Jobs that ended", ()),
    "finetune_scoring_cost": ("Cost of scoring by the profiles' hourly prices, of Jobs that ended", ()),
    "finetune_serving_gpus": ("Accelerators of the model servers that there are to be", ()),
    "finetune_serving_cost_per_hour": ("Cost of the model servers that there are to be, an hour", ()),
}
Samples = Mapping[tuple[str, tuple[str, ...]], float]  # by gauge and those labels


class Metrics:
    """Counters and gauges in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.reconciles = Counter("finetune_reconciles", "Cycles by outcome", ["outcome"], registry=r)
        self.seconds = Histogram("finetune_reconcile_seconds", "Seconds of a cycle", registry=r)
        self.depth = Gauge("finetune_queue_depth", "FineTunes that are due or scheduled", registry=r)
        self.writes = Counter("finetune_api_writes", "Writes to the API server", ["verb", "kind"], registry=r)
        self.leading = Gauge("finetune_leading", "1 while this process holds the Lease", registry=r)
        self.watch_restarts = Counter("finetune_watch_restarts", "Times that the watches were begun anew", registry=r)
        self._finetunes = _FineTunes()
        r.register(self._finetunes)

    def count_write(self, verb: str, kind: str) -> None:
        """A write was sent."""
        self.writes.labels(verb, kind).inc()

    def observe_finetune(self, finetune: Mapping[str, Any]) -> None:
        """Take over what a FineTune's status says; what it says no longer is gone."""
        meta = finetune["metadata"]
        self._finetunes.known[meta["namespace"], meta["name"]] = samples(finetune.get("status") or {})

    def forget(self, key: Key) -> None:
        """A FineTune is gone."""
        self._finetunes.known.pop(key, None)


class _FineTunes(Collector):
    """All FineTunes' gauges: kept as values and made into metrics when somebody asks."""

    def __init__(self) -> None:
        self.known: dict[Key, Samples] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, in order."""
        families = {name: GaugeMetricFamily(name, told, labels=["namespace", "name", *labels]) for name, (told, labels) in GAUGES.items()}
        for key, found in self.known.items():
            for (name, labels), value in found.items():
                families[name].add_metric([*key, *labels], value)
        yield from families.values()


def samples(status: Mapping[str, Any]) -> Samples:
    """What a status says, in numbers."""
    found: dict[tuple[str, tuple[str, ...]], float] = {("finetune_phase", (str(status.get("phase", conditions.PENDING)),)): 1.0}
    told = {c["type"]: c for c in status.get("conditions") or ()}
    ready, available = told.get(conditions.READY, {}), told.get(conditions.AVAILABLE)
    if ready.get("status") == "False":
        found["finetune_not_ready", (str(ready["reason"]),)] = 1.0
    if available and _has_users(status):
        found["finetune_available", ()] = float(available["status"] == "True")
    return found | _training(status) | _beside(status.get("cost") or {}) | _serving(status)


def _has_users(status: Mapping[str, Any]) -> bool:
    """Is something live, and not merely on its way there for the first time?"""
    first = status.get("liveRevision") == BASE and (status.get("rollout") or {}).get("state") == DEPLOYING
    return bool(status.get("liveArm")) and not first


def _training(status: Mapping[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    told: dict[str, Any] = {}
    if training := status.get("training"):
        told |= {"step": training.get("step", 0), "total_steps": training.get("totalSteps", 0), "loss": training.get("loss")}
    if cost := status.get("cost"):
        told |= {"hours": cost.get("hours", 0), "gpu_hours": cost.get("gpuHours", 0), "cost": cost.get("amount", 0)}
    attempts = {("finetune_training_attempts", (how,)): float(count) for how, count in (status.get("totals") or {}).items() if count}
    return attempts | {(f"finetune_training_{name}", ()): float(value) for name, value in told.items() if value is not None}


def _beside(cost: Mapping[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    """What scoring and serving cost beside training; nothing of what has no price."""
    scoring, serving = cost.get("scoring") or {}, cost.get("serving") or {}
    told = {
        "finetune_scoring_gpu_hours": scoring.get("gpuHours"), "finetune_scoring_cost": scoring.get("amount"),
        "finetune_serving_gpus": serving.get("gpus"), "finetune_serving_cost_per_hour": serving.get("perHour"),
    }  # fmt: skip
    return {(name, ()): float(value) for name, value in told.items() if value is not None}


def _serving(status: Mapping[str, Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    if live := status.get("liveArm"):
        found["finetune_arm", ("stable", live, str(status.get("liveRevision", "")))] = 1.0
    if rollout := status.get("rollout"):
        found["finetune_rollout_weight_percent", ()] = float(rollout.get("weight", 0))
        found["finetune_rollout_state", (rollout["state"],)] = 1.0
        if rollout["state"] in ACTIVE:
            found["finetune_arm", ("canary", rollout["arm"], rollout["revision"])] = 1.0
    return found
