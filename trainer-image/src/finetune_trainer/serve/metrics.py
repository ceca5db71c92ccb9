"""What the server counts, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from finetune_trainer.serve.generation import Finished

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60)
_NEXT = (0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """One registry per server. Durations are seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("finetune_server_requests", "Requests by path and status code", ["path", "code"], registry=self.registry)
        self.inflight = Gauge("finetune_server_inflight_requests", "Inference requests held", registry=self.registry)
        self.queue = Gauge("finetune_server_queued_requests", "Requests that wait for a slot", registry=self.registry)
        self.ready = Gauge("finetune_server_ready", "1 while ready", registry=self.registry)
        self.first = Histogram(
            "finetune_server_time_to_first_token_seconds", "From receipt to the first token",
            buckets=_FIRST, registry=self.registry,
        )  # fmt: skip
        self.next = Histogram(
            "finetune_server_time_per_output_token_seconds", "Mean of each request after its first token",
            buckets=_NEXT, registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter("finetune_server_tokens", "Tokens by kind", ["kind"], registry=self.registry)

    def observe(self, finished: Finished) -> None:
        """Count one finished generation."""
        self.first.observe(finished.first_token - finished.submitted)
        if finished.completion_tokens > 1:
            seconds = finished.last_token - finished.first_token
            self.next.observe(seconds / (finished.completion_tokens - 1))
        self.tokens.labels("prompt").inc(finished.prompt_tokens)
        self.tokens.labels("completion").inc(finished.completion_tokens)

    def exposition(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)
