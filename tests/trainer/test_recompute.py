"""Layers that keep their input alone and compute the rest again: the same losses, and as much memory as the estimate says."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import estimate
from finetune_trainer.config import ComputeConfig, MethodConfig, RunConfig
from finetune_trainer.exits import UserError
from finetune_trainer.train import adapters, assemble
from finetune_trainer.train import outline as outlines
from finetune_trainer.train.model import trained
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.trainer import lives
from tests.trainer.test_methods import configured

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
LAYERS, HIDDEN, TOKENS = 12, 64, 256


class Held(TorchDispatchMode):
    """Bytes of what operators made and what is still there: `peak` is the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.there: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage._cdata not in self.there | given:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.there.add(storage._cdata)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, place: int, size: int) -> None:
        self.there.discard(place)
        self.bytes -= size


def storages(tree: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(tree) if isinstance(value, torch.Tensor)]


def peak(kind: str, bf16: bool, recompute: bool) -> int:
    """Bytes beside weights, gradients and optimizer while a pass of a Llama goes forward and back."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=HIDDEN, intermediate_size=7 * HIDDEN // 2, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config).to(torch.bfloat16 if bf16 and kind != "Full" else torch.float32)
    base.name_or_path = "/models/llama"
    model = adapters.wrap(base.requires_grad_(False), MethodConfig.model_validate({"type": kind}), Path("/models/llama"), 17, recompute)
    for value in trained(model.train()).values():
        value.grad = torch.zeros_like(value)
    ids = torch.arange(TOKENS)[None] % 32
    with Held() as held:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return held.peak


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["LoRA", "Full"])
def test_a_pass_holds_no_more_than_the_estimate_says_and_not_much_less(kind: str, bf16: bool, recompute: bool) -> None:
    """At least 0.6 of it, and of it all."""
    casts = 2 * LAYERS * HIDDEN**2 * 27 // 2 if kind == "Full" and bf16 else 0  # counted with the weights
    outline, method = estimate.Outline(0, 0, 0, 0, 0, HIDDEN, LAYERS, 32), MethodConfig.model_validate({"type": kind})
    told = estimate.estimate(outline, method, ComputeConfig(gpusPerNode=1), 1000, 1, TOKENS, bf16, recompute)
    memory: Any = told["memory"]
    assert ("activations" in memory, "recomputed" in memory) == (not recompute, recompute)
    bound = memory["recomputed" if recompute else "activations"] + memory["logits"] + casts
    assert 0.6 * bound <= peak(kind, bf16, recompute) <= bound


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "Full", "QLoRA NF4", "QLoRA Int8"])
def test_what_is_computed_again_trains_the_same(name: str, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Dropout, too."""
    kept = lives.train(configured(work, tiny_model, name), tmp_path / "kept").losses
    again = configured(work, tiny_model, name, training__gradientCheckpointing=True)
    assert lives.train(again, tmp_path / "again").losses == pytest.approx(kept, rel=1e-6)


def test_a_checkpoint_of_one_is_resumed_by_the_other(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    again = configured(work, tiny_model, "LoRA", training__gradientCheckpointing=True)
    kept = configured(work, tiny_model, "LoRA")
    marks = {assemble.open_inputs(RunConfig.model_validate(config)).fingerprint for config in (kept, again)}
    assert len(marks) == 1


@pytest.mark.parametrize(("kind", "recomputes"), [("PTuning", True), ("LoRA", False)])
def test_what_cannot_be_computed_again_is_not_told(kind: str, recomputes: bool) -> None:
    outline, method = estimate.Outline(0, 0, 0, 0, 0, HIDDEN, LAYERS, 32, recomputes), MethodConfig.model_validate({"type": kind})
    assert estimate.estimate(outline, method, ComputeConfig(gpusPerNode=1), 1000, 1, TOKENS, True)["recomputed"] is None


def test_a_model_whose_layers_cannot_be_computed_again_is_refused(
    work: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    config = configured(work, tiny_model, "LoRA", training__gradientCheckpointing=True)
    assert not outlines.count(RunConfig.model_validate(config).model, MethodConfig()).recomputes
    with pytest.raises(UserError, match="the layers of a llama cannot be computed again"):
        lives.train(config, tmp_path)
