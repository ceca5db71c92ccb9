"""Prometheus metrics of the operator, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


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
        labels = ["namespace", "name"]
        self.phase = Gauge("finetune_phase", "1 for the phase that a FineTune is in", [*labels, "phase"], registry=r)
        self.step = Gauge("finetune_training_step", "Optimizer step of the last training attempt", labels, registry=r)
        self.total = Gauge("finetune_training_total_steps", "Optimizer steps in all", labels, registry=r)
        self.loss = Gauge("finetune_training_loss", "Training loss", labels, registry=r)
        self.weight = Gauge("finetune_rollout_weight_percent", "Share of users on the newest arm", labels, registry=r)
        self.hours = Gauge("finetune_training_hours", "Hours of training, of all attempts", labels, registry=r)
        self.gpu_hours = Gauge("finetune_training_gpu_hours", "Hours of training times accelerators", labels, registry=r)
        self.cost = Gauge("finetune_training_cost", "Cost of training by the profiles' hourly prices", labels, registry=r)
        self._phases: dict[tuple[str, str], str] = {}

    def count_write(self, verb: str, kind: str) -> None:
        """A write was sent."""
        self.writes.labels(verb, kind).inc()

    def observe_finetune(self, finetune: Mapping[str, Any]) -> None:
        """Take over what a FineTune's status says."""
        meta, status = finetune["metadata"], finetune.get("status") or {}
        key = (meta["namespace"], meta["name"])
        phase = str(status.get("phase", "Pending"))
        if self._phases.get(key) != phase:
            if key in self._phases:
                self.phase.remove(*key, self._phases[key])
            self._phases[key] = phase
            self.phase.labels(*key, phase).set(1)
        if training := status.get("training"):
            self.step.labels(*key).set(training.get("step", 0))
            self.total.labels(*key).set(training.get("totalSteps", 0))
            if training.get("loss"):
                self.loss.labels(*key).set(float(training["loss"]))
        if cost := status.get("cost"):
            self.hours.labels(*key).set(float(cost["hours"]))
            self.gpu_hours.labels(*key).set(float(cost["gpuHours"]))
            self.cost.labels(*key).set(float(cost.get("amount", 0)))
        if rollout := status.get("rollout"):
            self.weight.labels(*key).set(rollout.get("weight", 0))

    def forget(self, key: tuple[str, str]) -> None:
        """A FineTune is gone."""
        phase = self._phases.pop(key, None)
        if phase is not None:
            self.phase.remove(*key, phase)
        for gauge in (self.step, self.total, self.loss, self.weight, self.hours, self.gpu_hours, self.cost):
            if key in gauge._metrics:
                gauge.remove(*key)
