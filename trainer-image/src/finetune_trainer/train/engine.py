"""How the ranks of a run hold, sum up and step what trains. The loop receives it as a value and does not know which one it has.

Here each rank holds all of it (DDP); `zero` divides it among them.
Invariant: whatever the engine, a step does the same arithmetic, and what it gives out and takes in has whole tensors by parameter.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from finetune_trainer.config import TrainingConfig
from finetune_trainer.train import optimizer
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.model import trained
from finetune_trainer.train.optimizer import Tensors


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

    def step(self, loss: torch.Tensor, rate: float) -> torch.Tensor:
        """After the last pass: add up the ranks' losses and (then or while they were made) gradients, clip, and step at this learning
        rate, on all ranks or none. Returns what it came to (2,): the loss, and 1, or 0 where nothing has changed because loss or gradients
        are not finite."""
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
    """Every rank has all parameters and states; gradients are views of one flat buffer, at whose end the step's loss travels. What a step
    comes to is decided and kept where the buffer is: nothing of it is read here."""

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

    def step(self, loss: torch.Tensor, rate: float) -> torch.Tensor:
        """One all-reduce, then by the norm of all gradients, which every rank has. The fused optimizer leaves everything as it is where it
        is told of something that is not finite."""
        self.flat[-1] = loss
        self._ranks.sum(self.flat)
        gradients, total = self.flat[:-1], self.flat[-1]
        norm = torch.linalg.vector_norm(gradients)
        finite = torch.isfinite(norm) & torch.isfinite(total)
        gradients.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler tells it
        self.optimizer.step()
        return torch.stack([total, finite.float()])

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
        flat = torch.zeros(sum(p.numel() for p in self.parameters.values()) + 1, device=device)
        offset = 0
        for parameter in self.parameters.values():
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        return flat
