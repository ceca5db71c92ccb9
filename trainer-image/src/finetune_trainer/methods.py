"""What of methods, objectives and sharding this trainer can do; the rest is refused before anything is read."""

from __future__ import annotations

from finetune_trainer.config import PROMPT_METHODS, LoraConfig, MethodConfig, RunConfig, SourceConfig, need
from finetune_trainer.exits import UserError

SHARDING = ("", "Auto", "DDP", "None")
PREFERENCE = "Preference"


def require_supported(config: RunConfig) -> None:
    """Raise UserError for what is in the schema but not built yet, and for settings that exclude each other."""
    method, compute, data = need(config.method, "method"), need(config.compute, "compute"), need(config.data, "data")
    if compute.sharding not in SHARDING:
        _refuse("compute.sharding", compute.sharding, "Use Auto.")
    if data.mix:
        _refuse("data.mix", data.mix[0].source, "Join the files into one source.")
    if config.training and config.training.gradient_checkpointing and method.type in PROMPT_METHODS:
        _refuse("training.gradientCheckpointing with method.type", method.type, "Switch it off.")
    for source in (data.train, data.validation, data.test):
        if source is not None:
            require_fitting(method, source)


def require_fitting(method: MethodConfig, source: SourceConfig) -> None:
    """Raise UserError where a named format is not the one that the objective learns from."""
    if source.format == "Auto" or (source.format == PREFERENCE) == (method.objective == "DPO"):
        return
    raise UserError(
        "FormatNotOfObjective",
        f"data source {source.source} is {source.format}, and method.objective is {method.objective}",
        "DPO learns from Preference rows (prompt, chosen, rejected), SFT from all other formats.",
    )


def lora(method: MethodConfig) -> LoraConfig | None:
    """The adapter of LoRA and QLoRA; None for other methods."""
    return (method.lora or LoraConfig()) if method.type in ("LoRA", "QLoRA") else None


def _refuse(field: str, value: str, fix: str) -> None:
    raise UserError("NotSupportedYet", f"{field} {value} is not supported yet", fix)
