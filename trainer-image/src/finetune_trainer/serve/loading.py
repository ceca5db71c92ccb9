"""Load what is served: a model folder (a fetched one, or what training all weights left), and on it an adapter folder: one of low
rank is merged into the weights, a trained prompt stands before every row.

Invariant: nothing from a folder is executed or unpickled (safetensors only, no remote code), nothing is downloaded, and
a folder of the work volume is read only if it carries its COMMIT.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune_trainer import layout, quantise
from finetune_trainer.config import MethodConfig, Quantization
from finetune_trainer.data.formats import Row, RowError
from finetune_trainer.data.templates import ChatEncoder
from finetune_trainer.exits import Infrastructure, UserError, raise_volume_failure
from finetune_trainer.serve.prefix import Prefix, of

WORK = Path("/work")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FAST_BF16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, its tokenizer, the ids that end a turn, its longest sequence in tokens (a prefix not counted), and
    what stands before every row."""

    model: Any
    tokenizer: Any
    end_ids: frozenset[int]
    max_model_len: int
    device: torch.device
    prefix: Prefix | None = None


def load(
    model: Path, adapter: Path | None, *, max_model_len: int | None = None, dtype: torch.dtype | None = None, work: Path = WORK
) -> Loaded:  # fmt: skip
    """Load `model` and merge `adapter`. Raises UserError (not servable), Infrastructure (not complete), or OSError where
    the volume fails."""
    from transformers import AutoTokenizer

    for folder in (model, *([adapter] if adapter else [])):
        check(folder, work)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        network, prefix = _network(model, adapter, device, dtype or serving_dtype(device))
    except (OSError, ValueError) as error:
        raise_volume_failure(error)
        raise UserError(
            "ModelNotServable", f"{model} cannot be loaded: {' '.join(str(error).split())}",
            "Use a causal language model in safetensors format that transformers knows without remote code.",
        ) from error  # fmt: skip
    room = context(network) - (prefix.tokens if prefix else 0)
    return Loaded(network, tokenizer, end_ids(network, tokenizer), min(room, max_model_len or room), device, prefix)


def context(network: Any) -> int:
    """The longest sequence that a network reads, in tokens."""
    return int(getattr(network.config, "max_position_embeddings", 0) or 4096)


def adapt(base: Loaded, adapter: Path, work: Path = WORK, *, quantized: bool = True) -> Loaded:
    """`base` with an adapter folder upon it, as `load` has it, or upon weights that are not `quantized` as vLLM has it. The same network
    is changed: what `base` was is no longer there. Raises as `load` does."""
    check(adapter, work)
    try:
        network, wrapped = _tuned(base.model, adapter, quantized)
    except (OSError, ValueError) as error:
        raise_volume_failure(error)
        raise UserError("AdapterNotServable", f"{adapter} cannot be loaded: {' '.join(str(error).split())}") from error
    prefix = None if wrapped is None else of(wrapped.to(base.device))
    room = base.max_model_len - (prefix.tokens if prefix else 0)
    return replace(base, model=network.eval().requires_grad_(False), max_model_len=room, prefix=prefix)


def check(folder: Path, work: Path = WORK) -> None:
    """Raise unless `folder` exists and, under the work volume, is complete."""
    if not folder.is_dir():
        raise Infrastructure("FolderMissing", f"{folder} does not exist", "Check that the work volume is mounted.")
    if not folder.resolve().is_relative_to(work.resolve()):
        return
    try:
        layout.read_manifest(folder, layout.ARTIFACT_MANIFEST if (folder / layout.ARTIFACT_MANIFEST).exists() else layout.MODEL_MANIFEST)
    except layout.Corrupt as error:
        raise Infrastructure("FolderIncomplete", str(error), "Let the stage that fills it run again.") from error


def _network(model: Path, adapter: Path | None, device: torch.device, dtype: torch.dtype) -> tuple[Any, Prefix | None]:
    """The network in `dtype` and a trained prompt's prefix; adapters are merged in float32, so that they are rounded once."""
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    merge_dtype = torch.float32 if adapter is not None and device.type == "cpu" else dtype
    network: Any = AutoModelForCausalLM.from_pretrained(
        model, dtype=merge_dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    network, wrapped = (network, None) if adapter is None else _tuned(network, adapter)
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return network, None if wrapped is None else of(wrapped.to(device))


def _tuned(network: Any, adapter: Path, quantized: bool = True) -> tuple[Any, Any]:
    """(`network` with an adapter of low rank merged into it, None), or (`network`, PEFT's model of it with a trained prompt)."""
    wrapped = adapted(network, adapter, quantized)
    if wrapped.active_peft_config.is_prompt_learning:
        return network, wrapped
    return wrapped.merge_and_unload(safe_merge=True), None


def adapted(network: Any, adapter: Path, quantized: bool = True) -> Any:
    """`network` with an adapter folder upon it, its weights as quantised as they were when the adapter trained, if they are to be
    `quantized`. Raises UserError for other folders."""
    from peft import PeftModel

    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError("AdapterNotServable", f"{adapter} has no {ADAPTER_WEIGHTS}", "Use safetensors weights.")
    quantized_as = trained_upon(adapter) if quantized else None
    if quantized_as is not None:
        quantise.round_trip(network, quantized_as)
    wrapped = PeftModel.from_pretrained(network, str(adapter), is_trainable=False)
    if not (wrapped.active_peft_config.is_prompt_learning or hasattr(wrapped, "merge_and_unload")):
        raise UserError("AdapterNotServable", f"{adapter} is not an adapter that can be merged", "Use LoRA.")
    return wrapped


def trained_upon(adapter: Path) -> Quantization | None:
    """How the base of this adapter was quantised in training, as its revision.json says; None: not, or not known."""
    path = adapter / layout.ARTIFACT_MANIFEST
    if not path.is_file():
        return None
    method = json.loads(path.read_text()).get("method")
    return MethodConfig.model_validate(method).quantized_as if method else None


def end_ids(network: Any, tokenizer: Any) -> frozenset[int]:
    """The token ids that end an answer: of generation settings, tokenizer, and what training taught to end a turn."""
    given = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    listed = given if isinstance(given, list | tuple) else [given]
    return frozenset(int(i) for i in (*listed, tokenizer.eos_token_id, turn_end(tokenizer)) if i is not None)


def turn_end(tokenizer: Any) -> int | None:
    """The token by which the chat template ends an assistant's turn, as training supervises it."""
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    try:
        encoded = ChatEncoder(tokenizer).encode(Row("", 0, messages, ""))
    except (RowError, UserError):
        return None
    return max(zip(encoded.mask, range(len(encoded.ids)), encoded.ids, strict=True))[2]


def serving_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32 (on a CPU without it bf16 is the slower one)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return torch.float32
    return torch.bfloat16 if any(flag in flags for flag in _FAST_BF16) else torch.float32
