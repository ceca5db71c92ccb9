"""What training leaves for serving: an adapter in PEFT's format, or a whole model folder, with its revision.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from finetune_trainer import card, fetch, layout
from finetune_trainer.config import RunConfig
from finetune_trainer.exits import JsonObject
from finetune_trainer.train import optimizer, remainder
from finetune_trainer.train.model import stored_dtype, trained
from finetune_trainer.train.optimizer import Tensors

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
OWN = (layout.MODEL_MANIFEST, layout.COMMIT)


def save(attempt: Path, model: Any, weights: Tensors, facts: JsonObject, base: Path) -> JsonObject:
    """Commit the artifact of `model` with `weights`: an adapter, or where all weights trained a whole model folder with what `base`
    has besides weights. Returns its revision.json. The model holds `weights` afterwards."""
    folder = layout.artifact(attempt)
    optimizer.assign(trained(model), weights)
    with layout.transaction(folder, layout.ARTIFACT_MANIFEST) as work:
        if isinstance(model, PeftModel):
            _save_adapter(work.folder, model)
        else:
            _save_model(work.folder, model, base)
        (work.folder / card.CARD).write_text(card.render(facts))
        work.aside.add(card.CARD)  # it tells of the run, too: the same weights have one digest
        work.facts.update(facts)
    if not isinstance(model, PeftModel):
        _keep_remainder(weights, folder, stored_dtype(base))
    return layout.read_manifest(folder, layout.ARTIFACT_MANIFEST)


def _keep_remainder(weights: Tensors, folder: Path, dtype: torch.dtype) -> None:
    """Without it one figure is not measured: no reason to lose a training that has ended."""
    try:
        remainder.save(weights, folder, dtype)
    except (OSError, SafetensorError) as error:
        print(f"what rounding took of the weights is not kept, and how far they are from it is not measured: {error}", flush=True)


def _save_adapter(folder: Path, model: PeftModel) -> None:
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "adapter_model.safetensors")
    settings = model.peft_config["default"]
    targets = getattr(settings, "target_modules", None)
    if isinstance(targets, set):
        settings.target_modules = sorted(targets)  # type: ignore[attr-defined]  # else the same training has another digest each time
    was, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(folder))
    settings.inference_mode = was


def _save_model(folder: Path, model: Any, base: Path) -> None:
    """Weights in the dtype that `base` keeps its own in: what a server expects, and float32 where the base is."""
    for path in base.iterdir():
        if path.is_file() and path.suffix not in WEIGHT_SUFFIXES and not path.name.endswith(".index.json") and path.name not in OWN:
            shutil.copyfile(path, folder / path.name)
    for parameter in model.parameters():
        parameter.grad = None
    model.to(stored_dtype(base)).save_pretrained(folder)


def existing(attempts: list[Path], fingerprint: str) -> tuple[Path, JsonObject] | None:
    """A finished artifact of the same run among `attempts`, verified."""
    for attempt in attempts:
        folder = layout.artifact(attempt)
        if not layout.is_complete(folder):
            continue
        try:
            manifest = layout.verify(folder, layout.ARTIFACT_MANIFEST)
        except layout.Corrupt as error:
            print(f"artifact passed over: {error}", flush=True)
            continue
        if manifest.get("fingerprint") == fingerprint:
            return attempt, manifest
    return None


def provenance(config: RunConfig, fingerprint: str, model: JsonObject, data: JsonObject) -> JsonObject:
    """Where an artifact comes from."""
    return {
        "finetune": config.finetune.model_dump(by_alias=True),
        "fingerprint": fingerprint,
        "model": {"source": config.model.name, "path": str(config.model.path), "digest": model.get("digest")},
        "license": fetch.license_of(config.model.path),
        "data": {"path": str(config.data.path) if config.data else None, "digest": data.get("digest")},
        "rows": _kept_rows(data),
        "training": config.training.model_dump(by_alias=True) if config.training else None,
        "method": config.method.model_dump(by_alias=True) if config.method else None,
    }


def _kept_rows(data: JsonObject) -> JsonObject:
    """How many rows each split of the prepared data has."""
    rows = data.get("rows")
    return {split: rows[split] for split in ("train", "validation", "test") if split in rows} if isinstance(rows, dict) else {}
