"""Normalisation and rotation of a base model in fewer passes over memory, to the last bit what the model's own code gives.

transformers writes both as operations that each read and write all values, and so does their gradient. Here each is one function that
keeps its input alone. Invariant: a model's code is replaced only where it was tried on random values, in every precision that training
has, and gave the same bits of the same dtype; the rotation is replaced in its family's module, for everybody in this process.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROTATION = "apply_rotary_pos_emb"
# Of the values, and of what they are multiplied by. They come apart: under autocast, and where ZeRO makes all weights bfloat16 later on.
PRECISIONS = tuple(itertools.product((torch.float32, torch.bfloat16), repeat=2))
SIZES = (1.0, 1e-3, 1e-5)  # of the values that a normalisation is tried on: beside small ones epsilon is much
Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def fuse(base: Any) -> dict[str, int]:
    """Let `base` compute by these functions where they are what it does; how many of its normalisations and of its modules'
    rotations are."""
    counts = {"norms": 0, "rotations": 0}
    for module in base.modules():
        epsilon = _epsilon(module)
        if epsilon is not None and _normalises(module, epsilon):
            module.forward = functools.partial(_normalised, module, epsilon)
            counts["norms"] += 1
    for name in sorted({type(module).__module__ for module in base.modules()}):
        counts["rotations"] += _rotates(sys.modules[name])
    return counts


def _epsilon(module: torch.nn.Module) -> float | None:
    """What a normalisation by the root of the mean square adds to that; None if `module` looks like none."""
    shapes = [(name, value.dim()) for name, value in module.named_parameters()]
    if not type(module).__name__.endswith("RMSNorm") or shapes != [("weight", 1)] or len(_asked(module.forward)) != 1:
        return None
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


def _normalises(module: Any, epsilon: float) -> bool:
    width, device = len(module.weight), module.weight.device
    values = (_random(len(SIZES), width) * torch.tensor(SIZES)[:, None]).to(device)
    weight = _random(width).to(device)

    def theirs(x: torch.Tensor, by: torch.Tensor) -> Any:
        return torch.func.functional_call(module, {"weight": by}, x)

    return all(_agree(theirs, lambda x, by: _Norm.apply(x, by, epsilon), values.to(one), weight.to(other)) for one, other in PRECISIONS)


def _normalised(module: Any, epsilon: float, hidden_states: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = _Norm.apply(hidden_states, module.weight, epsilon)
    return found


class _Norm(torch.autograd.Function):
    """(x (…, n), weight (n), epsilon) → weight · x / √(mean x² + epsilon), made in float32, rounded to x's dtype, then weighed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Keeps x, and one number of each of its rows."""
        wide = x.float()
        scale = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normal = (wide * scale).to(x.dtype)
        return normal.mul_(weight) if normal.dtype == weight.dtype else normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """With g = gradient · weight: scale · g − x · scale³ · mean(g x)."""
        x, weight, scale = ctx.saved_tensors
        wide = x.float()
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (gradient * (wide * scale).to(x.dtype)).reshape(-1, len(weight)).sum(0).to(weight.dtype)
        found = (gradient * weight).float()
        along = (found * wide).mean(-1, keepdim=True).mul_(scale.pow(3))
        return found.mul_(scale).addcmul_(wide, along, value=-1).to(x.dtype), by_weight, None


def _random(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(17))


def _asked(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _agree(theirs: Callable[..., Any], ours: Callable[..., Any], *given: torch.Tensor) -> bool:
    """Whether both give the same tensors, or the same tuples of them, bit by bit. What fails on such values is other code."""
    try:
        with torch.no_grad():
            pairs = [found if isinstance(found, tuple) else (found,) for found in (theirs(*given), ours(*given))]
        return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(*pairs, strict=True))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError):
        return False


def _rotates(module: Any) -> bool:
    """Whether the family of this module rotates as `_Rotation` does, which is then what it uses."""
    theirs = getattr(module, ROTATION, None)
    if theirs is None or _asked(theirs) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
        return False
    if not hasattr(theirs, "replaces"):
        query, key, cos, sin = (_random(1, *size, 8) for size in ((2, 3), (1, 3), (3,), (3,)))
        ours = _instead(theirs)
        if not all(_agree(theirs, ours, query.to(one), key.to(one), cos.to(other), sin.to(other)) for one, other in PRECISIONS):
            return False
        setattr(module, ROTATION, ours)
    return True


def _instead(theirs: Rotate) -> Rotate:
    @functools.wraps(theirs)
    def rotated(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        if not q.shape[-1] == k.shape[-1] == cos.shape[-1] or cos.requires_grad:
            return theirs(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)

    rotated.replaces = theirs  # type: ignore[attr-defined]
    return rotated


class _Rotation(torch.autograd.Function):
    """(x (…, n), cos, sin) → (x₁ cos₁ − x₂ sin₁, x₂ cos₂ + x₁ sin₂), ₁ and ₂ being the first and the second half of the n."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Keeps nothing of x."""
        ctx.dtype = x.dtype
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, *sin.chunk(2, -1))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The other way round."""
        cos, sin = ctx.saved_tensors
        one, other = (-sin).chunk(2, -1)
        return _turned(gradient, cos, other, one).to(ctx.dtype), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, minus: torch.Tensor, plus: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, -1)
    found = x * cos
    first, second = found.chunk(2, -1)
    first.sub_(other * minus)
    second.add_(one * plus)
    return found
