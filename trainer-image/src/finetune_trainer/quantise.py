"""How QLoRA stores a frozen base: 4-bit NF4 with double quantisation, or 8-bit, by bitsandbytes (CPU and CUDA).

Invariant: training and serving quantise the same layers with the same function, so what an adapter was trained upon is what it
is merged into. The output head and the routers of a mixture of experts stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from finetune_trainer.config import Quantization
from finetune_trainer.estimate import NF4_BLOCK

ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)$")


def adaptable(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers by name, but for the output head and the routers."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not ROUTER.search(name)
    }


def settings(outline: Any, kind: Quantization, dtype: torch.dtype) -> Any:
    """What `from_pretrained` needs to quantise a model of this outline (on any device) and multiply in `dtype`."""
    from transformers import BitsAndBytesConfig

    wanted = adaptable(outline)
    kept = [name for name, module in outline.named_modules() if isinstance(module, torch.nn.Linear) and name not in wanted]
    if kind == "Int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )  # fmt: skip


def keep_trainable(model: Any) -> None:
    """Stop 4-bit layers from repacking their weights for good at the first pass in evaluation mode, as bitsandbytes does on CPUs with
    AVX512-BF16: no gradient comes back through what is repacked, and a validation between two steps would end the training."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@torch.no_grad()
def round_trip(network: Any, kind: Quantization) -> None:
    """Replace the weights of `network` by what is left of them after quantisation, in their own dtype."""
    for layer in adaptable(network).values():
        layer.weight.copy_(_nf4(layer.weight) if kind == "NF4" else _int8(layer.weight))


def _nf4(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4")
    found: torch.Tensor = functional.dequantize_4bit(packed, state)
    return found


def _int8(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes import functional

    rows, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
    found: torch.Tensor = functional.int8_vectorwise_dequant(rows, scales)
    return found
