"""What a running stage says about itself: `GET /progress`, `/metrics`, `/healthz` on port 8080.

Invariant: reading never blocks the work (a snapshot under a lock), and a port that cannot be bound never ends a stage.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
PORT_VARIABLE = "FINETUNE_PROGRESS_PORT"

_METRICS = {
    "step": "finetune_trainer_step",
    "totalSteps": "finetune_trainer_total_steps",
    "loss": "finetune_trainer_loss",
    "validationLoss": "finetune_trainer_validation_loss",
    "learningRate": "finetune_trainer_learning_rate",
    "tokensPerSecond": "finetune_trainer_tokens_per_second",
    "supervisedTokensPerSecond": "finetune_trainer_supervised_tokens_per_second",
    "mfu": "finetune_trainer_mfu_ratio",
    "secondsPerStep": "finetune_trainer_seconds_per_step",
    "etaSeconds": "finetune_trainer_eta_seconds",
    "percent": "finetune_trainer_percent",
}

_EMPTY: dict[str, object] = {
    "state": "starting",
    "step": 0,
    "totalSteps": None,
    "epoch": None,
    "loss": None,
    "validationLoss": None,
    "learningRate": None,
    "tokensPerSecond": None,
    "supervisedTokensPerSecond": None,
    "mfu": None,
    "secondsPerStep": None,
    "etaSeconds": None,
    "percent": 0,
    "checkpoint": None,
    "folder": None,
    "resumedFromStep": None,
    "note": "",
}


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 UTC to the second, of `seconds` since the epoch or of now."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if seconds is None else seconds))


class Progress:
    """The latest facts about a stage; safe to update and read from any thread."""

    def __init__(self, stage: str) -> None:
        self._lock = threading.Lock()
        self._moved = time.monotonic()
        self._facts: dict[str, object] = {"stage": stage, **_EMPTY, "updated": timestamp()}

    def update(self, **changes: object) -> None:
        """Replace the given fields (camelCase) and the time of the update."""
        with self._lock:
            self._facts.update(changes)
            self._facts["updated"] = timestamp()
            self._moved = time.monotonic()

    def snapshot(self) -> dict[str, object]:
        """A copy of all fields; numbers that JSON cannot carry are None."""
        with self._lock:
            facts = {**self._facts, "quietSeconds": round(time.monotonic() - self._moved, 1)}
        return {key: None if isinstance(value, float) and not _finite(value) else value for key, value in facts.items()}

    def metrics(self) -> str:
        """The Prometheus text exposition of the numeric fields."""
        facts = self.snapshot()
        lines = []
        for key, name in _METRICS.items():
            value = facts.get(key)
            if isinstance(value, int | float):
                lines += [f"# TYPE {name} gauge", f'{name}{{stage="{facts["stage"]}"}} {value}']
        return "\n".join(lines) + "\n"


@contextmanager
def serving(progress: Progress, port: int | None = None) -> Iterator[int]:
    """Serve `progress` on a daemon thread while the block runs; yields the port (0 where none could be bound)."""
    wanted = int(os.environ.get(PORT_VARIABLE, PORT)) if port is None else port
    try:
        server = ThreadingHTTPServer(("0.0.0.0", wanted), _handler(progress))
    except OSError as error:
        print(f"progress is not served: port {wanted}: {error}", flush=True)
        yield 0
        return
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def _handler(progress: Progress) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers the three paths; everything else is 404."""

        def do_GET(self) -> None:
            """One of /progress, /metrics, /healthz."""
            if self.path == "/progress":
                self._answer(200, "application/json", json.dumps(progress.snapshot()))
            elif self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4", progress.metrics())
            elif self.path == "/healthz":
                self._answer(200, "text/plain", "ok\n")
            else:
                self._answer(404, "text/plain", "not found\n")

        def _answer(self, status: int, kind: str, body: str) -> None:
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Polls are not logged."""

    return Handler


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
