"""The only training loop.

A step: every rank adds up the gradients of its micro-batches, each loss divided by the step's global count of
supervised tokens (or pairs); the hosts add up the two flags "stop" and "save" and what says which rows were passed; the engine adds the
ranks' gradients and losses together and steps where they are finite. No host waits for its device: what a step came to is read when the
next one is queued, or before anything else is done with the weights. So every rank has the same numbers and takes the same decisions.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.config import TrainingConfig
from finetune_trainer.exits import Interrupted, NonFinite
from finetune_trainer.progress import Progress, timestamp
from finetune_trainer.train import checkpoint, optimizer, order, plan, suspects
from finetune_trainer.train.checkpoint import Checkpoint, State
from finetune_trainer.train.device import Later
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.engine import Engine
from finetune_trainer.train.objective import Objective, precision
from finetune_trainer.train.optimizer import Tensors

SKIPS_BEFORE_ROLLBACK = 3
AHEAD = 1  # steps that are queued before what an earlier one came to is read
WINDOW = 20


@dataclass
class Run:
    """Everything one rank's loop works with; `train` and `validation` are rows as the objective knows them, `reference` is
    what it computed of them before training began; `stop_requested` is set by the signal handler. `supervised` are tokens by
    training row, `token_share` what one token a second is of the gang's peak (MFU), `origin` names rows of a split for people."""

    ranks: Ranks
    engine: Engine
    objective: Objective
    training: TrainingConfig
    steps: plan.Plan
    train: Any
    validation: Any
    bf16: bool
    attempt: Path
    fingerprint: str
    progress: Progress
    beat: Callable[[], None]
    reference: Tensors = field(default_factory=dict)
    resume: Checkpoint | None = None
    stop_requested: bool = False
    last_checkpoint: Path | None = None
    step: int = 0
    supervised: npt.NDArray[np.int64] | None = None
    token_share: float | None = None
    origin: Callable[[str, Sequence[int]], str] = lambda split, rows: f"{split} rows {', '.join(map(str, rows))}"

    @property
    def model(self) -> Any:
        """What passes go through."""
        return self.engine.model


@dataclass(frozen=True)
class Outcome:
    """What a finished loop has found: the weights to export and the figures of the run."""

    weights: Tensors
    state: State
    stopped_early: bool
    tokens_per_second: float | None


@dataclass(frozen=True)
class _Queued:
    """Step `step` (from 1), which has `rows`, and what it came to: its loss, and 1, or 0 where it changed nothing. With it there are
    `tokens` in all; `supervised` are its own."""

    step: int
    rows: Sequence[int]
    rate: float
    tokens: int
    supervised: int
    found: Later


@dataclass
class _Speed:
    """Tokens a second and seconds a step over the last steps."""

    marks: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))
    supervised: int = 0

    def mark(self, at: float, tokens: int, supervised: int = 0) -> None:
        """By the monotonic clock a step ended then, with so many tokens in all, and so many supervised ones of its own."""
        self.supervised += supervised
        self.marks.append((at, tokens, self.supervised))

    def rates(self) -> tuple[float | None, float | None]:
        if len(self.marks) < 2:
            return None, None
        seconds = max(1e-9, self.marks[-1][0] - self.marks[0][0])
        return (self.marks[-1][1] - self.marks[0][1]) / seconds, seconds / (len(self.marks) - 1)

    def facts(self, token_share: float | None) -> dict[str, float | None]:
        """What progress tells of speed."""
        tokens, step = self.rates()
        learnt = None if tokens is None or step is None else (self.marks[-1][2] - self.marks[0][2]) / (step * (len(self.marks) - 1))
        mfu = None if tokens is None or token_share is None else tokens * token_share
        return {"tokensPerSecond": tokens, "supervisedTokensPerSecond": learnt, "mfu": mfu, "secondsPerStep": step}


