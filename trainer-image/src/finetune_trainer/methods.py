"""What of methods, objectives and sharding this trainer can do; the rest is refused before anything is read."""

from __future__ import annotations

from finetune_trainer.config import PROMPT_METHODS, LoraConfig, MethodConfig, RunConfig, need
from finetune_trainer.exits import UserError

SHARDING = ("", "Auto", "DDP", "None")
PREFERENCE = "Preference"


def require_supported(config: RunConfig) -> None:
    """Raise UserError for what is in the schema but not built yet, and for settings that exclude each other."""
    method, compute, data = need(config.method, "method"), need(config.compute, "compute"), need(config.data, "data")
    if compute.sharding not in SHARDING:
        _refuse("compute.sharding", compute.sharding, "Use Auto.")
    if config.training and config.training.gradient_checkpointing and method.type in PROMPT_METHODS:
        _refuse("training.gradientCheckpointing with method.type", method.type, "Switch it off.")
    for source in (data.train, data.validation, data.test, *data.mix):
        if source is not None:
            require_fitting(method, source.source, source.format)


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
