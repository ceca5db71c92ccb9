"""What rounding took of weights that trained in float32 and are served in fewer bits.

Beside the checkpoints of its attempt, and gone with them: by it the network can be read once more as it trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_trainer import layout
from finetune_trainer.exits import UserError
from finetune_trainer.train.model import stored_dtype
from finetune_trainer.train.optimizer import Tensors

FILE = "remainder.safetensors"
DTYPE = torch.bfloat16  # whatever the weights are kept in: what rounding to float16 takes of small ones is below what that can hold


def folder(artifact: Path) -> Path:
    """Where it is of an artifact."""
    return layout.checkpoints(artifact.parent) / "remainder"


def save(weights: Tensors, artifact: Path, dtype: torch.dtype) -> None:
    """Commit what `weights` (float32) are more than what `artifact` keeps of them in `dtype`; nothing where it keeps all of it."""
    if dtype == torch.float32:
        return
    with layout.transaction(folder(artifact)) as work:
        save_file({name: (value - value.to(dtype).float()).to(DTYPE) for name, value in weights.items()}, work.folder / FILE)


@torch.no_grad()
def add(network: Any, artifact: Path) -> None:
    """Make the weights of `network` (float32, as loaded from `artifact`) what they were, but for 2⁻⁸ of what rounding took. Raises
    UserError where that is not there any more."""
    if stored_dtype(artifact) == torch.float32:
        return
    try:
        layout.verify(folder(artifact))
    except layout.Corrupt as error:
        why = f"what rounding to {str(stored_dtype(artifact)).removeprefix('torch.')} took of the weights is not kept any more: {error}"
        raise UserError("RemainderMissing", why, "Train it again (spec.retrain).") from error
    parameters = dict(network.named_parameters())
    with safe_open(folder(artifact) / FILE, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            parameters[name].add_(file.get_tensor(name).to(parameters[name].device))
