"""A model and what a method adds to it, counted without any weights: on the device `meta`."""

from __future__ import annotations

from typing import Any

from finetune_trainer.config import MethodConfig, ModelConfig
from finetune_trainer.estimate import Outline
from finetune_trainer.quantise import adaptable
from finetune_trainer.train import adapters, model

EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")


def count(config: ModelConfig, method: MethodConfig) -> Outline:
    """The outline of a fetched model under `method`. Raises UserError for a model that cannot be built or has no room for it."""
    base = model.outline(config)
    quantized = [layer.weight for layer in adaptable(base).values()] if method.quantized_as else []
    whole = {id(value): value.numel() for value in base.parameters()}
    idle = sum(value.numel() for name, value in base.named_parameters() if name in adapters.expert_parameters(base))
    settings = base.config.get_text_config()
    trained = sum(value.numel() for value in model.trained(adapters.wrap(base, method, config.path, seed=0)).values())
    kept = 0 if method.type == "Full" else sum(whole.values()) - sum(value.numel() for value in quantized)
    return Outline(
        frozen=kept,
        quantized=sum(value.numel() for value in quantized),
        quantized_rows=sum(value.shape[0] for value in quantized),
        trained=trained,
        active=sum(whole.values()) - round(idle * (1 - _chosen_share(settings))),
        hidden=int(settings.hidden_size),
        layers=int(settings.num_hidden_layers),
        vocabulary=int(settings.vocab_size),
        recomputes=bool(base.supports_gradient_checkpointing),
    )


def _chosen_share(settings: Any) -> float:
    """Of the experts, how many a token takes."""
    there = next((int(value) for name in EXPERTS if (value := getattr(settings, name, None))), 0)
    chosen = int(getattr(settings, "num_experts_per_tok", 0) or 0)
    return chosen / there if there and chosen else 1.0
