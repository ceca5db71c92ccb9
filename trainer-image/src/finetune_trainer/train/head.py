"""Losses of tokens straight from hidden states: the logits of all tokens are never there at once.

A token's loss depends on its own hidden state h alone, so with a frozen head W its gradient, (softmax(W h) − one-hot(target)) W, is
found together with the loss, chunk by chunk, and only scaled on the way back. A head that trains is computed again there instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from finetune_trainer.estimate import CHUNK_LOGITS

TOLERANCE = 1e-3  # of the logits' spread


def usable(base: Any, ids: torch.Tensor) -> torch.nn.Linear | None:
    """The output head, if logits are nothing but its product with the hidden states, as tried on `ids` (1, tokens); else None."""
    head = base.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or not is_whole(head):
        return None
    with torch.no_grad():
        logits = base(input_ids=ids, use_cache=False).logits.float()
        with hidden_instead(head):
            hidden = base(input_ids=ids, use_cache=False).logits
        found = functional.linear(hidden.to(head.weight.dtype), head.weight).float()
    same = found.shape == logits.shape and float((found - logits).abs().max()) <= TOLERANCE * float(logits.std())
    return head if same else None


def is_whole(head: torch.nn.Linear) -> bool:
    """Whether this rank has all of the head's weight: DeepSpeed's third stage partitions it."""
    return not hasattr(head.weight, "ds_id")


@contextmanager
def hidden_instead(head: torch.nn.Linear) -> Iterator[None]:
    """While open, the model gives hidden states where it gives logits."""
    head.forward = _same  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del head.forward


def _same(hidden: torch.Tensor) -> torch.Tensor:
    return hidden


def token_losses(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats, float32) of each token from hidden states (tokens, hidden) and target ids (tokens)."""
    learns = torch.is_grad_enabled() and hidden.requires_grad
    losses: torch.Tensor = _Losses.apply(hidden, head.weight, targets, learns)
    return losses


class _Losses(torch.autograd.Function):
    """(hidden (n, h), weight (vocabulary, h), targets (n)) → losses (n)."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, learns: bool) -> torch.Tensor:
        """Losses, and with a frozen head each one's gradient by its hidden state, if something `learns`."""
        dtype, trains = product_dtype(weight), weight.requires_grad
        matrix = weight.to(dtype)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden, dtype=dtype) if learns and not trains else None
        for part in _chunks(len(hidden), len(weight)):
            logs = functional.linear(hidden[part].to(dtype), matrix).float().log_softmax(-1)
            losses[part] = -logs.gather(1, targets[part, None])[:, 0]
            if gradient is not None:
                gradient[part] = _minus_target(logs, targets[part]).to(dtype) @ matrix
            del logs  # before the next chunk's are made
        ctx.dtype, ctx.trains = dtype, trains
        ctx.save_for_backward(*((hidden, weight, targets) if trains else (hidden[:0], gradient)))
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        """Gradients, `scale` (n) being that of the losses."""
        if not ctx.trains:
            like, gradient = ctx.saved_tensors
            return (gradient * scale[:, None]).to(like.dtype), None, None, None
        hidden, weight, targets = ctx.saved_tensors
        matrix = weight.to(ctx.dtype)
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for part in _chunks(len(hidden), len(weight)):
            states = hidden[part].to(ctx.dtype)
            wrong = (
                _minus_target(functional.linear(states, matrix).float().log_softmax(-1), targets[part])
                .mul_(scale[part, None])
                .to(ctx.dtype)
            )
            by_hidden[part] = (wrong @ matrix).to(hidden.dtype)
            by_weight += wrong.t() @ states
        return by_hidden, by_weight, None, None


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_LOGITS // vocabulary)
    return (slice(first, min(first + size, tokens)) for first in range(0, tokens, size))


def _minus_target(logs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """softmax − one-hot(targets), in place of the softmax's logarithms."""
    chance = logs.exp_()
    chance[torch.arange(len(targets), device=targets.device), targets] -= 1
    return chance


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """What products are computed in."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
