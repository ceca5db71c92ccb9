"""Every method through its whole life: train, stop, resume, export, load in the server, generate."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import fetch, quantise
from finetune_trainer.config import ModelConfig, RunConfig
from finetune_trainer.evaluate import loss
from finetune_trainer.exits import UserError
from finetune_trainer.serve.loading import load
from finetune_trainer.train import checkpoint
from finetune_trainer.train.model import load_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trainer import lives
from tests.trainer.support import make_config

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1, "targetModules": []}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LoRA": ({"type": "LoRA", "lora": LORA}, {}),
    "rsLoRA": ({"type": "LoRA", "lora": {**LORA, "useRslora": True}}, {}),
    "DoRA": ({"type": "LoRA", "lora": {**LORA, "useDora": True}}, {}),
    "LoRA on two layers": ({"type": "LoRA", "lora": {**LORA, "targetModules": ["q_proj", "mlp.up_proj"]}}, {}),
    "Full": ({"type": "Full"}, {"learningRate": 1e-3}),
    "QLoRA NF4": ({"type": "QLoRA", "lora": LORA}, {}),
    "QLoRA Int8": ({"type": "QLoRA", "lora": LORA, "quantization": "Int8"}, {}),
    "prompt tuning": ({"type": "PromptTuning", "prompt": {"virtualTokens": 5}}, {"learningRate": 0.03}),
    "prompt tuning from a text": ({"type": "PromptTuning", "prompt": {"virtualTokens": 5, "initText": "Name it."}}, {"learningRate": 0.03}),
    "prefix tuning": ({"type": "PrefixTuning", "prompt": {"virtualTokens": 5}}, {"learningRate": 0.03}),
    "P-tuning": ({"type": "PTuning", "prompt": {"virtualTokens": 5}}, {"learningRate": 0.003}),
}
LOOSE = {"QLoRA Int8": 0.02}  # its training also rounds what it multiplies to 8 bits


def configured(work: Path, tiny_model: Path, name: str, **overrides: Any) -> dict[str, Any]:
    method, training = METHODS[name]
    config = make_config("train", work, tiny_model, method={"objective": "SFT", **method}, **overrides)
    return {**config, "training": {**config["training"], **training}}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_resumes_and_serves_what_it_has_learnt(name: str, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = configured(work, tiny_model, name)
    undisturbed = lives.train(config, tmp_path / "undisturbed")
    found = lives.train(config, tmp_path / "resumed", stop_after=3)
    steps = len(undisturbed.losses)
    assert found.losses == undisturbed.losses, "a resumed run is the same run"
    assert undisturbed.losses[steps] < undisturbed.losses[1] - 0.02

    whole = name == "Full"
    loaded = load(found.artifact if whole else work / "models" / "tiny", None if whole else found.artifact, dtype=torch.float32)
    untouched = load(work / "models" / "tiny", None, dtype=torch.float32)
    for prompt in lives.PROMPTS:
        trained = lives.trained_logits(found.run, prompt)
        torch.testing.assert_close(lives.served_logits(loaded, prompt), trained, rtol=0, atol=LOOSE.get(name, 2e-5))
        assert (lives.served_logits(untouched, prompt) - trained).abs().max() > 0.01, "training changed something"
    alone = [lives.greedy(lambda ids: lives.served_logits(loaded, ids), prompt, 6) for prompt in lives.PROMPTS]
    assert lives.generated(loaded) == alone, "together they are answered as each alone"
    bits = [loss._row_bits(read, ids, 1) for read, ids in zip(loss.read(loaded, lives.PROMPTS), lives.PROMPTS, strict=True)]
    assert bits == pytest.approx([bits_of(lives.served_logits(loaded, prompt), prompt) for prompt in lives.PROMPTS], rel=1e-4)


def bits_of(logits: torch.Tensor, ids: list[int]) -> float:
    """What all of `ids` but the first take, read one by one."""
    chosen = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    return -chosen.sum().item() / math.log(2)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_has_all_that_trains_and_nothing_else(name: str, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = configured(work, tiny_model, name, training__checkpoint={"everySeconds": None, "everySteps": 2, "keep": 1})
    run = lives.train(config, tmp_path, stop_after=2).run
    found = checkpoint.newest([tmp_path / "a0-one"], run.fingerprint)
    assert found is not None
    trains = {parameter for parameter in run.model.parameters() if parameter.requires_grad}
    assert {value.dtype for value in found[1].weights.values()} == {torch.float32}
    assert sum(value.numel() for value in found[1].weights.values()) == sum(parameter.numel() for parameter in trains)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_in_bfloat16_with_what_trains_in_float32(name: str, work: Path, tiny_model: Path, tmp_path: Path) -> None:
    found = lives.train(configured(work, tiny_model, name, training__precision="BF16"), tmp_path)
    assert found.losses[len(found.losses)] < found.losses[1] - 0.02
    saved = {value.dtype for value in load_file(next(found.artifact.glob("*.safetensors"))).values()}
    assert saved == {torch.float32}, "adapters are never rounded, a model keeps the dtype of its base"


def test_all_weights_are_kept_in_the_dtype_of_the_base(work: Path, tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "half"
    shutil.copytree(tiny_model, source)
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(source)
    path = tmp_path / "models" / "half"
    fetch.main(RunConfig.model_validate(make_config("fetch", work, source, model__path=str(path))))
    found = lives.train(configured(work, source, "Full", model__path=str(path)), tmp_path)
    assert {value.dtype for value in load_file(found.artifact / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((found.artifact / "config.json").read_text())["dtype"] == "bfloat16"
    assert sorted(p.name for p in found.artifact.iterdir()) == sorted(
        {p.name for p in path.iterdir()} - {"MANIFEST.json"} | {"revision.json", "README.md"}
    )  # fmt: skip


def test_what_quantisation_leaves_is_what_the_layer_holds(work: Path) -> None:
    config = ModelConfig(source="image:///x", path=work / "models" / "tiny")
    plain = load_base(config, False, lives.ALONE.device)
    packed = load_base(config, False, lives.ALONE.device, "NF4")
    quantise.round_trip(plain, "NF4")
    ids = torch.tensor([lives.PROMPTS[0]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, packed(ids).logits, rtol=0, atol=1e-6)
    assert packed.lm_head.weight.dtype == torch.float32, "the head stays as it is"


def test_a_folder_that_is_no_adapter_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        load(work / "models" / "tiny", tmp_path)
