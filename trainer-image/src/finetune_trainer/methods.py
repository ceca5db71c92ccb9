"""What of methods, objectives and sharding this trainer can do; the rest is refused before anything is read."""

from __future__ import annotations

from finetune_trainer.config import RunConfig, need
from finetune_trainer.exits import UserError

SHARDING = ("", "Auto", "DDP", "None")


def require_supported(config: RunConfig) -> None:
    """Raise UserError for what is in the schema but not built yet."""
    method, compute = need(config.method, "method"), need(config.compute, "compute")
    if method.type != "LoRA":
        _refuse("method.type", method.type, "Use LoRA.")
    if method.objective != "SFT":
        _refuse("method.objective", method.objective, "Use SFT.")
    if compute.sharding not in SHARDING:
        _refuse("compute.sharding", compute.sharding, "Use Auto.")


def _refuse(field: str, value: str, fix: str) -> None:
    raise UserError("NotSupportedYet", f"{field} {value} is not supported yet", fix)