class Loop:
    """Runs a `Run` from its resume point to the end."""

    def __init__(self, run: Run) -> None:
        self.run_ = run
        self.engine = run.engine
        self.best: Tensors | None = None
        self.speed = _Speed()
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.queued: deque[_Queued] = deque()
        self.bad_in_a_row = 0
        self.rolled_back = self.owed = False
        self.state = State(0, run.training.seed, run.fingerprint, 0, 0.0, None, None, None, None, 0, 0)
        if run.resume is not None:
            self._restore(run.resume)
        self.started = time.monotonic() - self.state.seconds
        self.saved_at = time.monotonic()
        self.engine.remember()

    def execute(self) -> Outcome:
        """All remaining steps. Raises Interrupted after a common stop, NonFinite when roll-back did not help."""
        run = self.run_
        run.model.train()
        early = self._out_of_patience()
        self.speed.mark(time.monotonic(), self.state.tokens)
        while self.state.step < run.steps.total_steps and not early:
            stop, save = self._step(self.state.step)
            if self._evaluation_due():
                early = self._evaluate()
            self.owed |= save
            if stop or (self.owed and not self._in_doubt()):
                self._save()
            if stop:
                raise Interrupted("Interrupted", f"stopped on request after step {self.state.step}; a checkpoint is saved")
        self._settle()
        weights = self.best if self.best is not None else self.engine.weights()
        early = early and self.state.step < run.steps.total_steps
        return Outcome(weights, self._now(), early, self.speed.rates()[0])

    def _step(self, step: int) -> tuple[bool, bool]:
        run = self.run_
        rows = run.steps.rows(step)
        count = max(1, run.objective.count(run.train, rows))
        rate = optimizer.learning_rate(step, run.steps.total_steps, run.training)
        torch.manual_seed((run.training.seed * 1_000_003 + step) * 4096 + run.ranks.rank)
        self.engine.begin()
        total, passed = torch.zeros((), device=run.ranks.device), list[int]()
        for micro, weight in run.steps.micro_batches(step, run.ranks.rank, run.ranks.world_size, self.engine.in_step):
            with self._precision():
                loss = run.objective.loss(run.model, run.train, micro, run.ranks.device) / count * weight
            self.engine.backward(loss)
            total += loss.detach()
            passed += micro if weight else ()
            run.beat()
        stop, save, *sums = run.ranks.agree((float(run.stop_requested), float(self._save_due(step + 1)), *order.share(passed)))
        run.beat()
        found = self._made(total, rate)
        tokens = self.state.tokens + int(run.steps.lengths[list(rows)].sum())
        supervised = 0 if run.supervised is None else int(run.supervised[list(rows)].sum())
        self.state = replace(self.state, step=step + 1, tokens=tokens, order=order.after(self.state.order, sums))
        run.step = step + 1
        self.queued.append(_Queued(step + 1, rows, rate, tokens, supervised, Later(found)))
        self._settle(AHEAD)
        run.beat()
        return stop > 0, save > 0

    def _settle(self, ahead: int = 0) -> None:
        """Take in what queued steps came to, but for the last `ahead`; of all, once one of them has changed nothing, so that a roll-back
        comes before the next."""
        while len(self.queued) > (0 if self.bad_in_a_row else ahead):
            queued = self.queued.popleft()
            (loss, stepped), ended = queued.found.read()
            self._take_in(queued, loss, stepped > 0)
            self.speed.mark(ended, queued.tokens, queued.supervised)
            self._report(queued.step, loss, queued.rate)

    def _take_in(self, queued: _Queued, loss: float, stepped: bool) -> None:
        """Count a step, or one that was skipped; after several of these roll back once, then give up."""
        step, rate = queued.step, queued.rate
        if stepped:
            self.bad_in_a_row = 0
            self.recent.append(loss)
            losses = self.state.losses.add(step, loss)
            self.state = replace(self.state, losses=losses, loss=self._mean_loss(), recent=tuple(self.recent))
            return
        self.bad_in_a_row += 1
        self.state = replace(self.state, skipped=self.state.skipped + 1)
        found = self._suspects("train", self.run_.train, queued.rows)
        if self.run_.ranks.first:
            print(f"step {step} is skipped: {found.message}", flush=True)
        if self.bad_in_a_row < SKIPS_BEFORE_ROLLBACK:
            return
        if self.rolled_back:
            raise NonFinite(
                "NonFiniteLoss",
                f"loss or gradients are not finite at step {step}, also after a roll-back (learning rate {rate:g}): {found.message}",
                found.fix,
            )
        self.rolled_back, self.bad_in_a_row = True, 0
        self.engine.roll_back()

    def _made(self, loss: torch.Tensor, rate: float) -> torch.Tensor:
        try:
            return self.engine.step(loss, rate)
        except RuntimeError as error:
            if "without overflow" not in str(error):
                raise
            step = self.state.step + 1
            reason = f"a step at learning rate {rate:g} goes beyond all numbers of the weights' precision, at step {step}"
            raise NonFinite("NonFiniteLoss", reason, suspects.LOWER) from error

    def _suspects(self, split: str, data: Any, rows: Sequence[int]) -> suspects.Finding:
        run = self.run_

        def loss(row: int) -> torch.Tensor:
            with self._precision():
                return run.objective.loss(run.model, data, (row,), run.ranks.device)

        bad = suspects.find(run.model, loss, rows, run.ranks, run.beat)
        return suspects.explain(bad, len(rows), self.state.loss is not None, lambda several: run.origin(split, several))

    def _evaluation_due(self) -> bool:
        run, step = self.run_, self.state.step
        every = run.training.evaluate_every_steps or max(1, run.steps.steps_per_epoch // 2)
        return len(run.validation) > 0 and (step % every == 0 or step == run.steps.total_steps)

    def _evaluate(self) -> bool:
        """Score the validation rows on all ranks; keep the best weights; whether patience has run out."""
        run = self.run_
        self._settle()
        run.progress.update(state="validating")
        value = self._validation_loss()
        if not math.isfinite(value):
            found = self._suspects("validation", run.validation, range(len(run.validation)))
            raise NonFinite("NonFiniteLoss", f"the validation loss is {value} at step {self.state.step}: {found.message}", found.fix)
        if self.state.best_loss is None or value < self.state.best_loss:
            self.best = self.engine.weights()
            self.state = replace(self.state, best_loss=value, best_step=self.state.step, worse=0)
        else:
            self.state = replace(self.state, worse=self.state.worse + 1)
        self.state = replace(self.state, validation_loss=value, validations=self.state.validations.add(self.state.step, value))
        run.progress.update(state="training", validationLoss=value)
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.run_.training.early_stopping_patience
        return bool(patience) and self.state.worse >= (patience or 0)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        run = self.run_
        widths = run.objective.widths(run.validation)
        sums = torch.zeros(2, dtype=torch.float64 if run.ranks.device.type == "cpu" else torch.float32, device=run.ranks.device)
        run.model.eval()
        every, ranks, steps = range(len(run.validation)), run.ranks, run.steps
        for rows, weight in plan.micro_batches(
            every, widths, steps.micro_batch_tokens, ranks.rank, ranks.world_size, steps.packed, self.engine.in_step
        ):
            with self._precision():
                sums[0] += weight * run.objective.loss(run.model, run.validation, rows, run.ranks.device)
            sums[1] += weight * run.objective.count(run.validation, rows)
            run.beat()
        run.model.train()
        run.ranks.sum(sums)
        run.beat()
        return float(sums[0] / sums[1].clamp(min=1))

    def _save_due(self, step: int) -> bool:
        """Rank 0 decides; the others learn it with the step's sums."""
        settings = self.run_.training.checkpoint
        if not self.run_.ranks.first or step >= self.run_.steps.total_steps:
            return False
        by_step = settings.every_steps is not None and step % settings.every_steps == 0
        return by_step or (settings.every_seconds is not None and time.monotonic() - self.saved_at >= settings.every_seconds)

    def _in_doubt(self) -> bool:
        """Whether the last step changed nothing: if it was the weights' fault, a roll-back must not come back to them."""
        self._settle()
        return self.bad_in_a_row > 0

    def _save(self) -> None:
        """All ranks go on when the checkpoint is committed."""
        run = self.run_
        self._settle()
        self.owed = False
        self.engine.remember()
        weights, moments = self.engine.state()
        self.saved_at = time.monotonic()
        run.progress.update(state="saving")
        content = Checkpoint(self._now(), weights, moments, self.best, run.reference)
        saved = run.ranks.first_does(lambda: checkpoint.save(run.attempt, content, run.training.checkpoint.keep), run.beat, content.size)
        if saved is not None:
            run.last_checkpoint = saved
            run.progress.update(checkpoint={"step": self.state.step, "time": timestamp(), "path": str(saved)})
        run.progress.update(state="training")

    def _restore(self, saved: Checkpoint) -> None:
        self.engine.restore(saved.weights, saved.optimizer)
        self.state, self.best = saved.state, saved.best
        self.recent.extend(saved.state.recent)
        self.run_.step = saved.state.step

    def _now(self) -> State:
        return replace(self.state, seconds=time.monotonic() - self.started)

    def _mean_loss(self) -> float | None:
        return sum(self.recent) / len(self.recent) if self.recent else self.state.loss

    def _precision(self) -> AbstractContextManager[object]:
        return precision(self.run_.bf16 and self.engine.autocast, self.run_.ranks.device)

    def _report(self, step: int, loss: float, rate: float) -> None:
        run = self.run_
        tokens_per_second, seconds_per_step = self.speed.rates()
        left = run.steps.total_steps - step
        run.progress.update(
            state="training",
            step=step,
            totalSteps=run.steps.total_steps,
            epoch=round(step / run.steps.steps_per_epoch, 3),
            loss=loss,
            learningRate=rate,
            **self.speed.facts(run.token_share),
            etaSeconds=None if seconds_per_step is None else round(left * seconds_per_step),
            percent=round(100 * step / run.steps.total_steps),
        )
        if run.ranks.first:
            speed = "" if tokens_per_second is None else f" {tokens_per_second:.0f} tokens/s"
            print(f"step {step}/{run.steps.total_steps} loss {loss:.6f} rate {rate:.2e}{speed}", flush=True)
