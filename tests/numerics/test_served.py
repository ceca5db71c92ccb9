"""What was trained against PEFT's reading of the artifact, and the server's answers against transformers' greedy generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.serve.loading import load
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.numerics.conftest import Measured
from tests.numerics.subjects import METHODS, configured
from tests.trainer import lives

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
ADAPTERS = [name for name in METHODS if name not in ("Full", "QLoRA NF4")]
NEW_TOKENS = 24


def base(work: Path) -> torch.nn.Module:
    """The model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(work / "models" / "tiny", dtype=torch.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_reads_an_artifact_as_it_was_trained(name: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured) -> None:
    found = lives.train(configured(work, plain_model, name), tmp_path)
    read = PeftModel.from_pretrained(base(work), str(found.artifact)).eval()
    merges = not read.active_peft_config.is_prompt_learning
    for prompt in lives.PROMPTS:
        with torch.inference_mode():
            logits = read(input_ids=torch.tensor([prompt])).logits[0, -len(prompt) :]
        measured(f"{name}: logits, PEFT", float((lives.trained_logits(found.run, prompt) - logits).abs().max()), 1e-5)
    if not merges:
        return
    merged = read.merge_and_unload().eval()
    served = load(work / "models" / "tiny", found.artifact, dtype=torch.float32)
    for prompt in lives.PROMPTS:
        with torch.inference_mode():
            logits = merged(input_ids=torch.tensor([prompt])).logits[0]
        measured(f"{name}: logits as served, merged by PEFT", float((lives.served_logits(served, prompt) - logits).abs().max()), 1e-5)


@pytest.mark.parametrize("name", ["the base model", "LoRA", "Full"])
def test_answers_are_those_of_transformers_greedy(name: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured) -> None:
    folder, adapter = work / "models" / "tiny", None
    if name != "the base model":
        artifact = lives.train(configured(work, plain_model, name), tmp_path).artifact
        folder, adapter = (artifact, None) if name == "Full" else (folder, artifact)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    together = lives.generated(load(folder, adapter, dtype=torch.float32), NEW_TOKENS)
    for prompt, ours in zip(lives.PROMPTS, together, strict=True):
        ids = torch.tensor([prompt])
        every = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
        theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **every)[0, len(prompt) :].tolist()
        wrong = sum(one != other for one, other in zip(ours, theirs, strict=True))
        measured(f"{name}: tokens answered otherwise than generate, greedy", wrong, 0)
