"""How the ranks of a run hold, sum up and step what trains. The loop receives it as a value and does not know which one it has.

Here each rank holds all of it (DDP); `zero` divides it among them.
Invariant: whatever the engine, a step does the same arithmetic, and what it gives out and takes in has whole tensors by parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from finetune_trainer.config import TrainingConfig
from finetune_trainer.train import optimizer, order
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.model import trained
from finetune_trainer.train.optimizer import Tensors

VALUES = 3 + order.PARTS  # numbers that the loop sums with the gradients: loss, stop, save, and the rows that were passed


class Engine(Protocol):
    """`model` is what passes go through; `in_step` says that a pass needs all ranks, so that all have to make as many; `autocast`
    that a bfloat16 pass has to be asked for."""

    model: Any
    in_step: bool
    autocast: bool

    def begin(self) -> None:
        """Before the first pass of a step."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss` to those of the step."""
        ...

    def sum(self, loss: torch.Tensor, values: Sequence[float]) -> list[float]:
        """After the last pass: all ranks' VALUES numbers added up (the loss and `values`), and (then or while they were made) their
        gradients. The loss is read from its device with the rest, once a step."""
        ...

    def step(self, rate: float, usable: bool) -> bool:
        """Clip and step at this learning rate, on all ranks or none; False: nothing has changed, because the gradients are not finite
        or not `usable`."""
        ...

    def weights(self) -> Tensors:
        """What trains, float32 on the CPU, of all ranks together: whole on rank 0, perhaps nothing elsewhere. All ranks ask at once."""
        ...

    def restore(self, weights: Tensors, moments: Tensors) -> None:
        """Go on from whole tensors, which every rank has. Raises KeyError or RuntimeError if they do not fit."""
        ...

    def remember(self) -> None:
        """Keep what this rank holds, on the CPU, for a roll-back."""
        ...

    def state(self) -> tuple[Tensors, Tensors]:
        """What was just remembered, as `weights` gives it, and the optimizer's state as `<kind>/<parameter>`."""
        ...

    def roll_back(self) -> None:
        """Go back to what was remembered last."""
        ...


class Replicated:
    """Every rank has all parameters and states; gradients are views of one flat buffer, at whose end the step's values travel."""

    in_step = False
    autocast = True

    def __init__(self, model: Any, training: TrainingConfig, ranks: Ranks) -> None:
        self.model = model
        self.parameters = trained(model)
        self.optimizer = optimizer.make(model, training)
        self.flat = self._share_gradients(ranks.device)
        self._clip_norm = training.clip_norm
        self._ranks = ranks
        self._kept: tuple[Tensors, Tensors] | None = None

    def begin(self) -> None:
        """Gradients of zero."""
        self.flat.zero_()

    def backward(self, loss: torch.Tensor) -> None:
        """Into the buffer."""
        torch.autograd.backward(loss)

    def sum(self, loss: torch.Tensor, values: Sequence[float]) -> list[float]:
        """One all-reduce of gradients and values."""
        self.flat[-VALUES] = loss
        self.flat[1 - VALUES :] = torch.tensor(values)
        self._ranks.sum(self.flat)
        found: list[float] = self.flat[-VALUES:].tolist()
        return found

    def step(self, rate: float, usable: bool) -> bool:
        """By the norm of all gradients, which every rank has."""
        gradients = self.flat[:-VALUES]
        norm = float(torch.linalg.vector_norm(gradients))
        if not (usable and math.isfinite(norm)):
            return False
        gradients.mul_(min(1.0, self._clip_norm / (norm + 1e-6)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return True

    def weights(self) -> Tensors:
        """A copy."""
        return optimizer.values(self.parameters)

    def restore(self, weights: Tensors, moments: Tensors) -> None:
        """Into what is there."""
        optimizer.restore(self.optimizer, self.parameters, weights, moments)

    def remember(self) -> None:
        """Copies of all."""
        self._kept = (self.weights(), optimizer.state(self.optimizer, self.parameters))

    def state(self) -> tuple[Tensors, Tensors]:
        """The copies themselves."""
        assert self._kept is not None
        return self._kept

    def roll_back(self) -> None:
        """From the copies."""
        self.restore(*self.state())

    def _share_gradients(self, device: torch.device) -> torch.Tensor:
        flat = torch.zeros(sum(p.numel() for p in self.parameters.values()) + VALUES, device=device)
        offset = 0
        for parameter in self.parameters.values():
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        return flat
