"""The engine: one thread that generates for all requests together.

Requests wait in a bounded queue; at every token those that fit join the running batch and those that are done leave it,
so a short request never waits for a long one to end. Invariant: the thread survives whatever a request does to it.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque

import torch

from finetune_trainer.serve.batch import Batch
from finetune_trainer.serve.generation import Generation
from finetune_trainer.serve.loading import Loaded

QUEUE_PER_SLOT = 16  # requests that may wait for each that runs
PREFILL_TOKENS = 4096  # padded prompt tokens read at once, so that running answers are not held up for long


class QueueFull(Exception):
    """As many requests wait as are allowed."""


class Stopping(Exception):
    """The engine takes no more requests."""


class Engine:
    """Generates for up to `slots` requests at once; at most `slots * QUEUE_PER_SLOT` wait."""

    def __init__(self, loaded: Loaded, slots: int) -> None:
        self._loaded, self._slots = loaded, slots
        self._waiting: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._batch = Batch(loaded.model, loaded.device)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Generation) -> None:
        """Queue `request`; its `emit` is called from the engine's thread. Raises QueueFull or Stopping."""
        with self._changed:
            if self._stopping:
                raise Stopping
            if len(self._waiting) >= self._slots * QUEUE_PER_SLOT:
                raise QueueFull
            self._waiting.append(request)
            self._changed.notify()

    def stop(self, timeout: float | None = None) -> None:
        """Take no more requests, finish those that are here, end the thread (seconds)."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._batch.rows)

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception as error:
                traceback.print_exc()
                self._drop_all(f"generation failed: {type(error).__name__}: {error}")

    def _wait(self) -> bool:
        """Block until there is something to do; False when all is done and the engine stops."""
        with self._changed:
            while not self._waiting and not self._batch.rows:
                if self._stopping:
                    return False
                self._changed.wait()
            return True

    def _turn(self) -> None:
        """Let waiting requests join (their first token), then one token for those that were running."""
        self._batch.keep([row for row in self._batch.rows if not row.cancelled])
        running = list(self._batch.rows)
        if running:
            self._advance(running, self._batch.step())
        joining = self._admit()
        if joining:
            try:
                logits = self._batch.prefill(joining)
            except Exception:
                for row in joining:
                    row.fail("the prompt could not be read")
                raise
            self._advance(joining, logits)

    def _admit(self) -> list[Generation]:
        """Waiting requests, in order, that fit into free slots and the prefill budget (at least one)."""
        joining: list[Generation] = []
        width = 0
        with self._changed:
            while self._waiting and len(self._batch.rows) + len(joining) < self._slots:
                candidate = self._waiting[0]
                width = max(width, len(candidate.prompt))
                if joining and width * (len(joining) + 1) > PREFILL_TOKENS:
                    break
                self._waiting.popleft()
                if not candidate.cancelled:
                    joining.append(candidate)
        for row in joining:
            row.begin(self._loaded.tokenizer, self._loaded.end_ids)
        return joining

    def _advance(self, rows: list[Generation], logits: torch.Tensor) -> None:
        """Give each of `rows` its token from `logits` (in the same order); drop those that end."""
        greedy = logits.argmax(-1).tolist()
        finite = torch.isfinite(logits.amax(-1)).tolist()
        done: set[Generation] = set()
        for index, row in enumerate(rows):
            if not finite[index]:
                row.fail("the model's output is not finite")
                done.add(row)
                continue
            token = greedy[index] if row.sampling.temperature <= 0 else row.choose(logits[index])
            if row.take(token):
                done.add(row)
        self._batch.keep([row for row in self._batch.rows if row not in done])

    def _drop_all(self, message: str) -> None:
        for row in self._batch.rows:
            row.fail(message)
        self._batch.clear()
