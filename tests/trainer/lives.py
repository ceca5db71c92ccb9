"""A run in this process, from configuration to artifact: what a rank does, without its pod."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import layout
from finetune_trainer.config import RunConfig, need
from finetune_trainer.exits import Interrupted
from finetune_trainer.progress import Progress
from finetune_trainer.serve.engine import Engine
from finetune_trainer.serve.generation import Event, Generation, Sampling
from finetune_trainer.serve.loading import Loaded
from finetune_trainer.serve.prefix import begin
from finetune_trainer.train import artifact, assemble
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.loop import Loop, Run

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
PROMPTS = ([5, 9, 30, 31, 32], [7, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48])


@dataclass
class Trained:
    """A finished run: loss by step, its model (which holds what was exported) and its artifact's folder."""

    losses: dict[int, float]
    run: Run
    artifact: Path


def train(config: dict[str, Any], folder: Path, stop_after: int | None = None) -> Trained:
    """Run to the end. With `stop_after` it is stopped there, and a second attempt resumes from its checkpoint."""
    losses: dict[int, float] = {}
    if stop_after is not None:
        with pytest.raises(Interrupted):
            _attempt(config, folder / "a0-one", (), losses, stop_after)
        assert sorted(losses) == list(range(1, stop_after + 1))
    resumable = () if stop_after is None else (folder / "a0-one",)
    run, outcome, inputs = _attempt(config, folder / "a1-two", resumable, losses, None)
    assert (run.resume is not None) == (stop_after is not None)
    facts = artifact.provenance(RunConfig.model_validate(config), inputs.fingerprint, inputs.model, inputs.data)
    artifact.save(run.attempt, run.model, outcome.weights, facts, RunConfig.model_validate(config).model.path)
    return Trained(losses, run, layout.artifact(run.attempt))


def stop_during(run: Run, step: int) -> None:
    """Let the run be asked to stop while it makes `step`."""
    begin = run.engine.begin

    def begun() -> None:
        run.stop_requested = run.step + 1 >= step
        begin()

    run.engine.begin = begun  # type: ignore[method-assign]


def silent() -> None:
    """The beat of a rank that nobody watches."""


def build(config: dict[str, Any], attempt: Path, resume_from: tuple[Path, ...] = (), beat: Callable[[], None] = silent) -> Run:
    """What the loop of this attempt works with."""
    return _build(config, attempt, resume_from, ALONE, beat)


def build_on(config: dict[str, Any], attempt: Path, beat: Callable[[], None] = silent) -> Run:
    """The same on one of several ranks, which joins them."""
    return _build(config, attempt, (), Ranks.join(60, gpus=False), beat)


def _build(config: dict[str, Any], attempt: Path, resume_from: tuple[Path, ...], ranks: Ranks, beat: Callable[[], None]) -> Run:
    paths = {"path": str(attempt.with_name(attempt.name.partition("-")[0])), "resumeFrom": [str(path) for path in resume_from]}
    loaded = RunConfig.model_validate({**config, "run": paths})
    torch.set_num_threads(need(loaded.compute, "compute").threads)
    return assemble.build(loaded, ranks, assemble.open_inputs(loaded), attempt, Progress("train"), beat)


def _attempt(
    config: dict[str, Any], attempt: Path, resume_from: tuple[Path, ...], losses: dict[int, float], stop_after: int | None
) -> Any:  # fmt: skip
    run = build(config, attempt, resume_from)
    report = Loop._report
    if stop_after is not None:
        stop_during(run, stop_after)

    def watched(loop: Loop, step: int, loss: float, rate: float) -> None:
        losses[step] = loss
        report(loop, step, loss, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_report", watched)
        outcome = Loop(run).execute()
    return run, outcome, assemble.open_inputs(RunConfig.model_validate(config))


@torch.inference_mode()
def trained_logits(run: Run, ids: list[int]) -> torch.Tensor:
    """Logits (tokens, vocabulary) of the model as it trained."""
    run.model.eval()
    logits: torch.Tensor = run.model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
    return logits


@torch.inference_mode()
def served_logits(loaded: Loaded, ids: list[int]) -> torch.Tensor:
    """Logits (tokens, vocabulary) of a loaded artifact."""
    cache, mask, positions = begin(loaded.prefix, 1, torch.ones(1, len(ids), dtype=torch.long))
    output = loaded.model(input_ids=torch.tensor([ids]), attention_mask=mask, position_ids=positions, past_key_values=cache)
    logits: torch.Tensor = output.logits[0].float()
    return logits


@torch.inference_mode()
def greedy(logits: Callable[[list[int]], torch.Tensor], prompt: list[int], count: int) -> list[int]:
    """The next `count` tokens by reading everything anew for each: slow, and without any cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


def generated(loaded: Loaded, count: int = 6) -> list[list[int]]:
    """What the engine generates for PROMPTS, all of them together."""
    engine = Engine(loaded, 4)
    tokens: list[list[int]] = []
    for prompt in PROMPTS:
        events: list[Event] = []
        request = _Recorded(list(prompt), Sampling(count, 0, ignore_end=True), events.append)
        tokens.append(request.taken)
        request.events = events
        engine.submit(request)
    engine.start()
    engine.stop(60)
    return tokens


class _Recorded(Generation):
    """A request that keeps its tokens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.taken: list[int] = []
        self.events: list[Event] = []

    def take(self, token: int, logits: torch.Tensor) -> bool:
        self.taken.append(token)
        return super().take(token, logits)

    def fail(self, message: str) -> None:
        raise AssertionError(message)
