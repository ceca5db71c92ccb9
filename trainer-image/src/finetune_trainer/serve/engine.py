"""The engine: one thread that generates for all requests together.

Requests wait in a bounded queue; at every token those that fit join the running batch and those that are done leave it,
so a short request waits for a long one to end only where the cache would grow too large. Invariant: the thread survives
whatever a request does to it, and all rows but a single one fit into CACHE_TOKENS until their last token.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque

import torch

from finetune_trainer.serve.batch import Batch
from finetune_trainer.serve.generation import Generation
from finetune_trainer.serve.loading import Loaded
from finetune_trainer.serve.logprobs import Speller

QUEUE_PER_SLOT = 16  # requests that may wait for each that runs
CACHE_TOKENS = 32768  # rows x columns: 16 rows of 2048; 4 GiB where a token takes 128 KiB (8 billion parameters, bfloat16)
PREFILL_TOKENS = 4096  # padded prompt tokens read at once, so that running answers are not held up for long


class QueueFull(Exception):
    """As many requests wait as are allowed."""


class Stopping(Exception):
    """The engine takes no more requests."""


class Engine:
    """Generates for up to `slots` requests at once; at most `slots * QUEUE_PER_SLOT` wait."""

    def __init__(self, loaded: Loaded, slots: int) -> None:
        self._loaded, self._slots = loaded, slots
        self._speller = Speller(loaded.tokenizer)
        self._waiting: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._batch = Batch(loaded.model, loaded.device, loaded.prefix)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, *requests: Generation) -> None:
        """Queue all of `requests` or none; `emit` is called from the engine's thread. Raises QueueFull or Stopping."""
        with self._changed:
            if self._stopping:
                raise Stopping
            if len(self._waiting) + len(requests) > self._slots * QUEUE_PER_SLOT:
                raise QueueFull
            self._waiting.extend(requests)
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
        """Waiting requests, in order, that fit into free slots, the prefill budget (at least one) and the cache (one
        alone always does)."""
        joining: list[Generation] = []
        with self._changed:
            while self._waiting and len(self._batch.rows) + len(joining) < self._slots:
                candidate = self._waiting[0]
                if not candidate.cancelled:
                    if not self._fits([*joining, candidate]):
                        break
                    joining.append(candidate)
                self._waiting.popleft()
        for row in joining:
            row.begin(self._loaded.tokenizer, self._speller, self._loaded.end_ids)
        return joining

    def _fits(self, joining: list[Generation]) -> bool:
        """Whether the last of `joining` may join: every row is as wide as the widest, and grows until the last one ends."""
        width = max(len(row.prompt) for row in joining)
        if len(joining) > 1 and width * len(joining) > PREFILL_TOKENS:
            return False
        width += self._loaded.prefix.tokens if self._loaded.prefix else 0
        rows = [*self._batch.rows, *joining]
        growth = max(row.sampling.max_tokens - row.tokens for row in rows)
        return len(rows) == 1 or len(rows) * (max(self._batch.columns, width) + growth) <= CACHE_TOKENS

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
            if _take(row, greedy[index], logits[index]):
                done.add(row)
        self._batch.keep([row for row in self._batch.rows if row not in done])

    def _drop_all(self, message: str) -> None:
        for row in self._batch.rows:
            row.fail(message)
        self._batch.clear()


def _take(row: Generation, greedy: int, logits: torch.Tensor) -> bool:
    """Give `row` its token; whether it is done. What goes wrong with one row fails that row alone."""
    try:
        token = greedy if row.sampling.temperature <= 0 else row.choose(logits)
        return row.take(token, logits)
    except Exception as error:
        traceback.print_exc()
        row.fail(f"generation failed: {type(error).__name__}: {error}")
        return True
