"""A model and what a method adds to it, counted without any weights: on the device `meta`."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import MoeModelOutputWithPast

from finetune_trainer.config import MethodConfig, ModelConfig
from finetune_trainer.estimate import FORGOTTEN, Layer, Outline, Scores
from finetune_trainer.exits import UserError
from finetune_trainer.quantise import adaptable
from finetune_trainer.train import adapters, head, model

EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")
DENSE_EXPERTS = ("llama4_text",)  # of these families transformers lets every token through all experts
DROPPED = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # the share of scores that training drops
PLACE = re.compile(r"\.(\d+)\.")
EXPERT = re.compile(r"\.experts\.(\d+\.)?")


def count(config: ModelConfig, method: MethodConfig) -> Outline:
    """The outline of a fetched model under `method`. Raises UserError for a model that cannot be built or has no room for it."""
    base = model.outline(config)
    quantized = [layer.weight for layer in adaptable(base).values()] if method.quantized_as else []
    whole = {id(value): value.numel() for value in base.parameters()}
    stacked = adapters.expert_parameters(base)
    experts = sum(value.numel() for name, value in base.named_parameters() if name in stacked)
    settings = base.config.get_text_config()
    output, layers, fused = base.get_output_embeddings(), layers_of(base), reads_hidden(base)
    trained = sum(value.numel() for value in model.trained(adapters.wrap(base, method, config.path, seed=0)).values())
    kept = 0 if method.type == "Full" else sum(whole.values()) - sum(value.numel() for value in quantized)
    return Outline(
        frozen=kept,
        quantized=sum(value.numel() for value in quantized),
        quantized_rows=sum(value.shape[0] for value in quantized),
        trained=trained,
        active=sum(whole.values()) - round(experts * (1 - _chosen_share(settings))),
        hidden=_needed(settings, "hidden_size"),
        layers=layers,
        vocabulary=_needed(settings, "vocab_size"),
        recomputes=bool(base.supports_gradient_checkpointing),
        experts=experts,
        fused=fused and base.get_output_embeddings() is output,
        scores=scores_of(base),
    )


def scores_of(base: Any) -> Scores:
    """What a model's attention keeps of its scores. The fused kernels of CPUs neither drop any nor have keys and values of different
    sizes, and go without where that is asked for."""
    settings = base.config.get_text_config()
    drops = any(_setting(settings, name) for name in DROPPED)
    uneven = _setting(settings, "qk_head_dim") != _setting(settings, "v_head_dim")
    heads = _setting(settings, "num_attention_heads")  # of RWKV, xLSTM and Mamba none
    written = base.config._attn_implementation == "eager"
    if not heads or not (written or drops or uneven):
        return FORGOTTEN
    times = 1 + bool(_setting(settings, "attn_logit_softcapping")) + 2 * drops
    return Scores(int(heads), times, on_accelerators=written)


def layers_of(base: Any) -> tuple[Layer, ...]:
    """What a token passes through, layer by layer, by the shapes of their weights."""
    settings = base.config.get_text_config()
    share = 1.0 if settings.model_type in DENSE_EXPERTS else _chosen_share(settings)
    shapes = {name: tuple(value.shape) for name, value in base.named_parameters()}
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for name, shape in shapes.items():
        place = PLACE.search(name)
        if place is None:
            continue
        layer = found[name[: place.end()]]
        if len(shape) == 1:
            layer[2] += _normalised(name, shapes) if name.endswith("weight") else 0
        elif EXPERT.search(name):
            layer[1] += share * (shape[0] if len(shape) == 3 else 1) * sum(shape[-2:])
        elif len(shape) == 2:
            layer[0] += sum(shape)
    for name, module in base.named_modules(remove_duplicate=False):  # GPT's layers have one activation between them
        if (place := PLACE.search(name)) and (more := kept_more(module)):
            of_experts = share if EXPERT.search(name) else 1
            parent = base.get_submodule(name.rpartition(".")[0])
            found[name[: place.end()]][3] += more * of_experts * _activated(parent, _needed(settings, "hidden_size"))
    return tuple(Layer(*(round(value) for value in layer)) for layer in found.values())


class _Decoded(MoeModelOutputWithPast):
    """What a decoder gives, and None of all that only some of them give, as cross-attentions or an image's states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def kept_more(module: torch.nn.Module) -> float:
    """How many values an activation keeps for gradients of each that it is given, but for the one that any keeps: none where a kernel makes
    it, three where GPT-2's GELU is written out in operations; 0 for a module that is no activation, or has weights. As it trains."""
    if any(True for _ in module.children()) or any(value.numel() > 1 for value in module.parameters()):
        return 0.0
    given = torch.zeros(1, 1, 64, device="meta", requires_grad=True)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        kept[storage._cdata] = storage
        return value

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            made = module(given)
    except (*model.UNFIT, ImportError):
        return 0.0
    if not isinstance(made, torch.Tensor) or made.shape != given.shape:
        return 0.0
    return max(0.0, sum(storage.nbytes() for storage in kept.values()) / (given.numel() * given.element_size()) - 1)


