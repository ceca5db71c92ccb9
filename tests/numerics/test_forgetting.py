"""Perplexity and divergence of general text against plain torch: each text alone, the whole vocabulary, transformers' and PEFT's models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import quantise
from finetune_trainer.evaluate import forgetting, general, probe
from finetune_trainer.serve.loading import load
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.numerics.conftest import Measured
from tests.numerics.subjects import METHODS, configured
from tests.trainer import lives

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it


def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tuned(name: str, work: Path, artifact: Path) -> Any:
    """The tuned model as PEFT reads it, or as it was saved."""
    if name == "Full":
        return model(artifact)
    base = model(work / "models" / "tiny")
    if name == "QLoRA NF4":
        quantise.round_trip(base, "NF4")
    return PeftModel.from_pretrained(base, str(artifact)).eval()


@torch.inference_mode()
def plain(base: Any, other: Any, texts: list[general.Text]) -> dict[str, float]:
    """The same figures by definition."""
    nats, divergence, same = {"base": [], "tuned": []}, [], []
    for text in texts:
        chances = {}
        for which, network in (("base", base), ("tuned", other)):
            logits = network(input_ids=torch.tensor([text.ids])).logits[0, -len(text.ids) :].double()
            chances[which] = logits[text.first - 1 : -1].log_softmax(-1)
            nats[which].append(functional.nll_loss(chances[which], torch.tensor(text.ids[text.first :]), reduction="none"))
        divergence.append(functional.kl_div(chances["tuned"], chances["base"], reduction="none", log_target=True).sum(-1))
        same.append(chances["base"].argmax(-1) == chances["tuned"].argmax(-1))
    perplexity = {which: math.exp(float(torch.cat(values).mean())) for which, values in nats.items()}
    return {
        "base": perplexity["base"], "tuned": perplexity["tuned"], "percent": 100 * (perplexity["tuned"] / perplexity["base"] - 1),
        "kl": float(torch.cat(divergence).mean()), "klP95": float(torch.cat(divergence).quantile(0.95)),
        "agreement": float(torch.cat(same).double().mean()),
    }  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_perplexity_and_divergence_are_those_of_plain_torch(
    name: str, work: Path, plain_model: Path, tmp_path: Path, measured: Measured
) -> None:
    base, artifact = work / "models" / "tiny", lives.train(configured(work, plain_model, name), tmp_path).artifact
    found: Any = probe.measure(base, artifact if name == "Full" else base, None if name == "Full" else artifact, 95)
    texts = general.encoded(load(base, None).tokenizer, 1024)
    expected = plain(model(base), tuned(name, work, artifact), texts)
    assert found["tokens"] == sum(text.tokens for text in texts) > 2000
    assert expected["kl"] > 1e-3, "there is something to measure"
    for which in ("base", "tuned"):
        off = abs(found[which]["perplexity"] / expected[which] - 1)
        measured(f"{name}: perplexity of general text, {which}", off, 1e-5)
    measured(f"{name}: rise of perplexity in percent", abs(found["percent"] - expected["percent"]), 1e-3)
    for figure in ("kl", "klP95"):
        measured(f"{name}: {figure} of the base model from the tuned one, in nats", abs(found[figure] - expected[figure]), 1e-5)
    measured(f"{name}: share of tokens with the same first choice", abs(found["agreement"] - expected["agreement"]), 1e-3)


def test_a_divergence_over_the_likeliest_tokens_is_never_more_than_the_whole(
    work: Path, plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, artifact = work / "models" / "tiny", lives.train(configured(work, plain_model, "LoRA"), tmp_path).artifact
    whole: Any = probe.measure(base, base, artifact, 95)
    found = []
    for kept in (1, 16, 128):
        monkeypatch.setattr(forgetting, "LIKELIEST", kept)
        part: Any = probe.measure(base, base, artifact, 95)
        assert {**part, "kl": 0, "klP95": 0, "kinds": 0} == {**whole, "kl": 0, "klP95": 0, "kinds": 0}
        found.append(part["kl"])
    assert 0 < found[0] < found[1] < found[2] < whole["kl"]
