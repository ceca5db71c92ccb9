"""Rows of a pass one after the other, without padding: each token attends to earlier tokens of its own row alone.

The bounds of the rows are computed once a pass and handed down to every layer's attention, which is the trainer's own. A model that does
not pass them on, or whose attention does more than softmax (QKᵀ), is found out before training begins and is padded.
Invariant: rows are packed only where it was shown that a row's logits are those that it has alone, and that no other row moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from finetune_trainer import exits
from finetune_trainer.train.device import sent

ATTENTION = "finetune_rows"
MOVED, DIFFERENT = 1e-3, {torch.float32: 1e-3, torch.bfloat16: 0.2}  # of the logits' spread
WINDOWS = ("sliding_window", "attention_chunk_size")


class Unpackable(ValueError):
    """The model's attention asks for what rows in a pack cannot have."""


@dataclass(frozen=True)
class Bounds:
    """Where rows lie in a pack: `lengths` by row, and where each begins and the last ends, on the device (rows + 1, int32)."""

    lengths: tuple[int, ...]
    offsets: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Bounds:
        """The bounds of rows of these lengths."""
        return cls(tuple(lengths), sent(functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(), device))


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, packed_rows: Bounds | None = None, **more: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Causal attention within rows (one, where no bounds are given), as transformers calls it: query, key, value
    (lanes, heads, tokens, size) → (lanes, tokens, heads, size). Raises Unpackable."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    if unknown or attention_mask is not None or query.shape[2] != key.shape[2]:
        raise Unpackable(f"attention with {', '.join(unknown) or 'a mask or a cache'}")
    packed_rows = packed_rows or Bounds.of([query.shape[2]], query.device)
    if _suits_varlen(query, value, dropout):
        return _varlen(query, key, value, packed_rows, scaling), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    rows = zip(*(torch.split(tensor, list(packed_rows.lengths), dim=2) for tensor in (query, key, value)), strict=True)
    said = [functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling) for q, k, v in rows]
    return torch.cat(said, dim=2).transpose(1, 2).contiguous(), None


def _suits_varlen(query: torch.Tensor, value: torch.Tensor, dropout: float) -> bool:
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and len(query) == 1 and query.shape[-1] == value.shape[-1] and not dropout


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Bounds, scaling: float | None) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest, groups = max(rows.lengths), query.shape[1] != key.shape[1]
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    said = varlen_attn(
        query, key, value, rows.offsets, rows.offsets, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=groups
    )
    assert isinstance(said, torch.Tensor)
    return said[None]


def enable(base: Any, one: Sequence[int], other: Sequence[int], longest: int, agreed: Callable[[bool], bool] = bool) -> bool:
    """Give `base` the attention of packed rows, if it is shown on two rows of ids to be right there, and no row is longer than a window of
    its attention. Says whether it was done: by what is `agreed` among ranks on each one's finding, since rows are dealt out by it. Raises
    what says that memory ran out, which is no finding."""
    settings = base.config.get_text_config()
    if any(getattr(settings, name, None) and getattr(settings, name) < longest for name in WINDOWS):
        return False
    AttentionInterface.register(ATTENTION, attend)
    before = base.config._attn_implementation
    alone = _logits(base, [other], packed=False)
    base.set_attn_implementation(ATTENTION)
    why = ""
    try:
        if not _is_right(base, one, other, alone):
            why = "a row's logits are not those that it has alone"
    except (ValueError, TypeError, RuntimeError) as error:
        if isinstance(exits.classify(error), exits.OutOfMemory):
            raise
        why = f"{type(error).__name__}: {error}"
    if agreed(not why):
        return True
    base.set_attn_implementation(before)
    print(f"rows are padded, not packed: {why or 'another rank found that they cannot be'}", flush=True)
    return False


def _is_right(base: Any, one: Sequence[int], other: Sequence[int], alone: torch.Tensor) -> bool:
    vocabulary = base.config.get_text_config().vocab_size
    spread = float(alone.float().std())
    packed = _logits(base, [one, other], packed=True)[len(one) :]
    moved = _logits(base, [[(token + 1) % vocabulary for token in one], other], packed=True)[len(one) :]
    allowed = DIFFERENT.get(alone.dtype, DIFFERENT[torch.bfloat16])
    return _apart(packed, alone) <= allowed * spread and _apart(packed, moved) <= MOVED * spread


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


@torch.no_grad()
def _logits(base: Any, rows: Sequence[Sequence[int]], packed: bool) -> torch.Tensor:
    """Logits (tokens, vocabulary) of rows in one pass."""
    device = base.device
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    positions = torch.tensor([[place for row in rows for place in range(len(row))]], device=device)
    more = {"position_ids": positions, "packed_rows": Bounds.of([len(row) for row in rows], device)} if packed else {}
    logits: torch.Tensor = base(input_ids=ids, use_cache=False, **more).logits[0]
    return logits
