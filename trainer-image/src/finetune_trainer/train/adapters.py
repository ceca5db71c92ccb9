"""What trains: adapters of low rank, a prompt, or all weights, put upon a loaded base model by PEFT.

Invariant: what trains is float32 and initialised from the seed; everything else is frozen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.tuners.prompt_tuning import PromptTuningInit
from peft.utils.transformers_weight_conversion import (  # type: ignore[attr-defined]
    _MODEL_TO_CONVERSION_PATTERN,
    _MOE_TARGET_MODULE_MAPPING,
)

from finetune_trainer.config import LoraConfig, MethodConfig, PromptConfig
from finetune_trainer.exits import UserError
from finetune_trainer.methods import lora
from finetune_trainer.quantise import adaptable
from finetune_trainer.train.model import UNFIT


def wrap(base: Any, method: MethodConfig, path: Path, seed: int, recompute: bool = False) -> Any:
    """`base` (from the folder `path`) with what `method` trains. Raises UserError where the model has no room for it."""
    if recompute:
        if not base.supports_gradient_checkpointing:
            reason = f"the layers of a {base.config.model_type} cannot be computed again"
            raise UserError("RecomputeImpossible", reason, "Set training.gradientCheckpointing to Auto or Never.")
        base.activation_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    torch.manual_seed(seed)
    if method.type == "Full":
        return base.requires_grad_(True)
    if method.type == "PrefixTuning" and getattr(base.config.get_text_config(), "kv_lora_rank", None):
        raise UserError(
            "AdapterImpossible",
            f"method PrefixTuning does not fit this model: a {base.config.model_type} keeps keys and values of different sizes",
            "Use PromptTuning or PTuning.",
        )
    settings = peft_config(base, method, path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing.", FutureWarning)  # peft asks transformers for it
            wrapped = get_peft_model(base, settings, autocast_adapter_dtype=True)
    except UNFIT as error:
        reason = f"method {method.type} does not fit this model: {' '.join(str(error).split())}"
        named = method.lora is not None and method.lora.target_modules
        fix = "Name other layers in method.lora.targetModules, or use another method." if named else "Use another method."
        raise UserError("AdapterImpossible", reason, fix) from error
    assert isinstance(wrapped, PeftModel)
    return wrapped


def peft_config(base: Any, method: MethodConfig, path: Path) -> PeftConfig:
    """PEFT's configuration of any method but Full."""
    low_rank = lora(method)
    if low_rank is not None:
        return _lora(base, low_rank, path)
    return _prompt(method.type, method.prompt or PromptConfig(), path)


def _lora(base: Any, config: LoraConfig, path: Path) -> PeftConfig:
    modules, parameters = targets(base, config.target_modules)
    return PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=modules,
        target_parameters=parameters or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(path),
    )


def _prompt(kind: str, config: PromptConfig, path: Path) -> PeftConfig:
    common: dict[str, Any] = {
        "num_virtual_tokens": config.virtual_tokens, "task_type": "CAUSAL_LM", "base_model_name_or_path": str(path),
    }  # fmt: skip
    if kind == "PrefixTuning":
        return PrefixTuningConfig(**common)
    if kind == "PTuning":
        return PromptEncoderConfig(**common)
    if config.init_text:
        return PromptTuningConfig(
            **common, prompt_tuning_init=PromptTuningInit.TEXT, prompt_tuning_init_text=config.init_text, tokenizer_name_or_path=str(path)
        )
    return PromptTuningConfig(**common, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)


def targets(base: Any, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules, and the stacked parameters of experts, that LoRA goes to: what is named, else all linear layers.

    A name stands for every module whose path ends with it. Raises UserError for names that stand for nothing."""
    if not wanted:
        return linear_layers(base), []
    experts = expert_parameters(base)
    stacked = [name for name in wanted if "experts" in name.split(".") and _is_tail(name, experts)]
    others = [name for name in wanted if name not in stacked]
    claimed = [name for name in others if name.rsplit(".", 1)[-1] in experts_old_names(base)]
    if claimed:
        raise UserError(
            "TargetModulesUnknown",
            f"method.lora.targetModules: in a {base.config.model_type} PEFT reads {', '.join(claimed)} as the experts' weights",
            "Name experts.gate_up_proj or experts.down_proj for the experts, or leave the list empty.",
        )
    modules = [name for name, _ in base.named_modules()]
    found = [name for name in others if _is_tail(name, modules)]
    unknown = [name for name in others if name not in found]
    if unknown:
        there = ", ".join([*linear_layers(base), *sorted({".".join(name.split(".")[-2:]) for name in experts})])
        raise UserError(
            "TargetModulesUnknown",
            f"method.lora.targetModules: the model has no {', '.join(unknown)}; it has {there}",
            "Name some of these, or leave the list empty for all linear layers.",
        )
    return found, stacked


def linear_layers(base: Any) -> list[str]:
    """Last names of all linear layers but the output head, the routers of mixtures of experts, and what PEFT would read as experts."""
    names = {name.rsplit(".", 1)[-1] for name in adaptable(base)} - experts_old_names(base)
    if not names:
        raise UserError("NoLinearLayers", "the model has no linear layer to adapt", "Use method.type Full.")
    return sorted(names)


def experts_old_names(base: Any) -> frozenset[str]:
    """Names that the experts' layers had before transformers 5 stacked them. In their families PEFT takes them for the stacks, and with
    them every dense layer and shared expert of the same name: these cannot be adapted alone."""
    return frozenset(_MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(base.config.model_type, ""), {}))


def expert_parameters(base: Any) -> list[str]:
    """Names of the weights that hold all experts of a layer (experts, …, …)."""
    return [name for name, value in base.named_parameters() if value.dim() == 3 and ".experts." in f".{name}"]


def virtual_tokens(model: Any) -> tuple[int, int]:
    """(tokens that a trained prompt adds to a row, how many of them are columns of the logits)."""
    settings = getattr(model, "active_peft_config", None)
    if settings is None or not settings.is_prompt_learning:
        return 0, 0
    count = int(settings.num_virtual_tokens)
    return count, 0 if isinstance(settings, PrefixTuningConfig) else count


def _is_tail(name: str, paths: Sequence[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for path in paths)
