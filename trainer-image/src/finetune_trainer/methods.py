"""What of methods, objectives and sharding this trainer can do; the rest is refused before anything is read."""

from __future__ import annotations

from finetune_trainer.config import PROMPT_METHODS, ComputeConfig, LoraConfig, MethodConfig, RunConfig, need
from finetune_trainer.exits import UserError

SHARDED = ("Full", "LoRA")
PREFERENCE = "Preference"


def require_supported(config: RunConfig) -> None:
    """Raise UserError for what is in the schema but not built yet, and for settings that exclude each other."""
    method, compute, data = need(config.method, "method"), need(config.compute, "compute"), need(config.data, "data")
    require_divisible(method, compute)
    if config.training and config.training.gradient_checkpointing and method.type in PROMPT_METHODS:
        _refuse("training.gradientCheckpointing with method.type", method.type, "Switch it off.")
    for source in (data.train, data.validation, data.test, *data.mix):
        if source is not None:
            require_fitting(method, source.name, source.format)


def require_divisible(method: MethodConfig, compute: ComputeConfig) -> None:
    """Raise UserError where ZeRO has nothing to divide, or does not go with the method, and for an offload without what it is of."""
    sharding = compute.resolved_sharding
    if not compute.sharded and compute.offload not in ("Auto", "None"):
        _refuse("compute.offload with compute.sharding", sharding, "Use Auto, ZeRO1, ZeRO2 or ZeRO3, or no offload.")
    if compute.offload == "All" and sharding != "ZeRO3":
        _refuse("compute.offload All with compute.sharding", sharding, "Use Auto or ZeRO3, or offload Optimizer.")
    if compute.sharded and method.type not in SHARDED:
        _refuse(f"compute.{_asked(compute)} with method.type", method.type, "Use DDP or Auto: so little trains that it gains nothing.")
    if sharding == "ZeRO3" and method.objective == "DPO":
        fix = "Use ZeRO2, or offload Optimizer: the base model reads all answers first, whole."
        _refuse(f"compute.{_asked(compute)} with method.objective", "DPO", fix)


def _asked(compute: ComputeConfig) -> str:
    """The field that asks for ZeRO, and its value."""
    return f"offload {compute.offload}" if compute.sharding == "Auto" else f"sharding {compute.sharding}"


def require_fitting(method: MethodConfig, source: str, form: str) -> None:
    """Raise UserError where the format `form` of a source is named and not one that the objective learns from."""
    if form == "Auto" or (form == PREFERENCE) == (method.objective == "DPO"):
        return
    raise UserError(
        "FormatNotOfObjective",
        f"data source {source} is {form}, and method.objective is {method.objective}",
        "DPO learns from Preference rows (prompt, chosen, rejected), SFT from all other formats.",
    )


def lora(method: MethodConfig) -> LoraConfig | None:
    """The adapter of LoRA and QLoRA; None for other methods."""
    return (method.lora or LoraConfig()) if method.type in ("LoRA", "QLoRA") else None


def _refuse(field: str, value: str, fix: str) -> None:
    raise UserError("NotSupportedYet", f"{field} {value} is not supported yet", fix)
