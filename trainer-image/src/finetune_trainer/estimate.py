"""Memory and time of a training run, before a GPU is asked for.

Memory per rank = weights (all that is there, as the method stores it) + gradients and optimizer of what trains + activations + logits
(where losses are read from hidden states, what is kept of these, and the `head`'s chunk of logits at a time) + the framework, and on CPUs
the copies that a roll-back and the best checkpoint need, which on GPUs lie in the host's memory. The first three are counted on the model's
outline, exactly; the others bound, by what a token passes through there, and attention's scores, where no kernel forgets them, by its row's
tokens too. What ZeRO would divide among all ranks is told beside it, whole, and what there would be in place of activations if each layer
kept its input alone and computed the rest again.
Time = floating-point operations a parameter and token: 6, of which a frozen base saves a quarter; computing again adds one pass forward,
and DPO one of the base model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune_trainer.config import PROMPT_METHODS, ComputeConfig, MethodConfig
from finetune_trainer.exits import JsonObject
from finetune_trainer.methods import SHARDED

FRAMEWORK_BYTES = 1_200_000_000
LINEAR_VALUES = 1.4  # kept for gradients of each value that goes into or out of a linear map; while they are made there is one more
NORM_VALUES = 0.75  # kept of each value that is normalised
NORM_VALUES_BF16 = 1.75  # the same in bfloat16, where it is made in float32
NORM_VALUES_MIXED = 3.5  # and where what comes in is float32, too
SCORE_BYTES, SCORE_CAST_BYTES = 4, 2  # of an attention's score, each time that it is kept; its half once more where values are bfloat16
SCORE_MADE_BYTES = 12  # of each score of one layer, while they or their gradients are made
LOGIT_BYTES = 12  # a value: itself, and what its exponent is made of
CHUNK_LOGITS = 2**26  # that the head makes at a time where losses are read from hidden states
BUCKET, GATHERED = 50_000_000, 500_000_000  # numbers that ZeRO reduces at a time; parameters that its stage 3 holds whole at a time
FLOAT, MOMENTS = 4, 8  # bytes a trained parameter: its value or gradient; AdamW's two moments
BY_PASS = ("activations", "recomputed", "logits", "unfusedLogits")  # components that grow with the tokens of a pass
IN_STAGE_3 = ("gathered", "unfusedLogits")
_STATES = ("masters", "optimizer")
STAGES = {"ZeRO1": _STATES, "ZeRO2": (*_STATES, "gradients"), "ZeRO3": (*_STATES, "gradients", "parameters")}  # what each divides
MOST_RANKS = 512
NF4_BLOCK, NF4_NESTED_BLOCK = 64, 256
NF4_BYTES = 0.5 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * NF4_NESTED_BLOCK)  # a weight: 4 bits, its block's byte, that byte's block's float
CPU_FLOPS_FP32, CPU_FLOPS_BF16 = 45e9, 110e9
GPU_FLOPS = {"h100": 400e12, "h200": 400e12, "a100": 140e12, "l40": 90e12, "l4": 30e12}
GPU_FLOPS_UNKNOWN = 50e12


class Layer(NamedTuple):
    """Values that one token has in a layer: `linear` go into and out of its linear maps, `experts` those of the experts that it passes,
    `norms` are normalised, `written` are what activations written out in operations keep beside the one value that a kernel keeps."""

    linear: int
    experts: int
    norms: int
    written: int = 0


class Scores(NamedTuple):
    """What is kept of attention's scores, of which each head has one for each two tokens of a row: none where a kernel makes and forgets
    them (`heads` 0); `times`: they themselves, and what caps and drops them. `on_accelerators`: there, too."""

    heads: int = 0
    times: int = 0
    on_accelerators: bool = True


FORGOTTEN = Scores()


@dataclass(frozen=True)
class Outline:
    """Parameters by how they are kept: `frozen` in the model's precision, `quantized` (with so many rows) as the method says,
    `trained` in float32; `active` of all of them take part in one token's pass. `recomputes`: its layers can be computed again; `fused`:
    losses are read from hidden states (see `train.head`). `experts` of a mixture are frozen whatever the method quantises."""

    frozen: int
    quantized: int
    quantized_rows: int
    trained: int
    active: int
    hidden: int
    layers: tuple[Layer, ...]
    vocabulary: int
    recomputes: bool = True
    fused: bool = True
    experts: int = 0
    scores: Scores = FORGOTTEN


def estimate(
    outline: Outline, method: MethodConfig, compute: ComputeConfig, tokens: int, epochs: float, pass_tokens: int, bf16: bool,
    recompute: bool = False, row_tokens: int | None = None,
) -> JsonObject:  # fmt: skip
    """`memoryBytes` of one rank with its `memory` by component in passes of `passTokens`, of rows of at most `row_tokens` (None: a pass is
    one row), and `seconds` of a run of so many `tokens` an epoch; `recomputed`: bytes in place of `activations` with gradient checkpointing
    (None: this model or method has none)."""
    accelerated = compute.gpus_per_node > 0
    width = 2 if bf16 else 4
    trained = outline.trained
    beside = scores(outline, width, accelerated, row_tokens or pass_tokens)
    held = activations(outline, method, width, accelerated)
    kept = {name: round(pass_tokens * (size + beside[name])) for name, size in held.items()}
    which = "recomputed" if recompute else "activations"
    memory = {
        "weights": round(weights(outline, method, bf16)),
        "gradients": trained * FLOAT,
        "optimizer": trained * MOMENTS,
        which: kept[which],
        **logits(outline, method, width, pass_tokens),
        "framework": FRAMEWORK_BYTES,
        **({} if accelerated else {"copies": trained * (2 * FLOAT + MOMENTS)}),
    }
    each = ((6 if method.type == "Full" else 4.5) + (2 if recompute else 0)) * epochs + (2 if method.objective == "DPO" else 0)
    seconds = tokens * each * outline.active / speed(compute, bf16) + 30
    whole = {name: size for name, size in memory.items() if name not in ("weights", "copies")}
    return {
        "memoryBytes": sum(memory.values()),
        "memory": memory,
        "recomputed": kept["recomputed"] if outline.recomputes and method.type not in PROMPT_METHODS else None,
        "sharded": {**whole, **divisible(outline, bf16), **partitioned(outline, pass_tokens)} if method.type in SHARDED else {},
        "seconds": round(seconds),
        "passTokens": pass_tokens,
        "accelerated": accelerated,
    }


def ranks_needed(told: JsonObject, room: int, method: MethodConfig) -> int | None:
    """The fewest ranks that hold a run of which `estimate` told this (with its `longest` row), in accelerators of `room` bytes each: whole
    in each, or divided by the stages of ZeRO that go with the method; activations are computed again where they can be, and passes are as
    small as rows allow. None: no number up to `MOST_RANKS`, as of a method too large for one that ZeRO does not divide."""
    if sum(_smallest(told, "memory").values()) <= room:
        return 1
    found = []
    for stage, divided in STAGES.items() if told["sharded"] else ():
        if stage == "ZeRO3" and method.objective == "DPO":
            continue
        parts = _smallest(told, "sharded")
        share = sum(size for name, size in parts.items() if name in divided)
        whole = sum(size for name, size in parts.items() if name not in divided and (stage == "ZeRO3" or name not in IN_STAGE_3))
        if whole < room:
            found.append(max(2, math.ceil(share / (room - whole))))
    return min((count for count in found if count <= MOST_RANKS), default=None)


def _smallest(told: JsonObject, which: str) -> dict[str, float]:
    """Components by size in bytes, in passes of the longest row."""
    numbers: Any = told
    parts = dict(numbers[which])
    if numbers["recomputed"] is not None and "activations" in parts:
        parts["recomputed"] = min(numbers["recomputed"], parts.pop("activations"))
    return {name: size * (numbers["longest"] / numbers["passTokens"] if name in BY_PASS else 1) for name, size in parts.items()}


def warnings(outline: Outline, method: MethodConfig, bf16: bool) -> list[str]:
    """What somebody who chose this method for its memory would not expect."""
    if not (method.quantized_as and outline.experts):
        return []
    share = 100 * outline.experts / (outline.frozen + outline.quantized)
    kept, every = outline.experts * (2 if bf16 else 4) / 2**30, weights(outline, method, bf16) / 2**30
    dtype = "bfloat16" if bf16 else "float32"
    return [
        f"QLoRA leaves {share:.0f} % of the model's weights as they are: the experts, {kept:,.1f} GiB in {dtype} of {every:,.1f} for all "
        "weights. Choose accelerators that hold that, or method.type LoRA, whose weights ranks can divide (compute.sharding ZeRO3)"
    ]


def activations(outline: Outline, method: MethodConfig, width: int, accelerated: bool) -> dict[str, float]:
    """Bytes a token, by whether layers keep their `activations` or their input alone, of which they are `recomputed` one layer at a time.
    Experts that train are computed in float32; so is what goes from layer to layer where all weights train, and on accelerators what an
    activation is made of (autocast has powers there, and all that is added to one, in float32)."""
    full = method.type == "Full"
    written = FLOAT if accelerated else width
    norm = NORM_VALUES if width == FLOAT else NORM_VALUES_MIXED if full else NORM_VALUES_BF16
    making = [layer.linear * width + layer.experts * (FLOAT if full else width) for layer in outline.layers]
    kept = [
        LINEAR_VALUES * linear + norm * layer.norms * width + layer.written * written
        for linear, layer in zip(making, outline.layers, strict=True)
    ]
    inputs = len(outline.layers) * outline.hidden * (FLOAT if full else width)
    both = [sum(pair) for pair in zip(kept, making, strict=True)]
    return {"activations": sum(kept) + max(making, default=0), "recomputed": inputs + max(both, default=0)}


def scores(outline: Outline, width: int, accelerated: bool, row_tokens: int) -> dict[str, float]:
    """Bytes a token of attention's scores, beside `activations` and what they are with layers `recomputed`."""
    heads, times, on_accelerators = outline.scores
    each = heads * row_tokens if on_accelerators or not accelerated else 0
    kept, making = each * (times * SCORE_BYTES + (0 if width == FLOAT else SCORE_CAST_BYTES)), each * SCORE_MADE_BYTES
    return {"activations": len(outline.layers) * kept + making, "recomputed": kept + making}


