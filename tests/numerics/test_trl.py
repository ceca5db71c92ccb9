"""The trainer against TRL's: the same rows, weights and schedule give the same tokens, losses and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.data import arrays, preference
from finetune_trainer.train.model import trained

from tests.numerics import oracle
from tests.numerics.conftest import Measured
from tests.numerics.subjects import configured, conversations, farthest, pairs, relative
from tests.trainer import lives

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # peft asks transformers for it
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),  # TRL's default
]
LOSS = 1e-4
WEIGHT = 0.1  # of the learning rate: AdamW moves a weight by about that much a step, also where a gradient is all but rounding


def initial(config: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """What the run's trained parameters are before the first step."""
    return {name: value.detach().clone() for name, value in trained(lives.build(config, folder / "a0-initial").model).items()}


def compare(
    work: Path, model: Path, name: str, objective: str, tmp_path: Path, accumulate: int = 1, **overrides: Any
) -> tuple[lives.Trained, oracle.Learnt]:
    """The same run by the trainer and by TRL."""
    config = configured(work, model, name, objective, **overrides)
    start = initial(config, tmp_path)
    ours = lives.train(config, tmp_path / "ours")
    plan = ours.run.steps
    steps = [plan.rows(step) for step in range(plan.total_steps)]
    rows = conversations(work) if objective == "SFT" else pairs(work)
    theirs = oracle.train(
        objective, work / "models" / "tiny", config["method"], ours.run.training, rows, steps, start, tmp_path / "trl", accumulate
    )
    return ours, theirs


@pytest.mark.parametrize("name", ["Full", "LoRA", "rsLoRA", "DoRA"])
@pytest.mark.parametrize("objective", ["SFT", "DPO"])
def test_losses_and_weights_are_trls(name: str, objective: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured) -> None:
    ours, theirs = compare(work, plain_model, name, objective, tmp_path, training__evaluateEverySteps=10_000)
    losses = list(ours.losses.values())
    assert len(losses) > 5
    assert losses[-1] < losses[0], "something is learnt"
    measured(f"{objective} {name}: loss of each step, TRL (relative)", relative(losses, theirs.losses), LOSS)
    apart = farthest(trained(ours.run.model), theirs.weights) / ours.run.training.learning_rate
    measured(f"{objective} {name}: weights at the end, TRL (learning rates)", apart, WEIGHT)


@pytest.mark.parametrize("name", ["Full", "LoRA"])
def test_what_decays_is_trls(name: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured) -> None:
    """Biases and the weights of normalisations do not: those of the tiny model are 1, and would lose several learning rates."""
    ours, theirs = compare(work, plain_model, name, "SFT", tmp_path, training__weightDecay=0.5, training__evaluateEverySteps=10_000)
    losses = list(ours.losses.values())
    measured(f"SFT {name}, weight decay 0.5: loss of each step, TRL (relative)", relative(losses, theirs.losses), LOSS)
    apart = farthest(trained(ours.run.model), theirs.weights) / ours.run.training.learning_rate
    measured(f"SFT {name}, weight decay 0.5: weights at the end, TRL (learning rates)", apart, WEIGHT)


def test_a_step_cut_small_here_or_there_is_the_same(work: Path, plain_model: Path, tmp_path: Path, measured: Measured) -> None:
    ours, theirs = compare(work, plain_model, "LoRA", "SFT", tmp_path, accumulate=2, training__microBatchTokens=120)
    assert all(len(ours.run.steps.micro_batches(step, 0, 1)) > 2 for step in range(3))
    measured("SFT LoRA: one row a pass, TRL in two passes (relative)", relative(list(ours.losses.values()), theirs.losses), LOSS)


def test_trl_tokenises_the_same_rows_to_the_same_tokens_and_masks(
    work: Path, plain_model: Path, tmp_path: Path, measured: Measured
) -> None:
    _, sft = compare(work, plain_model, "LoRA", "SFT", tmp_path / "sft")
    prepared = arrays.load(work / "data" / "SFT", "train")
    wrong = 0
    for index, row in enumerate(sft.data):
        ids, mask = prepared.row(index)
        labels = [token if supervised else -100 for token, supervised in zip(ids.tolist(), mask.tolist(), strict=True)]
        wrong += (row["input_ids"], row["labels"]) != (ids.tolist(), labels)
    measured("SFT: rows that TRL tokenises or masks otherwise", wrong, 0)
    _, dpo = compare(work, plain_model, "LoRA", "DPO", tmp_path / "dpo")
    known = preference.load(work / "data" / "DPO", "train")
    wrong = 0
    for index, row in enumerate(dpo.data):
        for answer, (ids, mask) in zip(("chosen_ids", "rejected_ids"), known.pair(index), strict=True):
            wrong += [*row["prompt_ids"], *row[answer]] != ids.tolist() or len(row[answer]) != mask.sum()
    measured("DPO: answers that TRL tokenises or masks otherwise", wrong, 0)
