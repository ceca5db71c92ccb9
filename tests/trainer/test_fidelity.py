"""Served against trained: nothing between the same network twice, else what plain torch says, and what keeps it from being measured."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import exits, hardware, layout
from finetune_trainer.config import FidelityConfig, RunConfig
from finetune_trainer.evaluate import cli, fidelity, probe
from finetune_trainer.evaluate.fidelity import Answer
from finetune_trainer.evaluate.rows import TestRow, test_rows
from finetune_trainer.serve import loading
from finetune_trainer.train import remainder
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer import lives
from tests.trainer.support import make_config, running
from tests.trainer.test_methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks transformers for it
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def document(work: Path, model: Path, artifact: Path, path: Path, *, full: bool = False, **overrides: Any) -> dict[str, Any]:
    """The configuration of the tuned model's evaluation."""
    own = {
        "evaluation__name": "tuned", "evaluation__fidelity": {"path": str(path)},
        "evaluation__forgetting": {"base": str(work / "models" / "tiny"), "path": str(path.with_name("forgetting"))},
        **({"model__path": str(artifact)} if full else {"evaluation__adapterPath": str(artifact)}),
    }  # fmt: skip
    return make_config("evaluate", work, model, **{**own, **overrides})


def measured(
    work: Path, model: Path, artifact: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, *, full: bool = False, merged: bool = True
) -> dict[str, Any]:
    """The figures where the server computes in `dtype`."""
    monkeypatch.setattr(loading, "serving_dtype", lambda device: dtype)
    config = RunConfig.model_validate(document(work, model, artifact, artifact / "unused", full=full))
    assert config.data is not None
    adapter = None if full else artifact
    return probe.measure_fidelity(config.model, adapter, config.data.path, FidelityConfig(path=artifact, merged=merged))


if __name__ == "__main__":
    pass


@pytest.mark.parametrize("name", METHODS)
def test_explore(name: str, work: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, extra = METHODS[name]
    settings = make_config("train", work, tiny_model, method={**method, "objective": "SFT"}, training__learningRate=0.02)
    settings["training"].update(extra)
    art = lives.train(settings, tmp_path).artifact
    full = method["type"] == "Full"
    for dtype in (FLOAT32, BFLOAT16):
        print(name, dtype, measured(work, tiny_model, art, dtype, monkeypatch, full=full))
    if "LoRA" in name:
        for dtype in (FLOAT32, BFLOAT16):
            print(name, dtype, measured(work, tiny_model, art, dtype, monkeypatch, full=full, merged=False))
