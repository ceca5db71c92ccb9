"""Layers computed in fewer passes over memory: what PEFT's and transformers' own code gives, for values and gradients, or their code."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from finetune_trainer.train import fused, head, lora
from peft import LoraConfig, get_peft_model
from torch.nn.utils import weight_norm
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    HeliumConfig,
    Olmo2Config,
    PhiConfig,
    PreTrainedConfig,
)
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_moe import modeling_qwen2_moe

from tests.trainer.test_families import FAMILIES, SIZES

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
IDS = torch.tensor([[5, 9, 30, 31, 32, 7, 8, 40]])


@pytest.fixture(autouse=True)
def families_as_they_are() -> Iterator[None]:
    """What a test, or one before it in this process, had families rotate by."""
    _put_back()
    yield
    _put_back()


def _put_back() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and (theirs := getattr(vars(module).get(fused.ROTATION), "replaces", None)):
            setattr(module, fused.ROTATION, theirs)


def layer(bias: bool = False, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """PEFT's model of one linear layer (12 → 10), whose update is not zero."""
    torch.manual_seed(17)
    base = torch.nn.Sequential(torch.nn.Linear(12, 10, bias=bias, dtype=dtype))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["0"], **settings))  # type: ignore[arg-type]
    torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    return model


def gradients(model: Any, learns: bool = True, through: Any = None, dtype: Any = torch.float32) -> dict[str, torch.Tensor]:
    """A product, and the gradients of all that learns, by name; of the input, too, if something before it `learns`."""
    values = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(3)).bfloat16().to(dtype).requires_grad_(learns)
    found = model(values) if through is None else through(model, values, use_reentrant=False)
    (found.float().square() * torch.arange(10)).sum().backward()
    named = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"": found.detach(), **named, **({"input": values.grad} if values.grad is not None else {})}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "with a bias": ({"bias": True}, {}),
    "rsLoRA": ({"use_rslora": True}, {}),
    "nothing before it learns": ({}, {"learns": False}),
    "computed again for its gradient": ({}, {"through": checkpoint}),
    "float64": ({"dtype": torch.float64}, {"dtype": torch.float64}),
}


@pytest.mark.parametrize(("settings", "given"), CASES.values(), ids=CASES)
def test_a_product_and_its_gradients_are_pefts(settings: dict[str, Any], given: dict[str, Any]) -> None:
    theirs = layer(**settings).to(settings.get("dtype"))
    ours = copy.deepcopy(theirs)
    assert lora.fuse(ours) == 1
    expected, found = gradients(theirs, **given), gradients(ours, **given)
    assert found.keys() == expected.keys()
    assert ("input" in found) == given.get("learns", True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_a_model_may_write_into_what_a_layer_gives() -> None:
    model = layer()
    assert lora.fuse(model) == 1
    model(torch.ones(2, 3, 12)).add_(1).sum().backward()


def test_under_autocast_a_product_is_nearer_to_the_exact_one_than_pefts() -> None:
    exact = gradients(layer(dtype=torch.bfloat16).float())
    apart = []
    for fuses in (True, False):
        model = layer(dtype=torch.bfloat16)
        assert not fuses or lora.fuse(model) == 1
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model, dtype=torch.bfloat16)
        assert (found[""].dtype, found["input"].dtype) == (torch.bfloat16, torch.bfloat16)
        assert {value.dtype for name, value in found.items() if "lora" in name} == {torch.float32}
        apart.append([float((found[name] - value).norm() / value.norm()) for name, value in exact.items()])
    assert all(one < 0.02 for one in apart[0])
    assert sum(apart[0]) <= 1.1 * sum(apart[1])


def refuse(*_: Any) -> None:
    raise AssertionError("this is PEFT's to compute")


def dropped(model: Any) -> None:
    model.train()


def disabled(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def merged(model: Any) -> None:
    model.base_model.model[0].merge()


def second(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "other"])


def learning(model: Any) -> None:
    model.base_model.model[0].base_layer.weight.requires_grad_(True)


def weighed(model: Any) -> None:
    base = model.base_model.model[0].base_layer
    with pytest.warns(FutureWarning, match="weight_norm"):
        weight_norm(base)
    for value in base.parameters():
        value.requires_grad_(False)
    base.weight_g.mul_(2)


