"""What is compared: run configurations by method, the rows behind prepared ones, and the measure of a difference."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_trainer import fetch
from finetune_trainer.config import RunConfig
from finetune_trainer.data import arrays, preference, prepare
from finetune_trainer.data.formats import Row, content_digest
from finetune_trainer.data.templates import ChatEncoder
from transformers import AutoTokenizer

from tests.trainer.support import make_config, rows, write_rows

BETA = 0.3
LORA = {"rank": 4, "alpha": 8, "dropout": 0, "targetModules": []}
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "Full": ({"type": "Full"}, 1e-3),
    "LoRA": ({"type": "LoRA", "lora": LORA}, 3e-3),
    "rsLoRA": ({"type": "LoRA", "lora": {**LORA, "useRslora": True}}, 3e-3),
    "DoRA": ({"type": "LoRA", "lora": {**LORA, "useDora": True}}, 3e-3),
    "QLoRA NF4": ({"type": "QLoRA", "lora": LORA}, 3e-3),
    "prompt tuning": ({"type": "PromptTuning", "prompt": {"virtualTokens": 5}}, 0.03),
    "prefix tuning": ({"type": "PrefixTuning", "prompt": {"virtualTokens": 5}}, 0.03),
    "P-tuning": ({"type": "PTuning", "prompt": {"virtualTokens": 5}}, 3e-3),
}


def preferences() -> list[dict[str, str]]:
    """Pairs of unequal length: the true answer, and one that says nothing."""
    return [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "I cannot say" + " at all" * (index % 3) + "."}
        for index, row in enumerate(rows())
    ]


def plain(model: Path, folder: Path) -> Path:
    """A copy of `model` whose template puts nothing after the end of a turn: TRL supervises all that a template says of an answer, the
    trainer no further than the token that ends it."""
    shutil.copytree(model, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    return folder


def prepared(work: Path, model: Path) -> Path:
    """A work volume: the fetched model, and instruction rows and preferences prepared from it."""
    fetch.main(RunConfig.model_validate(make_config("fetch", work, model)))
    for objective, values in (("SFT", rows()), ("DPO", preferences())):
        source = write_rows(work / f"{objective}.jsonl", values)
        config = make_config("prepare", work, model, source, data__path=str(work / "data" / objective), method__objective=objective)
        prepare.main(RunConfig.model_validate(config))
    return work


def configured(work: Path, model: Path, name: str, objective: str = "SFT", **overrides: Any) -> dict[str, Any]:
    """A run configuration in float32 without warm-up, of about eight rows a step, over the prepared data of `objective`."""
    method, rate = METHODS[name]
    config = make_config("train", work, model, data__path=str(work / "data" / objective), **overrides)
    config["method"] = {**method, "objective": objective, "dpo": {"beta": BETA}}
    config["training"] = {
        "learningRate": rate, "warmupPercent": 0, "tokensPerStep": 400 if objective == "SFT" else 800, "earlyStoppingPatience": None,
        **{key: value for key, value in config["training"].items() if key not in ("learningRate", "tokensPerStep")},
    }  # fmt: skip
    return config


def conversations(work: Path) -> list[dict[str, Any]]:
    """The prepared training rows of SFT in their order, as conversations: prompt and completion."""
    tokenizer = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    encoder = ChatEncoder(tokenizer)
    known = {}
    for row in rows():
        turns = ({"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]})
        ids = encoder.encode(Row("s", 1, turns, content_digest(turns))).ids
        known[ids] = {"prompt": [turns[0]], "completion": [turns[1]]}
    prepared = arrays.load(work / "data" / "SFT", "train")
    return [known[tuple(prepared.row(index)[0].tolist())] for index in range(len(prepared))]


def pairs(work: Path) -> list[dict[str, Any]]:
    """The prepared training rows of DPO in their order, as conversations: prompt, chosen, rejected."""
    tokenizer: Any = AutoTokenizer.from_pretrained(work / "models" / "tiny")
    asked = {(row["chosen"], row["rejected"]): row["prompt"] for row in preferences()}
    prepared = preference.load(work / "data" / "DPO", "train")
    found = []
    for index in range(len(prepared)):
        chosen, rejected = (tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in prepared.pair(index))
        found.append({
            "prompt": [{"role": "user", "content": asked[chosen, rejected]}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        })  # fmt: skip
    return found


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference; infinite where the lengths differ."""
    if len(found) != len(expected):
        return float("inf")
    return max(abs(one - other) / max(abs(other), 1e-12) for one, other in zip(found, expected, strict=True))


def farthest(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest absolute difference of tensors of the same names; infinite where the names differ."""
    if found.keys() != expected.keys():
        return float("inf")
    return max(float((found[name].detach() - expected[name].detach()).abs().max()) for name in found)
