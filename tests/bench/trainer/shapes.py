"""The shapes that are measured on a GPU: random weights, whose speed is that of trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from tests.bench.trainer.prepare import model as tool

LORA = {"rank": 16, "alpha": 32, "dropout": 0, "targetModules": []}
ONE_B: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}  # fmt: skip
EIGHT_B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A Llama of these sizes under a method; TRL beside it or not."""

    name: str
    sizes: dict[str, Any]
    method: dict[str, Any]
    theirs: bool


SHAPES = (
    Shape("1B LoRA bf16", ONE_B, {"type": "LoRA", "objective": "SFT", "lora": LORA}, True),
    Shape("8B LoRA bf16", EIGHT_B, {"type": "LoRA", "objective": "SFT", "lora": LORA}, True),
    Shape("8B QLoRA bf16", EIGHT_B, {"type": "QLoRA", "objective": "SFT", "lora": LORA}, False),
    Shape("1B full bf16", ONE_B, {"type": "Full", "objective": "SFT"}, True),
)


def write(shape: Shape, folder: Path) -> Path:
    """A model folder of the shape with the tiny model's tokenizer and Llama 3's number of logits."""
    tool(folder, "tiny_model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=128_256, max_position_embeddings=8192, dtype="bfloat16", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **shape.sizes,
    )  # fmt: skip
    torch.manual_seed(17)
    with torch.device("cuda"):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)
    return folder
