"""LoRA's linear layers in fewer passes over memory, on PEFT's own modules: parameters, names and saved files are theirs.

PEFT writes y = x Wᵀ + (x Aᵀ) Bᵀ · s as operations of their own, of which most are as large as y and do nothing but read and write it. Here
the products add onto one another, s rides along with them, and so do their gradients. W is frozen and has none.
Invariant: where a layer is anything but that formula, PEFT's own forward computes it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from torch.nn import functional

from finetune_trainer.train.head import product_dtype


def fuse(model: Any) -> int:
    """Let the linear layers of `model` that have LoRA compute by the formula; how many do as they are now."""
    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        layer.__class__ = LoraLinear
    return sum(_lone(layer) is not None for layer in layers)


class LoraLinear(Linear):
    """PEFT's linear layer with LoRA, computed by one function where its state and its input allow that."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (…, in) → (…, out)."""
        name = None if args or kwargs else _lone(self)
        if name is None:
            return super().forward(x, *args, **kwargs)
        layer: Any = self.get_base_layer()
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        dtype = product_dtype(layer.weight)
        if not torch.is_autocast_enabled(x.device.type) and {x.dtype, down.dtype, up.dtype} != {dtype}:
            return super().forward(x)
        found: torch.Tensor = _Product.apply(x, layer.weight, layer.bias, down, up, self.scaling[name], dtype)
        return found


def _lone(layer: Linear) -> str | None:
    """The adapter, if it is the only one, plain, with nothing dropped, upon a frozen linear layer that is nothing more (no hook makes its
    weight or changes what it gives) and of which this rank has everything (stage 3 of ZeRO gathers parameters for the modules' own
    forwards alone)."""
    base, names = layer.get_base_layer(), layer.active_adapters
    if type(base) is not torch.nn.Linear or len(names) != 1 or layer.disable_adapters or layer.merged:
        return None
    if base._forward_pre_hooks or base._forward_hooks or base._backward_pre_hooks or base._backward_hooks or "forward" in vars(base):
        return None
    name = names[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return None
    drops = layer.training and getattr(layer.lora_dropout[name], "p", 0.0) > 0
    learns = any(parameter.requires_grad or hasattr(parameter, "ds_id") for parameter in base.parameters())
    return None if drops or learns else name


class _Product(torch.autograd.Function):
    """(x (…, in), W (out, in), bias (out) or None, A (rank, in), B (out, rank), s) → x Wᵀ + bias + s · (x Aᵀ) Bᵀ, in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, down: torch.Tensor, up: torch.Tensor, scale: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:  # fmt: skip
        """Keeps x and x Aᵀ. What it gives is no view: some models write into it."""
        given = x.to(dtype)
        rows = given.reshape(-1, x.shape[-1])
        low = rows @ down.to(dtype).t()
        found = functional.linear(given, weight.to(dtype), None if bias is None else bias.to(dtype))
        found.view(-1, len(weight)).addmm_(low, up.to(dtype).t(), alpha=scale)
        ctx.scale, ctx.dtype, ctx.like = scale, x.dtype, x.shape
        ctx.save_for_backward(rows, low, weight, down, up)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, torch.Tensor, torch.Tensor, None, None]:
        """Of x (where something before it learns), A and B."""
        rows, low, weight, down, up = ctx.saved_tensors
        dtype = rows.dtype
        given = gradient.reshape(-1, gradient.shape[-1])
        back = given @ up.to(dtype)
        by_up = (given.t() @ low).to(up.dtype).mul_(ctx.scale)
        by_down = (back.t() @ rows).to(down.dtype).mul_(ctx.scale)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (given @ weight.to(dtype)).addmm_(back, down.to(dtype), alpha=ctx.scale).to(ctx.dtype).view(ctx.like)
        return by_x, None, None, by_down, by_up, None, None
