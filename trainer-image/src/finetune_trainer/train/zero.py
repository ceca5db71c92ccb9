"""The engine that divides among the ranks what DDP keeps on each: by DeepSpeed, its ZeRO stages 1 to 3.

DeepSpeed reduces, partitions and steps; it never compiles an op (the optimizer is torch's own), scales a loss, or saves and loads.
With bfloat16 the model is bfloat16 and each rank's share of the masters float32; else all is float32.
Invariant: ranks make the same calls in the same order, since each pass, and all that gives out or takes in tensors, is collective.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from finetune_trainer.config import Offload, Sharding, TrainingConfig
from finetune_trainer.estimate import BUCKET, GATHERED
from finetune_trainer.train import optimizer
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.model import trained
from finetune_trainer.train.optimizer import Tensors

STAGES: dict[Sharding, int] = {"ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3}
MOMENTS = ("exp_avg", "exp_avg_sq")


class Sharded:
    """Stage 1 divides optimizer state and masters, stage 2 gradients too, stage 3 the parameters themselves, frozen ones included."""

    in_step = True
    autocast = False

    def __init__(self, model: Any, training: TrainingConfig, ranks: Ranks, sharding: Sharding, offload: Offload, bf16: bool) -> None:
        self.parameters = trained(model)
        self._stage = STAGES[sharding]
        self._ranks = ranks
        self._kept: list[torch.Tensor] = []
        deepspeed = _deepspeed()
        config = settings(self._stage, offload, training.clip_norm, bf16, ranks.device)
        masters = _cast(model) if bf16 else {}
        if self._stage == 3:
            deepspeed.zero.Init(module=model, config_dict_or_path=config)
            _move_buffers(model, ranks.device)
        self._fused = offload != "None"
        made = optimizer.stateless(model, training, self._fused)
        self.model, *_ = deepspeed.initialize(model=model, optimizer=made, config=config, dist_init_required=False)
        self._zero = self.model.optimizer
        self._own = self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        self._make_states()
        if masters:
            self._put("", masters)
            self._refresh()

    def begin(self) -> None:
        """Gradients went with the last step."""

    def backward(self, loss: torch.Tensor) -> None:
        """DeepSpeed takes the mean over ranks: times their number it is the sum."""
        self.model.backward(loss * self._ranks.world_size, scale_wrt_gas=False)

    def step(self, loss: torch.Tensor, rate: float) -> torch.Tensor:
        """DeepSpeed reads the norm, waiting for the device, and leaves everything as it is where it is not finite. It cannot be told to do
        so where the loss alone is not: then its step is taken back."""
        total = float(self._ranks.sum(loss.clone()))
        usable = math.isfinite(total)
        before = [] if usable else self._copy()
        for group in self._zero.optimizer.param_groups:
            group["lr"] = rate
        self.model.step()
        if not usable:
            self._paste(before)
        return torch.tensor([total, float(usable and not self._zero.overflow)])

    def weights(self) -> Tensors:
        """Gathered parameter by parameter."""
        return dict(self._gather(""))

    def remember(self) -> None:
        """This rank's share."""
        self._kept = self._copy()

    def state(self) -> tuple[Tensors, Tensors]:
        """Gathered parameter by parameter."""
        moments = {f"{kind}/{name}": value for kind in MOMENTS for name, value in self._gather(kind)}
        steps = {f"step/{name}": self._state(0)["step"].detach().cpu().clone() for name in self.parameters}
        return self.weights(), {**moments, **steps} if self._ranks.first else {}

    @torch.no_grad()
    def restore(self, weights: Tensors, moments: Tensors) -> None:
        """Each rank takes its share."""
        self._put("", weights)
        for kind in MOMENTS:
            self._put(kind, {name: moments[f"{kind}/{name}"] for name in self.parameters})
        step = moments[f"step/{next(iter(self.parameters))}"]
        for place in range(len(self._own)):
            self._state(place)["step"].copy_(step)
        self._refresh()

    def roll_back(self) -> None:
        """To this rank's share."""
        self._paste(self._kept)

    def _state(self, place: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self._zero.optimizer.state[self._own[place]]
        return found

    def _make_states(self) -> None:
        """States of zeros, which DeepSpeed leaves to the first step: what is loaded needs a place."""
        for own in self._own:
            self._zero.optimizer.state[own] = optimizer.empty_state(own, fused=self._fused)
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def _held(self) -> Iterator[torch.Tensor]:
        for place, own in enumerate(self._own):
            yield own
            yield from self._state(place).values()

    def _copy(self) -> list[torch.Tensor]:
        return [tensor.detach().to("cpu", copy=True) for tensor in self._held()]

    @torch.no_grad()
    def _paste(self, kept: list[torch.Tensor]) -> None:
        for tensor, value in zip(self._held(), kept, strict=True):
            tensor.copy_(value)
        self._refresh()

    @torch.no_grad()
    def _gather(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(parameter, its whole master or, by `kind`, its moment) on rank 0; the other ranks help."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self.parameters.items():
            whole = safe_get_full_optimizer_state(parameter, kind) if kind else safe_get_full_fp32_param(parameter)
            if self._ranks.first:
                yield name, whole.to("cpu", copy=True).contiguous()

    @torch.no_grad()
    def _put(self, kind: str, values: Tensors) -> None:
        """Set masters or, by `kind`, moments from whole tensors. Raises KeyError or RuntimeError if they do not fit."""
        from deepspeed import utils

        for name, parameter in self.parameters.items():
            value = values[name]
            if value.shape != getattr(parameter, "ds_shape", parameter.shape):
                raise RuntimeError(f"{name} has another shape: {tuple(value.shape)}")
            if self._stage < 3:
                where: Any = utils.safe_set_full_optimizer_state if kind else utils.safe_set_full_fp32_param
            else:
                where = utils.safe_set_local_optimizer_state if kind else utils.safe_set_local_fp32_param
                value = _share(value, parameter.partition_numel(), self._ranks.rank)  # type: ignore[attr-defined]
            where(parameter, value, *([kind] if kind else []))

    def _refresh(self) -> None:
        """Make the parameters what their masters are, on all ranks."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        for group in range(len(self._own)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)


def settings(stage: int, offload: Offload, clip_norm: float, bf16: bool, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration. Stage 1 adds up a rank's own bfloat16 gradients in bfloat16, the others in float32."""
    place = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip_norm,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32" if stage > 1 or not bf16 else "bf16"},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": GATHERED,
            **({"offload_optimizer": place} if offload != "None" else {}),
            **({"offload_param": place} if offload == "All" else {}),
        },
    }


def _deepspeed() -> Any:
    """The library, imported where it is used, and told that it can compile nothing: on CPUs it would begin with its own all-reduce."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _cast(model: torch.nn.Module) -> Tensors:
    """Make all parameters bfloat16; returns those that train as they were, if that was more exact."""
    before = {name: value.data for name, value in trained(model).items() if value.dtype == torch.float32}
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return before


def _move_buffers(model: torch.nn.Module, device: torch.device) -> None:
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _share(value: torch.Tensor, size: int, rank: int) -> torch.Tensor:
    """This rank's part of `value`, flat, with zeros where the last parts go beyond its end."""
    part = value.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(part, (0, size - len(part)))
