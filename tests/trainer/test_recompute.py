"""Layers that keep their input alone and compute the rest again: the same losses, and as much memory as the estimate says."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_trainer import estimate
from finetune_trainer.config import ComputeConfig, MethodConfig, RunConfig
from finetune_trainer.exits import UserError
from finetune_trainer.train import adapters, assemble, head
from finetune_trainer.train import outline as outlines
from finetune_trainer.train.model import trained
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.activations import ACT2FN
from transformers.models.bloom.modeling_bloom import BloomGelu

from tests.trainer import lives
from tests.trainer.test_methods import configured

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
LAYERS, HIDDEN, TOKENS = 12, 64, 256
SHAPE: dict[str, Any] = {"vocab_size": 32, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
EXPERTS: dict[str, Any] = {**SHAPE, "intermediate_size": 224, "num_key_value_heads": 2}
WIDE: dict[str, PreTrainedConfig] = {
    "a Llama 3 8B's": LlamaConfig(**SHAPE, intermediate_size=7 * HIDDEN // 2, num_key_value_heads=2),
    "a narrow MLP": LlamaConfig(**SHAPE, intermediate_size=HIDDEN, num_key_value_heads=4),
    "an MLP of 8 times": LlamaConfig(**SHAPE, intermediate_size=8 * HIDDEN, num_key_value_heads=1),
    "an MLP of 14 times": LlamaConfig(**SHAPE, intermediate_size=14 * HIDDEN, num_key_value_heads=1),
    "wide heads": LlamaConfig(**SHAPE, intermediate_size=8 * HIDDEN, num_key_value_heads=1, head_dim=HIDDEN),
    "normalised heads, Qwen 3": Qwen3Config(**SHAPE, intermediate_size=3 * HIDDEN, num_key_value_heads=2, head_dim=32),
    "six normalisations, Gemma 3": Gemma3TextConfig(**SHAPE, intermediate_size=8 * HIDDEN, num_key_value_heads=1, head_dim=32),
    "two of eight experts, Mixtral": MixtralConfig(**EXPERTS, num_local_experts=8, num_experts_per_tok=2),
    "one of eight experts": MixtralConfig(**EXPERTS, num_local_experts=8, num_experts_per_tok=1),
    "eight of 32 small experts, Qwen 3 MoE": Qwen3MoeConfig(
        **EXPERTS, head_dim=32, num_experts=32, num_experts_per_tok=8, moe_intermediate_size=24
    ),
    "every second layer of experts": Qwen3MoeConfig(
        **EXPERTS, head_dim=32, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=64, decoder_sparse_step=2
    ),
    "a GELU written out in operations, Phi": PhiConfig(**SHAPE, intermediate_size=4 * HIDDEN),
    "one that lets something through, behind a gate": LlamaConfig(
        **SHAPE, intermediate_size=8 * HIDDEN, num_key_value_heads=1, hidden_act="gelu_new"
    ),
    "all experts, Llama 4": Llama4TextConfig(
        **SHAPE, num_key_value_heads=2, intermediate_size=128, intermediate_size_mlp=256, head_dim=16, num_local_experts=4,
        num_experts_per_tok=1, interleave_moe_layer_step=1,
    ),
}  # fmt: skip

# Attention that keeps its scores, of which there are as many as a row is long for each head and token: here more than all else.
SCORED: dict[str, PreTrainedConfig] = {
    "heads of two sizes, DeepSeek V3": DeepseekV3Config(
        **SHAPE, num_key_value_heads=4, intermediate_size=128, moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2,
        n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=16,
    ),
    "no kernel knows its sinks, gpt-oss": GptOssConfig(
        **{**EXPERTS, "intermediate_size": 64}, head_dim=16, num_local_experts=4, num_experts_per_tok=2
    ),
    "scores that are capped, Gemma 2": Gemma2Config(**EXPERTS, head_dim=16),
    "scores of distances, Bloom": BloomConfig(vocab_size=32, hidden_size=HIDDEN, n_layer=LAYERS, n_head=4),
    "scores that are dropped": LlamaConfig(**EXPERTS, attention_dropout=0.1),
    "no kernel is asked for": LlamaConfig(**EXPERTS, attn_implementation="eager"),
}  # fmt: skip


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


def peak(config: PreTrainedConfig, kind: str, bf16: bool, recompute: bool) -> int:
    """Bytes beside weights, gradients and optimizer while a pass goes forward and back."""
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


def described(config: PreTrainedConfig, **facts: Any) -> tuple[estimate.Outline, int]:
    """What passes through a model, and how many weights its layers have."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config)
    layers, scores = outlines.layers_of(base), outlines.scores_of(base)
    return estimate.Outline(0, 0, 0, 0, 0, HIDDEN, layers, config.vocab_size, scores=scores, **facts), sum(
        p.numel() for p in base.parameters()
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["LoRA", "Full"])
@pytest.mark.parametrize("name", WIDE)
def test_a_pass_holds_no_more_than_the_estimate_says_and_not_much_less(name: str, kind: str, bf16: bool, recompute: bool) -> None:
    """At least 0.55 of it, and 0.5 where a single layer is nearly all of it."""
    found, bound, casts = found_and_told(WIDE[name], kind, bf16, recompute)
    assert (0.5 if recompute else 0.55) * (bound - casts) <= found <= bound, f"{found / bound:.2f}"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["LoRA", "Full"])