def _activated(parent: torch.nn.Module, hidden: int) -> int:
    """Values of an activation in `parent`, whose matrices, its own or its linear maps', take hidden states there and back: the narrower
    side (of a gate and what it lets through made in one, half). Of experts all of them; 0 where there are no such matrices."""
    near = [value.shape for name, value in parent.named_parameters() if name.count(".") <= 1 and value.dim() >= 2]
    sides = [math.prod(shape) // hidden for shape in near if hidden in shape[-2:]]
    return min(sides, default=0)


def _normalised(name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """Values that a normalisation's weight is of: that of a query's or a key's heads is as wide as one of them."""
    of_heads = re.sub(r"\b([qk])_norm\.weight$", r"\1_proj.weight", name)
    return max(shapes[name][0], shapes[of_heads][0] if of_heads != name and of_heads in shapes else 0)


def reads_hidden(base: Any) -> bool:
    """Whether losses can be read from hidden states, which `head.usable` tries on a model that has weights. Here what a model does beside
    its layers and its head is tried, on what might come from them: whether it is the same before the head as behind it."""
    output = base.get_output_embeddings()
    if type(output) is not torch.nn.Linear or output.bias is not None:
        return False
    first = next((child for child in base.children() if child is not output), None)
    decoders = {first, base.get_decoder()} - {None, base}  # OPT calls a part of its first child
    if not decoders:
        return False
    random = torch.Generator().manual_seed(17)
    states, weight = (torch.randn(*size, output.in_features, generator=random) for size in ((1, 4), (8,)))

    def logits(forward: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        output.forward = forward
        found: torch.Tensor = base(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits
        return found

    for decoder in decoders:
        decoder.forward = lambda *_, **__: _Decoded(last_hidden_state=states)
    try:
        with torch.no_grad():
            behind, before = logits(lambda hidden: hidden @ weight.T), logits(lambda hidden: hidden) @ weight.T
    except (*model.UNFIT, ImportError):
        return False
    finally:
        for stub in (output, *decoders):
            del stub.forward
    if behind.is_meta:
        return False  # what it calls is another part, of which there are no numbers: more memory is told
    return behind.shape == before.shape and torch.allclose(behind, before, rtol=head.TOLERANCE, atol=head.TOLERANCE)


def _chosen_share(settings: Any) -> float:
    """Of the experts, how many a token takes."""
    there = next((int(value) for name in EXPERTS if (value := _setting(settings, name))), 0)
    chosen = int(_setting(settings, "num_experts_per_tok") or 0)
    return chosen / there if there and chosen else 1.0


def _setting(settings: Any, name: str) -> Any:
    """What a model's config says by that name, the largest where its layers have their own; None where it says nothing."""
    if name in (getattr(settings, "per_layer_attributes", None) or ()):
        return max((getattr(layer, name) for layer in settings.per_layer_config), default=None)
    return getattr(settings, name, None)


def _needed(settings: Any, name: str) -> int:
    """A number that a model's config must say. Raises UserError where it says none."""
    found = _setting(settings, name)
    if not isinstance(found, int):
        raise UserError(
            "ModelUnsupported",
            f"the config.json of a model of type {settings.model_type} has no {name}, by which a run's memory is counted",
            "Take a model of another type: most that write text from left to right have it.",
        )
    return found