def logits(outline: Outline, method: MethodConfig, width: int, tokens: int) -> dict[str, int]:
    """Bytes of a pass at its end. A head whose weight trains has the gradient there before it is added to the others."""
    if not outline.fused:
        return {"logits": tokens * outline.vocabulary * LOGIT_BYTES}
    chunk = min(tokens * outline.vocabulary, max(CHUNK_LOGITS, outline.vocabulary)) * LOGIT_BYTES
    gradient = outline.vocabulary * outline.hidden * (FLOAT + width) if method.type == "Full" else 0
    return {"logits": tokens * outline.hidden * (2 * width + FLOAT), "head": chunk + gradient}


def partitioned(outline: Outline, tokens: int) -> dict[str, int]:
    """What stage 3 of ZeRO needs because it partitions the head: logits of all tokens, besides what is told anyway."""
    return {"unfusedLogits": tokens * outline.vocabulary * LOGIT_BYTES} if outline.fused else {}


def operations(outline: Outline, method: MethodConfig) -> float:
    """Floating-point operations a token by the convention that MFU is told in: 6 a parameter that takes part, 4 where it is frozen (no
    gradient of its own), and 6 for each that trains; attention is left out, and so is what is computed twice."""
    if method.type == "Full":
        return 6.0 * outline.active
    return 4.0 * outline.active + 6.0 * outline.trained