@pytest.mark.parametrize("name", SCORED)
def test_attention_that_keeps_its_scores_holds_what_the_estimate_says(name: str, kind: str, bf16: bool, recompute: bool) -> None:
    """At least 0.35 of it: some keep them in bfloat16 alone."""
    found, bound, casts = found_and_told(SCORED[name], kind, bf16, recompute)
    assert 0.35 * (bound - casts) <= found <= bound, f"{found / bound:.2f}"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_a_model_without_linear_layers_holds_no_more_than_the_estimate_says(dropped: float, bf16: bool) -> None:
    """GPT-2, whose maps are convolutions and whose GELU is written out."""
    config = GPT2Config(
        vocab_size=32, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, resid_pdrop=dropped, embd_pdrop=dropped, attn_pdrop=dropped,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    found, bound, casts = found_and_told(config, "Full", bf16, recompute=False)
    assert 0.55 * (bound - casts) <= found <= bound, f"{found / bound:.2f}"


KEPT: dict[str, tuple[torch.nn.Module, float]] = {
    "a kernel keeps what it is given": (ACT2FN["gelu"], 0),
    "or what it makes": (torch.nn.Tanh(), 0),
    "GPT-2's GELU: its half, its tangent and that with one added": (ACT2FN["gelu_new"], 3),
    "a sigmoid to multiply by": (ACT2FN["quick_gelu"], 1),
    "Bloom's writes nothing out where it trains": (BloomGelu(), 0),
    "nothing is kept": (ACT2FN["linear"], 0),
    "what has weights is no activation": (torch.nn.Linear(64, 64), 0),
    "nor is what takes more than one value": (torch.nn.Bilinear(1, 1, 1, bias=False), 0),
    "a normalisation without weights is half one": (torch.nn.LayerNorm(64, elementwise_affine=False), 2 / 64),
}


@pytest.mark.parametrize(("module", "more"), KEPT.values(), ids=KEPT)
def test_what_an_activation_keeps_beside_what_any_keeps_is_seen(module: torch.nn.Module, more: float) -> None:
    assert outlines.kept_more(module.to("meta")) == more


@pytest.mark.parametrize("name", ["gelu_new", "silu"])
def test_values_of_an_activation_are_those_of_the_experts_that_a_token_takes(name: str) -> None:
    """Two of eight, of 224 values each."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(MixtralConfig(**EXPERTS, num_local_experts=8, num_experts_per_tok=2, hidden_act=name))
    assert {layer.written for layer in outlines.layers_of(base)} == {3 * 2 * 224 if name == "gelu_new" else 0}


def test_accelerators_keep_what_an_activation_is_made_of_in_float32() -> None:
    layers = (estimate.Layer(0, 0, 0, written=100),) * 10
    outline = estimate.Outline(0, 0, 0, 0, 0, HIDDEN, layers, 32)
    kept = [estimate.activations(outline, MethodConfig(), 2, accelerated)["activations"] for accelerated in (False, True)]
    assert kept == [10 * 100 * 2, 10 * 100 * 4]


def found_and_told(config: PreTrainedConfig, kind: str, bf16: bool, recompute: bool) -> tuple[int, int, int]:
    """Bytes that a pass of one row held, that the estimate has for it, and of these what weights are cast to."""
    outline, weights = described(config, fused=False)
    casts = 2 * weights if kind == "Full" and bf16 else 0  # counted with the weights
    method = MethodConfig.model_validate({"type": kind})
    told = estimate.estimate(outline, method, ComputeConfig(), 1000, 1, TOKENS, bf16, recompute)
    memory: Any = told["memory"]
    assert ("activations" in memory, "recomputed" in memory) == (not recompute, recompute)
    bound = memory["recomputed" if recompute else "activations"] + memory["logits"] + casts
    return peak(config, kind, bf16, recompute), bound, casts


def test_layers_with_heads_of_their_own_are_told_by_the_most() -> None:
    """Dots 3's have 128 or 64; transformers refuses to say how many a layer has."""
    config = CONFIG_MAPPING["dots3_note_text"](attn_implementation="eager")
    with pytest.raises(RuntimeError, match="may vary across layers"):
        config.num_attention_heads  # noqa: B018
    assert outlines.scores_of(SimpleNamespace(config=config)) == estimate.Scores(128, 1)


def test_a_model_without_attention_keeps_no_scores() -> None:
    config = MambaConfig(attn_implementation="eager")
    assert not hasattr(config, "num_attention_heads")
    assert outlines.scores_of(SimpleNamespace(config=config)) == estimate.FORGOTTEN


def test_scores_grow_with_the_row_and_some_are_kept_on_cpus_alone() -> None:
    """16 heads in 10 layers, of rows of 100 tokens."""
    layers = (estimate.Layer(0, 0, 0),) * 10
    for scores, kept in ((estimate.Scores(16, 1, True), 4), (estimate.Scores(16, 3, False), 12)):
        outline = estimate.Outline(0, 0, 0, 0, 0, HIDDEN, layers, 32, scores=scores)
        assert estimate.scores(outline, 4, False, 100) == {"activations": 1600 * (10 * kept + 12), "recomputed": 1600 * (kept + 12)}
        assert estimate.scores(outline, 2, False, 100)["recomputed"] == 1600 * (kept + 2 + 12)
        assert bool(estimate.scores(outline, 2, True, 100)["activations"]) == scores.on_accelerators
    method, gpu = MethodConfig(), ComputeConfig(gpusPerNode=1)
    outline = estimate.Outline(0, 0, 0, 0, 0, HIDDEN, layers, 32, scores=estimate.Scores(16, 1))
    short, long = (estimate.estimate(outline, method, gpu, 1, 1, 8000, True, row_tokens=row)["memory"] for row in (1000, 8000))
    assert isinstance(short, dict)
    assert isinstance(long, dict)
    assert long["activations"] == 8 * short["activations"], "of a pass of as many tokens"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["LoRA", "Full"])
