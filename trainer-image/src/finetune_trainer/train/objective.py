"""Supervised fine-tuning: batch → sum of the next-token losses over supervised tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from finetune_trainer.data.arrays import TokenArrays

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, attention mask and labels, each (rows, longest); labels are IGNORE_INDEX where unsupervised."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def supervised_count(data: TokenArrays, rows: Sequence[int]) -> int:
    """Supervised tokens of `rows`; a row's first token is predicted from nothing and never counts."""
    return sum(int(data.row(row)[1][1:].sum()) for row in rows)


def collate(data: TokenArrays, rows: Sequence[int], pad: int, device: torch.device) -> Batch:
    """The padded batch of `rows`."""
    longest = max(int(data.lengths[row]) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORE_INDEX, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens, supervised = data.row(row)
        values = torch.from_numpy(tokens.astype("int64"))
        ids[place, : len(values)] = values
        mask[place, : len(values)] = 1
        labels[place, : len(values)] = torch.where(torch.from_numpy(supervised.copy()), values, IGNORE_INDEX)
    return Batch(ids.to(device), mask.to(device), labels.to(device))


def loss_sum(model: Any, batch: Batch, keeps_logits: bool) -> torch.Tensor:
    """Sum of cross-entropy (nats) over supervised tokens; logits only for columns that any row needs."""
    targets = batch.labels[:, 1:]
    columns = (targets != IGNORE_INDEX).any(dim=0).nonzero()[:, 0]
    extra = {"logits_to_keep": columns} if keeps_logits else {}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra).logits
    if not keeps_logits:
        logits = logits[:, columns]
    wanted = targets[:, columns].reshape(-1)
    supervised = wanted != IGNORE_INDEX
    chosen = logits.reshape(-1, logits.shape[-1])[supervised].float()
    return functional.cross_entropy(chosen, wanted[supervised], reduction="sum")


def can_keep_logits(model: Any) -> bool:
    """Whether the model computes logits for chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
