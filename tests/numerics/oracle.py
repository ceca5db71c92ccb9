"""TRL's trainers, given the trainer's steps: they tokenise, collate, compute losses, clip, schedule and update by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from finetune_trainer.config import TrainingConfig
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.numerics.subjects import BETA


@dataclass
class Learnt:
    """Loss by step, the trained parameters by name, and the data set as TRL prepared it."""

    losses: list[float]
    weights: dict[str, torch.Tensor]
    data: Any


class _Given:
    """Takes batches of given rows, and keeps each batch's loss. Before a class of TRL's."""

    batches: Sequence[Sequence[int]]
    seen: list[float]

    def get_train_dataloader(self: Any) -> Any:
        """The batches in their order."""
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self: Any, *arguments: Any, **more: Any) -> Any:
        """TRL's."""
        loss = super().compute_loss(*arguments, **more)  # type: ignore[misc]
        self.seen.append((loss[0] if isinstance(loss, tuple) else loss).item())
        return loss


class Sft(_Given, SFTTrainer):  # type: ignore[misc]
    """TRL's supervised fine-tuning."""


class Dpo(_Given, DPOTrainer):  # type: ignore[misc]
    """TRL's direct preference optimisation."""


def lora(method: dict[str, Any]) -> LoraConfig | None:
    """PEFT's configuration as its documentation would have it written; None for all weights."""
    if method["type"] == "Full":
        return None
    settings = method["lora"]
    return LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM",
        use_rslora=settings.get("useRslora", False), use_dora=settings.get("useDora", False),
    )  # fmt: skip


def train(
    objective: str, model: Path, method: dict[str, Any], training: TrainingConfig, rows: list[dict[str, Any]],
    steps: Sequence[Sequence[int]], initial: dict[str, torch.Tensor], out: Path, accumulate: int = 1,
) -> Learnt:  # fmt: skip
    """Train a fresh copy of `model`, whose trained parameters begin as `initial`, on the given rows of each step, cut in `accumulate`."""
    common: dict[str, Any] = {
        "output_dir": str(out), "num_train_epochs": 1, "learning_rate": training.learning_rate, "lr_scheduler_type": "cosine",
        "warmup_steps": 0, "weight_decay": training.weight_decay, "max_grad_norm": training.clip_norm, "optim": "adamw_torch",
        "gradient_accumulation_steps": accumulate, "max_length": None, "bf16": False, "use_cpu": True, "save_strategy": "no",
        "logging_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    kind, settings = (Sft, SFTConfig(**common)) if objective == "SFT" else (Dpo, DPOConfig(beta=BETA, **common))
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=settings, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model), peft_config=lora(method),
    )  # fmt: skip
    trains = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name, value in trains.items():
            value.copy_(initial[name])
    if set(trains) != set(initial):
        raise AssertionError(f"other parameters train: {set(trains) ^ set(initial)}")
    trainer.batches = [part for step in steps for part in cut(step, accumulate)]
    trainer.seen = []
    trainer.train()
    losses = [sum(trainer.seen[first : first + accumulate]) for first in range(0, len(trainer.seen), accumulate)]
    return Learnt(losses, trains, trainer.train_dataset)


def cut(rows: Sequence[int], parts: int) -> list[list[int]]:
    """`rows` in so many parts, about equal."""
    return [list(rows[part::parts]) for part in range(parts)]