def test_a_head_that_makes_no_logits_of_all_tokens_holds_what_the_estimate_says(
    kind: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """With a vocabulary of which 32 tokens make a chunk, and 16 chunks; a twelfth of what all logits would take."""
    vocabulary = 2048
    for module in (estimate, head):
        monkeypatch.setattr(module, "CHUNK_LOGITS", 32 * vocabulary)
    method = MethodConfig.model_validate({"type": kind})
    tokens, width = 512, 2 if bf16 else 4
    outline, _ = described(LlamaConfig(**{**SHAPE, "vocab_size": vocabulary, "num_hidden_layers": 1}, intermediate_size=HIDDEN))
    output = torch.nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(kind == "Full")
    output.to(torch.bfloat16 if bf16 and kind != "Full" else torch.float32)
    output.weight.grad = torch.zeros_like(output.weight)
    hidden = torch.randn(1, tokens, HIDDEN, dtype=output.weight.dtype, requires_grad=True)
    targets, places = torch.arange(tokens) % vocabulary, torch.arange(tokens)
    casts = 2 * output.weight.numel() if kind == "Full" and bf16 else 0  # counted with the weights
    with Held() as held, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        head.token_losses(hidden[torch.zeros_like(places), places], output, targets).sum().backward()
    told = estimate.logits(outline, method, width, tokens)
    bound = sum(told.values()) + casts
    assert 0.6 * bound <= held.peak <= bound, f"{held.peak / bound:.2f} {told}"
    assert sum(told.values()) < tokens * vocabulary * estimate.LOGIT_BYTES / 4


# Whether logits are nothing but the head's product with hidden states.
HEADS: dict[str, tuple[PreTrainedConfig, bool]] = {
    **{name: (config, not isinstance(config, PhiConfig)) for name, config in WIDE.items()},  # Phi's head has a bias
    "logits that are capped": (Gemma2Config(**SHAPE, intermediate_size=64, num_key_value_heads=1, head_dim=16), False),
    "logits that are scaled": (CohereConfig(**SHAPE, intermediate_size=64), True),
    "a part of the decoder is called, OPT": (OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=HIDDEN), True),
    "cross-attentions are asked for, BioGPT": (BioGptConfig(**SHAPE, intermediate_size=64), True),
}


@pytest.mark.parametrize(("config", "expected"), HEADS.values(), ids=HEADS)
def test_what_a_head_does_is_told_without_weights(config: PreTrainedConfig, expected: bool) -> None:
    """As it is tried before training with them."""
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    base = AutoModelForCausalLM.from_config(config).eval()
    found = outlines.reads_hidden(outline)
    assert found == (head.usable(base, torch.arange(8)[None]) is not None) == expected


def test_a_decoder_that_is_called_past_its_own_forward_is_taken_to_need_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of such a one there is nothing to compare without weights: more memory is told, and nothing fails."""
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=HIDDEN))
    monkeypatch.setattr(outline, "get_decoder", lambda: outline.model)
    assert not outlines.reads_hidden(outline)


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
    (outline, _), method = described(WIDE["a narrow MLP"], recomputes=recomputes), MethodConfig.model_validate({"type": kind})
    assert estimate.estimate(outline, method, ComputeConfig(gpusPerNode=1), 1000, 1, TOKENS, True)["recomputed"] is None


def test_a_model_whose_layers_cannot_be_computed_again_is_refused(
    work: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    config = configured(work, tiny_model, "LoRA", training__gradientCheckpointing=True)
    assert not outlines.count(RunConfig.model_validate(config).model, MethodConfig()).recomputes
    with pytest.raises(UserError, match="the layers of a llama cannot be computed again"):
        lives.train(config, tmp_path)
