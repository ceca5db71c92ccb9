"""Memory and time of a training run, before a GPU is asked for.

Memory per rank = weights + trained state (16 bytes a parameter: value, gradient, two moments in fp32) + activations
+ logits + the framework. Time = 6 floating-point operations a parameter and token, of which a frozen base saves a
third. Both are estimates: they bound, they do not predict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.config import ComputeConfig, LoraConfig
from finetune_trainer.exits import JsonObject

FRAMEWORK_BYTES = 1_200_000_000
ACTIVATION_VALUES = 34
CPU_FLOPS_FP32, CPU_FLOPS_BF16 = 45e9, 110e9
GPU_FLOPS = {"h100": 400e12, "h200": 400e12, "a100": 140e12, "l40": 90e12, "l4": 30e12}
GPU_FLOPS_UNKNOWN = 50e12


@dataclass(frozen=True)
class Shape:
    """What the estimate needs of a model's configuration."""

    parameters: int
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int


def shape_of(settings: Mapping[str, object]) -> Shape:
    """The shape that a transformers config.json describes (dense decoder assumed)."""

    def number(*names: str, default: int = 0) -> int:
        found = next((settings[name] for name in names if isinstance(settings.get(name), int)), default)
        assert isinstance(found, int)
        return found

    hidden, layers = number("hidden_size", "n_embd", default=1024), number("num_hidden_layers", "n_layer", default=24)
    wide = number("intermediate_size", "n_inner", default=4 * hidden)
    vocabulary = number("vocab_size", default=32000)
    heads = number("num_attention_heads", "n_head", default=16)
    head = number("head_dim", default=hidden // heads)
    narrow = head * number("num_key_value_heads", default=heads)
    layer = hidden * (2 * head * heads + 2 * narrow) + 3 * hidden * wide
    embeddings = vocabulary * hidden * (1 if settings.get("tie_word_embeddings", False) else 2)
    return Shape(layers * layer + embeddings, hidden, layers, wide, vocabulary)


def lora_parameters(shape: Shape, lora: LoraConfig) -> int:
    """Trained parameters of LoRA on all linear layers (an upper bound where fewer are targeted)."""
    attention = 4 * 2 * shape.hidden
    feed_forward = 3 * (shape.hidden + shape.intermediate)
    return lora.rank * shape.layers * (attention + feed_forward)


def estimate(shape: Shape, lora: LoraConfig, compute: ComputeConfig, tokens: int, pass_tokens: int, bf16: bool) -> JsonObject:
    """`memoryBytes` of one rank with its `memory` by component in passes of `passTokens`, and `seconds` of the whole run of `tokens`."""
    width = 2 if bf16 else 4
    trained = lora_parameters(shape, lora)
    memory = {
        "weights": shape.parameters * width,
        "trained": trained * 16,
        "activations": pass_tokens * shape.layers * shape.hidden * ACTIVATION_VALUES * width,
        "logits": pass_tokens * shape.vocabulary * 12,
        "framework": FRAMEWORK_BYTES,
    }
    seconds = tokens * 4.5 * shape.parameters / speed(compute, bf16) + 30
    return {
        "memoryBytes": sum(memory.values()),
        "memory": memory,
        "seconds": round(seconds),
        "passTokens": pass_tokens,
        "accelerated": compute.gpus_per_node > 0,
    }


def speed(compute: ComputeConfig, bf16: bool) -> float:
    """Floating-point operations a second of the whole gang."""
    ranks = compute.nodes * compute.processes_per_node
    if compute.gpus_per_node:
        name = compute.accelerator.lower()
        return ranks * next((flops for key, flops in GPU_FLOPS.items() if key in name), GPU_FLOPS_UNKNOWN)
    return ranks * max(1, compute.threads) * (CPU_FLOPS_BF16 if bf16 else CPU_FLOPS_FP32)
