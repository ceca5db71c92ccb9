"""Load the base model and put LoRA on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, logging

from finetune_trainer import layout
from finetune_trainer.config import LoraConfig, ModelConfig
from finetune_trainer.exits import Infrastructure, UserError

ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)$")
Parameters = dict[str, torch.nn.Parameter]


def load_base(config: ModelConfig, bf16: bool, device: torch.device) -> Any:
    """The frozen base model; bfloat16 or float32 on `device`."""
    if not layout.is_complete(config.path):
        raise Infrastructure("ModelMissing", f"{config.path} is not a complete model folder")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            trust_remote_code=config.allow_remote_code,
            local_files_only=True,
            use_safetensors=True,
        )
    except (ValueError, KeyError, ImportError) as error:
        raise UserError("ModelInvalid", f"the model does not load: {error}", "Check the model's files.") from error
    return model.to(device)


def add_lora(model: Any, config: LoraConfig, base: Path, seed: int, recompute: bool) -> PeftModel:
    """Wrap `model`; adapters are float32 and initialised from `seed`. Raises UserError for unknown target modules."""
    targets = list(config.target_modules) or linear_layers(model)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(seed)
    settings = PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
    )
    try:
        wrapped = get_peft_model(model, settings, autocast_adapter_dtype=True)
    except ValueError as error:
        raise UserError("TargetModulesUnknown", f"method.lora.targetModules: {error}", "Leave the list empty.") from error
    assert isinstance(wrapped, PeftModel)
    return wrapped


def linear_layers(model: Any) -> list[str]:
    """Last names of all linear layers but the output head and the routers of mixtures of experts."""
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not ROUTER.search(name)
    }
    if not names:
        raise UserError("NoLinearLayers", "the model has no linear layer to adapt", "Set method.lora.targetModules.")
    return sorted(names)


def trained(model: torch.nn.Module) -> Parameters:
    """The parameters that train, by name, in a fixed order."""
    return {name: value for name, value in sorted(model.named_parameters()) if value.requires_grad}
