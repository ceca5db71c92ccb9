"""Load the base model, as it is or quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import logging as transformers_logging

from finetune_trainer import layout, quantise
from finetune_trainer.config import ModelConfig, Quantization
from finetune_trainer.exits import Infrastructure, UserError

Parameters = dict[str, torch.nn.Parameter]
# What a model's code, and PEFT's, raise of a config that nothing can be made of.
UNFIT = (ValueError, TypeError, AttributeError, LookupError, AssertionError, RuntimeError)


def load_base(config: ModelConfig, bf16: bool, device: torch.device, quantized_as: Quantization | None = None) -> Any:
    """The base model; bfloat16 or float32 on `device`, its linear layers quantised if asked for."""
    if not layout.is_complete(config.path):
        raise Infrastructure("ModelMissing", f"{config.path} is not a complete model folder")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtype = torch.bfloat16 if bf16 else torch.float32
    extra: dict[str, Any] = {}
    if quantized_as:
        extra = {"quantization_config": quantise.settings(outline(config), quantized_as, dtype), "device_map": {"": str(device)}}
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            config.path, dtype=dtype, trust_remote_code=config.allow_remote_code, local_files_only=True, use_safetensors=True, **extra
        )
    except (ValueError, KeyError, ImportError) as error:
        raise UserError("ModelInvalid", f"the model does not load: {error}", "Check the model's files.") from error
    if quantized_as:
        quantise.keep_trainable(model)
        return model
    return model.to(device)


def outline(config: ModelConfig) -> Any:
    """The model without its weights: all parameters on the device `meta`, float32. Raises UserError."""
    try:
        settings = AutoConfig.from_pretrained(config.path, trust_remote_code=config.allow_remote_code, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                settings, dtype=torch.float32, trust_remote_code=config.allow_remote_code
            )
    except (*UNFIT, ImportError, ArithmeticError, StrictDataclassError) as error:
        reason = f"the model's config.json describes no model: {' '.join(str(error).split())[:400]}"
        raise UserError("ModelInvalid", reason, "Check the model's files.") from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which a model folder says that it keeps its weights; float32 where it says none."""
    settings = json.loads((folder / "config.json").read_text())
    found = getattr(torch, str(settings.get("dtype") or settings.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def trained(model: torch.nn.Module) -> Parameters:
    """The parameters that train, by name, in a fixed order."""
    return {name: value for name, value in sorted(model.named_parameters()) if value.requires_grad}