def weights(outline: Outline, method: MethodConfig, bf16: bool) -> float:
    """Bytes of all weights. Where all of them train, a pass in bfloat16 casts each for its time."""
    if method.type == "Full":
        return outline.trained * (FLOAT + (2 if bf16 else 0))
    each = {"NF4": NF4_BYTES, "Int8": 1.0, None: 0.0}[method.quantized_as]
    scales = outline.quantized_rows * FLOAT if method.quantized_as == "Int8" else 0
    return outline.frozen * (2 if bf16 else 4) + outline.quantized * each + scales + outline.trained * FLOAT


def divisible(outline: Outline, bf16: bool) -> dict[str, int]:
    """Bytes of all ranks together that stages of ZeRO divide: parameters as passes see them, float32 masters, gradients, optimizer; and
    what each rank needs beside its part: `buckets`, and in stage 3 parameters that are `gathered`."""
    width = 2 if bf16 else 4
    return {
        "parameters": (outline.frozen + outline.trained) * width,
        "masters": outline.trained * FLOAT,
        "gradients": outline.trained * FLOAT,
        "optimizer": outline.trained * MOMENTS,
        "buckets": 2 * min(BUCKET, outline.trained) * FLOAT,
        "gathered": min(GATHERED, outline.frozen + outline.trained) * width,
    }


def speed(compute: ComputeConfig, bf16: bool) -> float:
    """Floating-point operations a second of the whole gang."""
    ranks = compute.nodes * compute.processes_per_node
    if compute.gpus_per_node:
        name = compute.accelerator.lower()
        return ranks * next((flops for key, flops in GPU_FLOPS.items() if key in name), GPU_FLOPS_UNKNOWN)
    return ranks * max(1, compute.threads) * (CPU_FLOPS_BF16 if bf16 else CPU_FLOPS_FP32)
