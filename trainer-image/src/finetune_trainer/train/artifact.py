"""What training leaves for serving: the adapter in PEFT's format with its revision.json."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from finetune_trainer import layout
from finetune_trainer.config import RunConfig
from finetune_trainer.exits import JsonObject
from finetune_trainer.train.optimizer import Tensors


def save(attempt: Path, model: PeftModel, weights: Tensors, facts: JsonObject) -> JsonObject:
    """Commit the artifact with `weights`; returns its revision.json."""
    folder = layout.artifact(attempt)
    state = get_peft_model_state_dict(model, state_dict=dict(weights))
    with layout.transaction(folder, layout.ARTIFACT_MANIFEST) as work:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, work.folder / "adapter_model.safetensors")
        settings = model.peft_config["default"]
        was, settings.inference_mode = settings.inference_mode, True
        settings.save_pretrained(str(work.folder))
        settings.inference_mode = was
        work.facts.update(facts)
    return layout.read_manifest(folder, layout.ARTIFACT_MANIFEST)


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
        "model": {"source": config.model.source, "path": str(config.model.path), "digest": model.get("digest")},
        "data": {"path": str(config.data.path) if config.data else None, "digest": data.get("digest")},
        "training": config.training.model_dump(by_alias=True) if config.training else None,
        "method": config.method.model_dump(by_alias=True) if config.method else None,
    }
