"""What is learned: batch → sum of a loss and how many it is summed over.

An objective knows the rows of its data; the loop knows neither. `Sft` sums the next-token losses over supervised tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from finetune_trainer.data.arrays import TokenArrays
from finetune_trainer.train import adapters

IGNORE_INDEX = -100


class Objective(Protocol):
    """Rows are those of the data that the objective is used with."""

    def widths(self, data: Any) -> npt.NDArray[np.int64]:
        """Tokens that each row takes of a padded pass."""
        ...

    def count(self, data: Any, rows: Sequence[int]) -> int:
        """What the loss of `rows` is the mean over."""
        ...

    def loss(self, model: Any, data: Any, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        """The sum of the losses of `rows`."""
        ...


@dataclass(frozen=True)
class Reader:
    """How token losses are read off a model: whether it computes chosen columns of logits only, how many tokens a trained prompt
    puts before a row, and how many of these are columns of the logits. `pad` fills masked positions."""

    pad: int
    keeps_logits: bool
    virtual_tokens: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, attention mask and labels, each (rows, longest); labels are IGNORE_INDEX where unsupervised."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: the mean over supervised tokens (nats)."""

    reader: Reader

    def widths(self, data: TokenArrays) -> npt.NDArray[np.int64]:
        return data.lengths + self.reader.virtual_tokens

    def count(self, data: TokenArrays, rows: Sequence[int]) -> int:
        return supervised_count(data, rows)

    def loss(self, model: Any, data: TokenArrays, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        return loss_sum(model, collate(data, rows, self.reader.pad, device), self.reader)


def reader(model: Any, base: Any, pad: int) -> Reader:
    """How to read the losses of `model`, whose base is `base`."""
    virtual, offset = adapters.virtual_tokens(model)
    return Reader(pad, can_keep_logits(base), virtual, offset)


def supervised_count(data: TokenArrays, rows: Sequence[int]) -> int:
    """Supervised tokens of `rows`; a row's first token is predicted from nothing and never counts."""
    return sum(int(data.row(row)[1][1:].sum()) for row in rows)


def collate(data: TokenArrays, rows: Sequence[int], pad: int, device: torch.device) -> Batch:
    """The padded batch of `rows`."""
    return pack([data.row(row) for row in rows], pad, device)


def pack(rows: Sequence[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]], pad: int, device: torch.device) -> Batch:
    """The padded batch of rows given as (ids, supervised)."""
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORE_INDEX, dtype=torch.long)
    for place, (tokens, supervised) in enumerate(rows):
        values = torch.from_numpy(tokens.astype("int64"))
        ids[place, : len(values)] = values
        mask[place, : len(values)] = 1
        labels[place, : len(values)] = torch.where(torch.from_numpy(supervised.copy()), values, IGNORE_INDEX)
    return Batch(ids.to(device), mask.to(device), labels.to(device))


def loss_sum(model: Any, batch: Batch, reader: Reader) -> torch.Tensor:
    """Sum of cross-entropy (nats) over supervised tokens."""
    return token_losses(model, batch, reader)[0].sum()


def token_losses(model: Any, batch: Batch, reader: Reader) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (nats, float32) of each supervised token, and the row of each; logits only for columns that any row needs."""
    targets = batch.labels[:, 1:]
    columns = (targets != IGNORE_INDEX).any(dim=0).nonzero()[:, 0]
    extra = {"logits_to_keep": columns + reader.offset} if reader.keeps_logits else {}
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra).logits
    if not reader.keeps_logits:
        logits = logits[:, columns + reader.offset]
    wanted = targets[:, columns]
    supervised = wanted != IGNORE_INDEX
    losses = functional.cross_entropy(logits[supervised].float(), wanted[supervised], reduction="none")
    return losses, supervised.nonzero()[:, 0]


def can_keep_logits(model: Any) -> bool:
    """Whether the model computes logits for chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def precision(bf16: bool, device: torch.device) -> AbstractContextManager[object]:
    """What a pass runs in: bfloat16 autocast, or as the weights are."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
