"""AdamW over the trained parameters, its learning rate by step, and its state as plain tensors."""

from __future__ import annotations

import math

import torch
from transformers.trainer_pt_utils import get_parameter_names

from finetune_trainer.config import TrainingConfig
from finetune_trainer.train.model import Parameters, trained

Tensors = dict[str, torch.Tensor]
# What does not decay, by name: biases and the weights of normalisations, as transformers' Trainer (get_decay_parameter_names) has it.
UNDECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def make(model: torch.nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """The fused optimizer of what trains of `model`, its state already there (zeros), so that loading and saving need no first step."""
    optimizer = stateless(model, training, fused=True)
    for parameter in trained(model).values():
        optimizer.state[parameter] = empty_state(parameter, fused=True)
    return optimizer


def stateless(model: torch.nn.Module, training: TrainingConfig, fused: bool = False) -> torch.optim.AdamW:
    """The optimizer alone. `fused` is torch's one pass over everything, which on CPUs is several times as fast, and which can be
    told on its device to change nothing."""
    parameters = trained(model)
    decaying = set(get_parameter_names(model, [torch.nn.LayerNorm], UNDECAYED)) if training.weight_decay else set()  # type: ignore[no-untyped-call]
    parts = [[value for name, value in parameters.items() if (name in decaying) is decays] for decays in (True, False)]
    decays = (training.weight_decay, 0.0)
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, decays, strict=True) if part]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.999), fused=fused or None)


def empty_state(parameter: torch.Tensor, fused: bool) -> Tensors:
    """The state of a parameter before the first step. A fused optimizer counts its steps on the parameter's device."""
    step = torch.zeros((), device=parameter.device if fused else None)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def learning_rate(step: int, total: int, training: TrainingConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up, then constant, or down to zero."""
    warmup = math.ceil(total * training.warmup_percent / 100)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if training.schedule == "Constant":
        return training.learning_rate
    if training.schedule == "Linear":
        return training.learning_rate * (1 - done)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def values(parameters: Parameters) -> Tensors:
    """A copy of the parameters on the CPU."""
    return {name: parameter.detach().to("cpu", copy=True).contiguous() for name, parameter in parameters.items()}


def state(optimizer: torch.optim.AdamW, parameters: Parameters) -> Tensors:
    """A copy of the optimizer's state on the CPU as `<kind>/<parameter>`."""
    return {
        f"{kind}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, parameter in parameters.items()
        for kind, tensor in optimizer.state[parameter].items()
    }


@torch.no_grad()
def restore(optimizer: torch.optim.AdamW, parameters: Parameters, weights: Tensors, moments: Tensors) -> None:
    """Set parameters and optimizer state. Raises KeyError or RuntimeError if they do not fit."""
    assign(parameters, weights)
    for name, parameter in parameters.items():
        for kind, tensor in optimizer.state[parameter].items():
            tensor.copy_(moments[f"{kind}/{name}"])


@torch.no_grad()
def assign(parameters: Parameters, weights: Tensors) -> None:
    """Set parameters. Raises KeyError or RuntimeError if `weights` do not fit."""
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
