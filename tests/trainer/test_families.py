"""Tiny random models of each family through a life with LoRA: train, stop, resume, export, reload, generate.

The table says what LoRA goes to where nothing is named, and what of a mixture of experts stays as it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import estimate, fetch
from finetune_trainer.config import MethodConfig, ModelConfig, RunConfig
from finetune_trainer.data import prepare
from finetune_trainer.exits import UserError
from finetune_trainer.serve.loading import load
from finetune_trainer.train import adapters, outline
from finetune_trainer.train.model import outline as empty
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.trainer import lives, test_methods
from tests.trainer.support import make_config, rows, write_rows
from tests.trainer.test_estimate import held, scales

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
DENSE = {"gate_proj", "up_proj", "down_proj"}
FAMILIES: dict[str, tuple[PreTrainedConfig, set[str]]] = {
    "Llama": (LlamaConfig(**SIZES), ATTENTION | DENSE),
    "Llama 4 MoE": (
        Llama4TextConfig(
            **SIZES, intermediate_size_mlp=128, head_dim=16, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1,
            attention_chunk_size=1024,
        ),
        ATTENTION | DENSE,
    ),
    "DeepSeek V3 MoE": (
        DeepseekV3Config(
            **{**SIZES, "num_key_value_heads": 4}, moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2, n_group=2,
            topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        ),
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    ),
    "Mixtral": (MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2), ATTENTION),
    "Qwen 3": (Qwen3Config(**SIZES, head_dim=32), ATTENTION | DENSE),
    "Qwen 3 MoE": (
        Qwen3MoeConfig(
            **SIZES, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2, norm_topk_prob=True
        ),
        ATTENTION,
    ),
}  # fmt: skip
MIXTURES = [name for name in FAMILIES if "MoE" in name or name == "Mixtral"]


@pytest.fixture(scope="module")
def models(work: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fetched model folder of each family, with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("families")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_PROGRESS_PORT", "0")
        for name, (config, _) in FAMILIES.items():
            source, path = folder / "sources" / name, folder / "models" / name
            torch.manual_seed(17)
            AutoModelForCausalLM.from_config(config).save_pretrained(source)
            for file in tiny_model.glob("token*"):
                shutil.copy(file, source)
            shutil.copy(tiny_model / "chat_template.jinja", source)
            fetch.main(RunConfig.model_validate(make_config("fetch", work, source, model__path=str(path))))
            found[name] = path
    return found


def configured(work: Path, model: Path, **lora: Any) -> dict[str, Any]:
    config = make_config("train", work, model, model__path=str(model))
    return {**config, "method": {"type": "LoRA", "objective": "SFT", "lora": {"rank": 4, "alpha": 8, **lora}}}


def assert_served_as_trained(found: lives.Trained, model: Path) -> None:
    whole = (found.artifact / "config.json").exists()
    loaded = load(found.artifact if whole else model, None if whole else found.artifact, dtype=torch.float32)
    for prompt in lives.PROMPTS:
        trained = lives.trained_logits(found.run, prompt)
        torch.testing.assert_close(lives.served_logits(loaded, prompt), trained, rtol=0, atol=2e-5)
    alone = [lives.greedy(lambda ids: lives.served_logits(loaded, ids), prompt, 6) for prompt in lives.PROMPTS]
    assert lives.generated(loaded) == alone


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_reloads_and_generates(name: str, work: Path, models: dict[str, Path], tmp_path: Path) -> None:
    config = configured(work, models[name])
    undisturbed = lives.train(config, tmp_path / "undisturbed")
    found = lives.train(config, tmp_path / "resumed", stop_after=3)
    assert found.losses == undisturbed.losses, "a resumed run is the same run"
    assert found.losses[len(found.losses)] < found.losses[1] - 0.02
    assert_served_as_trained(found, models[name])


OTHERS = [
    (name, method)
    for name in FAMILIES
    for method in ("Full", "QLoRA NF4", "prompt tuning", "prefix tuning")
    if (name, method) != ("DeepSeek V3 MoE", "prefix tuning")
]


@pytest.mark.parametrize(("name", "method"), OTHERS)
def test_a_family_under_the_other_methods(name: str, method: str, work: Path, models: dict[str, Path], tmp_path: Path) -> None:
    config = test_methods.configured(work, models[name], method, model__path=str(models[name]))
    found = lives.train(config, tmp_path)
    assert found.losses[len(found.losses)] < found.losses[1] - 0.01
    assert_served_as_trained(found, models[name])


def test_a_prefix_is_refused_where_keys_and_values_differ_in_size(models: dict[str, Path]) -> None:
    base = empty(ModelConfig(source="image:///x", path=models["DeepSeek V3 MoE"]))
    with pytest.raises(UserError, match="keys and values of different sizes"):
        adapters.wrap(base, MethodConfig(type="PrefixTuning"), models["DeepSeek V3 MoE"], 17)


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_goes_to_the_layers_of_the_table_and_never_to_a_router(name: str, models: dict[str, Path]) -> None:
    base = empty(ModelConfig(source="image:///x", path=models[name]))
    assert set(adapters.linear_layers(base)) == FAMILIES[name][1]
    wrapped = adapters.wrap(base, MethodConfig(), models[name], 17)
    trains = [key for key, value in wrapped.named_parameters() if value.requires_grad]
    assert all(".lora_" in key for key in trains)
    assert not [key for key in trains if ".router" in key or "mlp.gate." in key or "lm_head" in key]


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_train_where_they_are_named(name: str, work: Path, models: dict[str, Path], tmp_path: Path) -> None:
    found = lives.train(configured(work, models[name], targetModules=["o_proj", "experts.down_proj"]), tmp_path)
    assert [key for key in checkpoint_names(found) if "experts" in key]
    assert_served_as_trained(found, models[name])


@pytest.mark.parametrize("name", MIXTURES)
def test_a_token_pays_for_the_experts_that_it_takes(name: str, models: dict[str, Path]) -> None:
    found = outline.count(ModelConfig(source="image:///x", path=models[name]), MethodConfig())
    assert found.active < found.frozen


def test_target_modules_that_are_not_there_are_told_with_those_that_are(models: dict[str, Path]) -> None:
    base = empty(ModelConfig(source="image:///x", path=models["Mixtral"]))
    with pytest.raises(UserError) as told:
        adapters.targets(base, ["q_proj", "query", "w9"])
    assert "the model has no query, w9; it has k_proj, o_proj, q_proj, v_proj, experts.down_proj, experts.gate_up_proj" in str(told.value)


@pytest.mark.parametrize("name", ["DeepSeek V3 MoE", "Qwen 3 MoE"])
def test_names_that_peft_reads_as_the_experts_are_refused(name: str, models: dict[str, Path]) -> None:
    base = empty(ModelConfig(source="image:///x", path=models[name]))
    with pytest.raises(UserError, match=r"PEFT reads mlp\.up_proj as the experts' weights"):
        adapters.targets(base, ["o_proj", "mlp.up_proj"])


def test_a_method_that_a_model_has_no_room_for_is_refused(models: dict[str, Path]) -> None:
    base = empty(ModelConfig(source="image:///x", path=models["Mixtral"]))
    wanted = MethodConfig.model_validate({"lora": {"useDora": True, "targetModules": ["experts.down_proj"]}})
    with pytest.raises(UserError, match="method LoRA does not fit this model"):
        adapters.wrap(base, wanted, models["Mixtral"], 17)


def test_a_layer_that_is_not_linear_is_refused_in_one_line_with_the_field_to_change(models: dict[str, Path]) -> None:
    base = empty(ModelConfig(source="image:///x", path=models["Mixtral"]))
    wanted = MethodConfig.model_validate({"lora": {"targetModules": ["self_attn"]}})
    with pytest.raises(UserError, match=r"^method LoRA does not fit this model: Target module MixtralAttention[^\n]*$") as told:
        adapters.wrap(base, wanted, models["Mixtral"], 17)
    assert told.value.fix == "Name other layers in method.lora.targetModules, or use another method."


def checkpoint_names(found: lives.Trained) -> list[str]:
    """The parameters that trained."""
    return [name for name, value in found.run.model.named_parameters() if value.requires_grad]


@pytest.mark.parametrize("kind", ["LoRA", "QLoRA", "Full"])
@pytest.mark.parametrize("name", MIXTURES)
def test_weights_of_a_mixture_are_what_is_allocated(name: str, kind: str, work: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """Experts among them, which QLoRA leaves as they are."""
    config = make_config("train", work, models[name], model__path=str(models[name]), method__type=kind)
    run = lives.build(config, tmp_path / "a0-one")
    method = MethodConfig.model_validate({"type": kind, "lora": config["method"]["lora"]})
    counted = outline.count(ModelConfig(source="image:///x", path=models[name]), method)
    expected = held([*run.model.parameters(), *scales(run.model)])
    assert estimate.weights(counted, method, bf16=False) == pytest.approx(expected, rel=0.01)
    experts = sum(value.numel() for path, value in run.model.named_parameters() if value.dim() == 3)
    assert counted.experts == experts > 0


def test_experts_that_stay_as_they_are_are_told_with_the_revision_that_quantises(
    work: Path, models: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:  # fmt: skip
    """And not with another one that takes its data over, whose page has its own estimate."""
    source, path = write_rows(tmp_path / "rows.jsonl", rows()), models["Mixtral"]
    told = {}
    for kind in ("QLoRA", "LoRA"):
        folder = tmp_path / "data" / kind
        config = make_config("prepare", work, path, source, model__path=str(path), data__path=str(folder), method__type=kind)
        found: Any = prepare.main(RunConfig.model_validate(config))
        told[kind] = ([text for text in found["warnings"] if "experts" in text], "the experts, " in (folder / "report.html").read_text())
    assert [len(warnings) for warnings, _ in told.values()] == [1, 0]
    assert [is_shown for _, is_shown in told.values()] == [True, False]
    estimates = [json.loads((tmp_path / "data" / kind / "report.json").read_text())["estimate"]["memory"] for kind in told]
    assert estimates[0]["weights"] < estimates[1]["weights"]
    assert (tmp_path / "data" / "QLoRA" / "train.tokens.npy").samefile(tmp_path / "data" / "LoRA" / "train.tokens.npy")
