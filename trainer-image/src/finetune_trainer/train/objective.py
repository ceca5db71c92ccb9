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
from finetune_trainer.train import adapters, packing
from finetune_trainer.train import head as heads
from finetune_trainer.train.device import sent

Answer = tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]


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
    puts before a row, and how many of these are columns of the logits; the head, where losses come from hidden states (see `head`); and
    whether rows are packed (see `packing`). `pad` fills masked positions."""

    pad: int
    keeps_logits: bool
    virtual_tokens: int = 0
    offset: int = 0
    head: torch.nn.Linear | None = None
    packs: bool = False


@dataclass(frozen=True)
class Batch:
    """What a pass reads: ids (lanes, columns) with what the model is told of them, and for each supervised token its target id, the lane
    and column of the logits that predict it, and the row it is of; which columns these are, in order, and each token's place among them.
    A lane is a right-padded row, or all rows packed."""

    input_ids: torch.Tensor
    told: dict[str, Any]
    targets: torch.Tensor
    lanes: torch.Tensor
    columns: torch.Tensor
    rows: torch.Tensor
    kept: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Sft:
    """Supervised fine-tuning: the mean over supervised tokens (nats)."""

    reader: Reader

    def widths(self, data: TokenArrays) -> npt.NDArray[np.int64]:
        return data.lengths + self.reader.virtual_tokens

    def count(self, data: TokenArrays, rows: Sequence[int]) -> int:
        return supervised_count(data, rows)

    def loss(self, model: Any, data: TokenArrays, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        return loss_sum(model, collate(data, rows, self.reader, device), self.reader)


def reader(model: Any, base: Any, pad: int, head: torch.nn.Linear | None = None, packs: bool = False) -> Reader:
    """How to read the losses of `model`, whose base is `base`; a trained prompt is never packed, and a head that got an adapter is no
    longer all there is to logits."""
    virtual, offset = adapters.virtual_tokens(model)
    bare = head if base.get_output_embeddings() is head else None
    return Reader(pad, can_keep_logits(base), virtual, offset, bare, packs and not virtual)


def supervised_count(data: TokenArrays, rows: Sequence[int]) -> int:
    """Supervised tokens of `rows`; a row's first token is predicted from nothing and never counts."""
    return sum(int(data.row(row)[1][1:].sum()) for row in rows)


def collate(data: TokenArrays, rows: Sequence[int], reader: Reader, device: torch.device) -> Batch:
    """The batch of `rows`."""
    return pack([data.row(row) for row in rows], reader, device)


def pack(rows: Sequence[Answer], reader: Reader, device: torch.device) -> Batch:
    """The batch of rows given as (ids, supervised). All that needs values is computed here, before it goes to the device."""
    lengths = [len(ids) for ids, _ in rows]
    places = [np.flatnonzero(supervised[1:]) for _, supervised in rows]
    row = np.repeat(np.arange(len(rows)), [len(found) for found in places])
    column = np.concatenate(places)
    targets = np.concatenate([ids[1:][found] for (ids, _), found in zip(rows, places, strict=True)])
    told: dict[str, Any]
    if reader.packs:
        ids = np.concatenate([ids for ids, _ in rows])[None]
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        told = {"position_ids": _tensor(positions, device), "packed_rows": packing.Bounds.of(lengths, device)}
        lane, column = np.zeros_like(row), column + np.concatenate([[0], np.cumsum(lengths)])[row]
    else:
        ids = np.full((len(rows), max(lengths)), reader.pad)
        for place, (tokens, _) in enumerate(rows):
            ids[place, : len(tokens)] = tokens
        told = {"attention_mask": _tensor(np.arange(max(lengths)) < np.array(lengths)[:, None], device)}
        lane = row
    supervised = (targets, lane, column, row, *np.unique(column, return_inverse=True))
    return Batch(_tensor(ids, device), told, *(_tensor(values, device) for values in supervised))


def _tensor(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    return sent(torch.from_numpy(values.astype(np.int64)), device)


def loss_sum(model: Any, batch: Batch, reader: Reader) -> torch.Tensor:
    """Sum of cross-entropy (nats) over supervised tokens."""
    return token_losses(model, batch, reader).sum()


def token_losses(model: Any, batch: Batch, reader: Reader) -> torch.Tensor:
    """Cross-entropy (nats, float32) of each supervised token."""
    columns = batch.columns + reader.offset
    if reader.head is not None and heads.is_whole(reader.head):
        with heads.hidden_instead(reader.head):
            hidden = model(input_ids=batch.input_ids, use_cache=False, **batch.told).logits
        return heads.token_losses(hidden[batch.lanes, columns], reader.head, batch.targets)
    extra: dict[str, Any] = {}
    if reader.keeps_logits:
        extra["logits_to_keep"], columns = batch.kept + reader.offset, batch.places
    logits = model(input_ids=batch.input_ids, use_cache=False, **batch.told, **extra).logits
    return functional.cross_entropy(logits[batch.lanes, columns].float(), batch.targets, reduction="none")


def can_keep_logits(model: Any) -> bool:
    """Whether the model computes logits for chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def precision(bf16: bool, device: torch.device) -> AbstractContextManager[object]:
    """What a pass runs in: bfloat16 autocast, or as the weights are."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