def watched(model: Any) -> None:
    model.base_model.model[0].base_layer.register_forward_hook(lambda module, given, found: found + 1)


def replaced(model: Any) -> None:
    model.base_model.model[0].base_layer.forward = lambda x: x[..., :10]


def partitioned(model: Any) -> None:
    model.base_model.model[0].base_layer.weight.ds_id = 1


OTHERS: dict[str, tuple[dict[str, Any], Callable[[Any], object]]] = {
    "DoRA": ({"use_dora": True}, lambda model: None),
    "dropout": ({"lora_dropout": 0.5}, dropped),
    "a bias that learns": ({"bias": True, "lora_bias": True}, lambda model: None),
    "an adapter that is switched off": ({}, disabled),
    "one that is merged": ({}, merged),
    "two adapters": ({}, second),
    "a base that learns": ({}, learning),
    "a base that ranks divide": ({}, partitioned),
    "a base whose weight is made before each use": ({}, weighed),
    "a base that a hook adds to": ({}, watched),
    "a base that computes something else": ({}, replaced),
}


@pytest.mark.parametrize(("settings", "change"), OTHERS.values(), ids=OTHERS)
def test_whatever_is_more_than_the_formula_is_pefts(
    settings: dict[str, Any], change: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    theirs = layer(**settings).eval()
    ours = copy.deepcopy(theirs)
    change(theirs)
    change(ours)
    assert lora.fuse(ours) == 0
    monkeypatch.setattr(lora._Product, "apply", refuse)
    values = torch.randn(3, 12)
    torch.manual_seed(1)
    expected = theirs(values)
    torch.manual_seed(1)
    assert torch.equal(ours(values), expected)


# How many of a tiny model's layers are computed so: linear layers with LoRA, normalisations, families' rotations.
COUNTS = {
    "Llama": (14, 5, 1),
    "Llama 4 MoE": (14, 5, 0),
    "DeepSeek V3 MoE": (10, 9, 1),
    "Mixtral": (8, 5, 1),
    "Qwen 3": (14, 9, 1),
    "Qwen 3 MoE": (8, 9, 1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_its_own_code_does(name: str) -> None:
    torch.manual_seed(17)
    theirs = AutoModelForCausalLM.from_config(FAMILIES[name][0])
    ours = copy.deepcopy(theirs)
    expected = _logits_and_gradients(theirs)
    counts = fused.fuse(ours)
    found = _logits_and_gradients(ours)
    assert torch.equal(found.pop("logits"), expected.pop("logits")), "to the last bit"
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)
    wrapped = get_peft_model(ours, LoraConfig(r=2, target_modules=sorted(FAMILIES[name][1]), task_type="CAUSAL_LM"))
    assert (lora.fuse(wrapped), counts["norms"], counts["rotations"]) == COUNTS[name]


# Normalisations and rotations of tiny models of families whose code is not the usual one everywhere, by which of them are computed so.
NO_EXPERTS = {**SIZES, "tie_word_embeddings": False}
UNUSUAL: dict[str, tuple[PreTrainedConfig, dict[str, int]]] = {
    "weighs in float32, and rotates in it, Olmo 2": (Olmo2Config(**NO_EXPERTS), {"norms": 0, "rotations": 0}),
    "weighs in float32, Helium": (HeliumConfig(**NO_EXPERTS, head_dim=16), {"norms": 0, "rotations": 0}),
    "weighs in float32, gpt-oss": (
        GptOssConfig(**SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2), {"norms": 0, "rotations": 0},
    ),
    "weighs by one more than its weight, Gemma 2": (Gemma2Config(**SIZES, head_dim=16), {"norms": 0, "rotations": 1}),
    "the same of heads, Gemma 3": (Gemma3TextConfig(**SIZES, head_dim=16), {"norms": 0, "rotations": 1}),
    "a part of a head, its values in pairs, GLM": (GlmConfig(**NO_EXPERTS, head_dim=16), {"norms": 5, "rotations": 0}),
    "a part of a head, GPT-NeoX": (GPTNeoXConfig(**{**SIZES, "rotary_pct": 0.25}), {"norms": 0, "rotations": 1}),
    "a part of a head, Phi": (PhiConfig(**{**SIZES, "partial_rotary_factor": 0.5}), {"norms": 0, "rotations": 1}),
    "all is multiplied, Granite": (
        GraniteConfig(**SIZES, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.1),
        {"norms": 5, "rotations": 1},
    ),
}  # fmt: skip
# The weights' dtype, and whether passes are in bfloat16 by autocast: as methods and sharding have it.
MODES = {
    "in float32": (torch.float32, False),
    "all weights train, in bfloat16": (torch.float32, True),
    "an adapter trains, in bfloat16": (torch.bfloat16, True),
    "divided by ZeRO, in bfloat16": (torch.bfloat16, False),
}


@pytest.mark.parametrize(("dtype", "autocast"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", [*UNUSUAL, *FAMILIES])
def test_a_family_computes_what_its_own_code_does_in_every_precision(name: str, dtype: torch.dtype, autocast: bool) -> None:
    """Also where its weights get another precision after all was tried, as under ZeRO."""
    config, counts = UNUSUAL[name] if name in UNUSUAL else (FAMILIES[name][0], None)
    torch.manual_seed(17)
    theirs = AutoModelForCausalLM.from_config(config).float()
    for value in theirs.parameters():
        if value.dim() == 1:
            torch.nn.init.normal_(value, 1, 0.2)
    logits = []
    for model in (theirs, copy.deepcopy(theirs)):
        if model is not theirs:
            found = fused.fuse(model)
            assert counts in (None, found)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits.append(model.to(dtype)(input_ids=IDS, use_cache=False).logits)
    assert torch.equal(*logits), "to the last bit"


def _logits_and_gradients(model: Any) -> dict[str, torch.Tensor]:
    logits = model(input_ids=IDS, use_cache=False).logits
    logits.logsumexp(-1).sum().backward()
    return {"logits": logits.detach(), **{name: value.grad for name, value in model.named_parameters() if value.grad is not None}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normalisation_and_its_gradients_are_the_models(dtype: torch.dtype) -> None:
    found = []
    for ours in (False, True):
        torch.manual_seed(5)
        norm = modeling_llama.LlamaRMSNorm(32).to(dtype)
        torch.nn.init.normal_(norm.weight)
        assert not ours or fused.fuse(torch.nn.Sequential(norm))["norms"] == 1
        values = torch.randn(2, 7, 32, dtype=dtype, requires_grad=True)
        normal = norm(values)
        (normal.float() * torch.arange(32)).sum().backward()
        found.append((normal, values.grad, norm.weight.grad))
    (their, by_values, by_weight), (our, *ours_by) = found
    assert torch.equal(our, their)
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    torch.testing.assert_close(ours_by, [by_values, by_weight], **near)


class HeavierRMSNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * (1 + 1e-3 * self.weight)


class SafeRMSNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        root = wide.pow(2).mean(-1, keepdim=True).clamp(min=self.variance_epsilon)
        return self.weight * (wide * torch.rsqrt(root)).to(hidden_states.dtype)


class GatedRMSNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


class PickyRMSNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.dim() != 3:
            raise IndexError("three, please")
        return super().forward(hidden_states)


class HeadsRMSNorm(modeling_llama.LlamaRMSNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.weight = torch.nn.Parameter(torch.ones(2, size))


@pytest.mark.parametrize("kind", [HeavierRMSNorm, SafeRMSNorm, GatedRMSNorm, PickyRMSNorm, HeadsRMSNorm])
def test_a_normalisation_that_is_another_is_left_alone(kind: type[Any]) -> None:
    """It weighs otherwise, bounds instead of adding, takes more than one tensor, refuses some, has a weight for each head."""
    norm = kind(8)
    assert fused.fuse(torch.nn.Sequential(norm))["norms"] == 0
    assert "forward" not in vars(norm)


def test_normalisations_are_asked_one_by_one() -> None:
    """Two of a class need not be alike."""

    class SomeRMSNorm(modeling_llama.LlamaRMSNorm):
        more = 0.0

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + self.more

    plain, other = SomeRMSNorm(8), SomeRMSNorm(8)
    other.more = 1.0
    assert fused.fuse(torch.nn.Sequential(plain, other))["norms"] == 1
    assert ("forward" in vars(plain), "forward" in vars(other)) == (True, False)


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 0, 12), (2, 3, 4, 12)])
def test_any_number_of_rows(shape: tuple[int, ...]) -> None:
    norm = modeling_llama.LlamaRMSNorm(12)
    theirs = torch.nn.Sequential(norm, layer())
    ours = copy.deepcopy(theirs)
    assert (fused.fuse(ours)["norms"], lora.fuse(ours)) == (1, 1)
    found = []
    for model in (theirs, ours):
        values = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
        model(values).square().sum().backward()
        found.append([values.grad, *(value.grad for value in model.parameters() if value.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def _twice_through_a_head() -> torch.Tensor:
    output = torch.nn.Linear(12, 10, bias=False).requires_grad_(False)
    return head.token_losses(torch.ones(3, 12, requires_grad=True), output, torch.arange(3))


def _twice_through_a_layer() -> torch.Tensor:
    model = layer()
    assert lora.fuse(model) == 1
    found: torch.Tensor = model(torch.ones(3, 12, requires_grad=True))
    return found


def _twice_through_a_norm() -> torch.Tensor:
    norm = modeling_llama.LlamaRMSNorm(12)
    assert fused.fuse(torch.nn.Sequential(norm))["norms"] == 1
    found: torch.Tensor = norm(torch.ones(3, 12, requires_grad=True))
    return found


@pytest.mark.parametrize("through", [_twice_through_a_head, _twice_through_a_layer, _twice_through_a_norm])
def test_a_gradients_gradient_is_refused_and_not_wrong(through: Callable[[], torch.Tensor]) -> None:
    """What they keep for their gradients is cut off from where it came from."""
    total = through().square().sum()
    learns = [node.variable for node in _leaves(total.grad_fn)]
    by = torch.autograd.grad(total, learns, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.stack([value.square().sum() for value in by]).sum().backward()


def _leaves(node: Any) -> list[Any]:
    """The nodes of a graph that are leaves."""
    found = [leaf for after, _ in node.next_functions if after is not None for leaf in _leaves(after)]
    return [node] if hasattr(node, "variable") else found


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
def test_a_rotation_and_its_gradients_are_the_models(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    theirs = modeling_qwen2_moe.apply_rotary_pos_emb
    found = []
    for rotate in (theirs, fused._instead(theirs)):
        torch.manual_seed(5)
        query, key = (torch.randn(1, heads, 6, 8).to(dtypes[0]).requires_grad_() for heads in (4, 2))
        cos, sin = (torch.randn(1, 6, 8).to(dtypes[1]) for _ in range(2))
        turned = rotate(query, key, cos, sin)
        sum((part.float() * torch.arange(8)).sum() for part in turned).backward()
        found.append((turned, [query.grad, key.grad]))
    assert all(map(torch.equal, *(turned for turned, _ in found)))
    near = {"rtol": 1e-5, "atol": 1e-5} if dtypes[0] == torch.float32 else {"rtol": 0.02, "atol": 0.15}
    torch.testing.assert_close(found[1][1], found[0][1], **near)


def test_a_part_of_a_head_is_turned_by_the_models_own_code() -> None:
    asked: list[int] = []

    def theirs(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        asked.append(cos.shape[-1])
        return q, k

    rotate = fused._instead(theirs)
    rotate(torch.ones(1, 2, 3, 8), torch.ones(1, 1, 3, 8), torch.ones(1, 3, 4), torch.ones(1, 3, 4))
    rotate(torch.ones(1, 2, 3, 8), torch.ones(1, 1, 3, 8), torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    assert asked == [4]


def test_angles_that_learn_are_the_models_own() -> None:
    theirs = modeling_qwen2_moe.apply_rotary_pos_emb
    query, key = (torch.randn(1, heads, 3, 8) for heads in (2, 1))
    cos, sin = (torch.randn(1, 3, 8, requires_grad=True) for _ in range(2))
    for rotate in (theirs, fused._instead(theirs)):
        total = sum(part.square().sum() for part in rotate(query, key, cos, sin))
        assert all(float(value.norm()) > 0 for value in torch.autograd.grad(total, [cos, sin]))  # type: ignore[arg-type]
