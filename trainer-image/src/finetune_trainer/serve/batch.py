"""The running batch: rows of unequal length, right-aligned, sharing one key-value cache.

Invariant: a row's tokens are contiguous and end at the last column; before them is, where a prompt was trained, its prefix; all
other columns are masked, so a row's answer does not depend on which other rows are there (but for rounding).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from finetune_trainer.serve.generation import Generation
from finetune_trainer.serve.prefix import Prefix, begin


class Batch:
    """Rows that generate together. All methods run in the engine's thread under `torch.inference_mode`."""

    def __init__(self, model: Any, device: torch.device, prefix: Prefix | None = None) -> None:
        self._model, self._device, self._prefix = model, device, prefix
        self.rows: list[Generation] = []
        self._mask = torch.empty(0, 0, dtype=torch.long, device=device)  # (rows, columns), 1 = a token
        self._cache: Any = None

    @property
    def columns(self) -> int:
        """Width of the cache in tokens, the same for every row."""
        return self._mask.shape[1]

    def prefill(self, rows: list[Generation]) -> torch.Tensor:
        """Read the prompts of `rows` and add them; returns their next-token logits (rows, vocabulary), float32."""
        width = max(len(row.prompt) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[index, width - len(row.prompt) :] = 1
        cache, mask, positions = begin(self._prefix, len(rows), mask.to(self._device))
        logits = self._forward(ids.to(self._device), mask, positions, cache)
        if not self.rows:
            self._cache, self._mask = cache, mask
        else:
            self._join(cache, mask)
        self.rows = [*self.rows, *rows]
        return logits

    def step(self) -> torch.Tensor:
        """Read every row's last token; returns next-token logits (rows, vocabulary), float32."""
        ids = torch.tensor([[row.last] for row in self.rows], device=self._device)
        self._mask = pad(self._mask, (0, 1), value=1)
        return self._forward(ids, self._mask, self._mask.sum(-1, keepdim=True) - 1, self._cache)

    def keep(self, rows: list[Generation]) -> None:
        """Drop all rows but `rows` and the columns that then hold no token."""
        if len(rows) == len(self.rows):
            return
        if not rows:
            self.clear()
            return
        wanted = set(rows)
        index = torch.tensor([i for i, row in enumerate(self.rows) if row in wanted], device=self._device)
        self.rows = [row for row in self.rows if row in wanted]
        mask = self._mask[index]
        first = int(mask.any(0).int().argmax())
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, first:]
            layer.values = layer.values[index, :, first:]

    def clear(self) -> None:
        """Forget everything."""
        self.rows, self._cache = [], None
        self._mask = self._mask.new_empty(0, 0)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _join(self, cache: Any, mask: torch.Tensor) -> None:
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_widen(self._mask, width), _widen(mask, width)])
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_widen_cache(old.keys, width), _widen_cache(new.keys, width)])
            old.values = torch.cat([_widen_cache(old.values, width), _widen_cache(new.values, width)])


def _widen(mask: torch.Tensor, width: int) -> torch.Tensor:
    return pad(mask, (width - mask.shape[1], 0))


def _widen_cache(states: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, heads, columns, size) with empty columns on the left up to `width`."""
    return pad(states, (0, 0, width - states.shape[2], 0))
