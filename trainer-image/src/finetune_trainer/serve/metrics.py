"""What the server counts, in Prometheus' form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from finetune_trainer.serve.generation import Finished


def _bounds(first: float, decades: float) -> tuple[float, ...]:
    """Eight bounds a decade, a third apart: two arms are compared by their quantiles."""
    return tuple(float(f"{first * 10 ** (i / 8):.1e}") for i in range(round(8 * decades) + 1))


_FIRST = _bounds(0.01, 4)  # to 100 s
_NEXT = _bounds(0.001, 3.5)  # to 3.2 s


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
        self.answers = Counter(
            "finetune_server_answers", "Answers by their end: stop, length (cut off), empty (nothing came before the stop)", ["end"],
            registry=self.registry,
        )  # fmt: skip
        self.tokens = Counter("finetune_server_tokens", "Tokens by kind", ["kind"], registry=self.registry)

    def observe(self, finished: Finished) -> None:
        """Count one finished generation."""
        self.first.observe(finished.first_token - finished.submitted)
        if finished.completion_tokens > 1:
            seconds = finished.last_token - finished.first_token
            self.next.observe(seconds / (finished.completion_tokens - 1))
        empty = finished.reason == "stop" and finished.completion_tokens <= 1
        self.answers.labels("empty" if empty else finished.reason).inc()
        self.tokens.labels("prompt").inc(finished.prompt_tokens)
        self.tokens.labels("completion").inc(finished.completion_tokens)

    def exposition(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)
