"""From a run configuration to a `Run`: inputs, fingerprint, model, plan and resume point."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_trainer import estimate, hardware, layout, schedule
from finetune_trainer.config import PROMPT_METHODS, ComputeConfig, DpoConfig, MethodConfig, RunConfig, TrainingConfig, need
from finetune_trainer.data import arrays, origins, preference
from finetune_trainer.data.arrays import TokenArrays
from finetune_trainer.exits import Infrastructure, JsonObject, UserError
from finetune_trainer.progress import Progress
from finetune_trainer.train import adapters, artifact, checkpoint, dpo, fused, head, lora, model, objective, outline, packing, plan
from finetune_trainer.train.checkpoint import Checkpoint
from finetune_trainer.train.distributed import Ranks
from finetune_trainer.train.engine import Engine, Replicated
from finetune_trainer.train.loop import Run
from finetune_trainer.train.optimizer import Tensors

POD_UID = "POD_UID"
PROOF_TOKENS = 48


@dataclass(frozen=True)
class Inputs:
    """The manifests of model and data, and the fingerprint of the run they make with the configuration."""

    model: JsonObject
    data: JsonObject
    fingerprint: str


def attempt_folder(config: RunConfig, ranks: Ranks) -> Path:
    """`<run.path>-<uid8>`, by rank 0's pod uid, made by rank 0."""
    path = need(config.run, "run").path
    uid = ranks.tell(os.environ.get(POD_UID) or "local")
    folder = path.with_name(f"{path.name}-{uid[:8]}")
    if ranks.first:
        layout.make_folder(layout.checkpoints(folder))
    return folder


def resumable(config: RunConfig, folder: Path) -> list[Path]:
    """What the attempt in `folder` may resume from, itself first: earlier gangs of its Job (a queue suspended it), then what is named, as
    it is or as what the folders of an attempt begin with."""
    run = need(config.run, "run")
    named = [path for start in run.resume_from for path in (start, *_gangs(start))]
    return [folder, *(path for path in _gangs(run.path) if path != folder), *named]


def _gangs(path: Path) -> list[Path]:
    """The folders of an attempt's gangs."""
    return sorted(path.parent.glob(f"{path.name}-*"))


def open_inputs(config: RunConfig) -> Inputs:
    """Read the committed manifests. Raises Infrastructure where a folder does not count."""
    try:
        base = layout.read_manifest(config.model.path, layout.MODEL_MANIFEST)
        data = layout.read_manifest(need(config.data, "data").path, layout.DATA_MANIFEST)
    except layout.Corrupt as error:
        raise Infrastructure("InputMissing", str(error), "Fetch and prepare have to finish first.") from error
    return Inputs(base, data, fingerprint(config, base, data))


def fingerprint(config: RunConfig, base: JsonObject, data: JsonObject) -> str:
    """Hash of all that decides the trajectory; not of how many ranks share the work or how much memory a pass takes."""
    training = need(config.training, "training").model_dump(
        by_alias=True, exclude={"checkpoint", "micro_batch_tokens", "micro_batch_divisor", "precision", "gradient_checkpointing"}
    )
    method = need(config.method, "method").model_dump(by_alias=True)
    facts = [base.get("digest"), data.get("digest"), training, method]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def finished(attempts: Sequence[Path], mark: str) -> JsonObject | None:
    """The result of an attempt that already left its artifact for this very run."""
    found = artifact.existing(list(attempts), mark)
    if found is None:
        return None
    attempt, manifest = found
    result = manifest["result"]
    assert isinstance(result, dict)
    return {**result, "artifact": str(layout.artifact(attempt)), "digest": manifest["digest"]}


def build(config: RunConfig, ranks: Ranks, inputs: Inputs, folder: Path, progress: Progress, beat: Callable[[], None]) -> Run:
    """Load everything a loop needs."""
    training, compute = need(config.training, "training"), need(config.compute, "compute")
    method, data = need(config.method, "method"), need(config.data, "data")
    bf16 = ranks.all(hardware.uses_bf16(training, compute))  # CPUs of a gang's machines may differ
    pass_tokens = hardware.micro_batch_tokens(training, compute)
    last, resume = resume_point(config, ranks, inputs, folder, beat)
    preferences = method.objective == "DPO"
    rows: dict[str, Any] = {split: (preference if preferences else arrays).load(data.path, split) for split in ("train", "validation")}
    if not len(rows["train"]):
        raise UserError("NoTrainingRows", f"{data.path} has no training rows")
    wide = method.type != "Full" or (compute.sharded and model.stored_dtype(config.model.path) == torch.bfloat16)
    device = torch.device("cpu") if compute.resolved_sharding == "ZeRO3" else ranks.device
    size = layout.size([config.model.path])
    base = ranks.all_do(lambda: model.load_base(config.model, bf16 and wide, device, method.quantized_as), beat, size)
    fused.fuse(base)
    packs, output = shortcuts(base, method, rows, bf16, ranks)
    reference = resume.reference if resume else {}
    if preferences and not reference:
        progress.update(note="the base model reads all answers")
        reader = objective.reader(base, base, padding(base), output, packs)
        reference = {split: dpo.refer(base, pairs, reader, ranks, pass_tokens, bf16, beat) for split, pairs in rows.items()}
    wrapped = adapters.wrap(base, method, config.model.path, training.seed, training.gradient_checkpointing)
    lora.fuse(wrapped)
    reader = objective.reader(wrapped, base, padding(base), output, packs)
    aim: objective.Objective = objective.Sft(reader)
    if preferences:
        aim = dpo.Dpo(reader, (method.dpo or DpoConfig()).beta)
        rows = {split: dpo.ReferredPairs(pairs, reference[split]) for split, pairs in rows.items()}
    train = rows["train"]
    step_tokens = schedule.tokens_per_step(int(train.lengths.sum()), len(train), training.tokens_per_step)
    return Run(
        ranks=ranks,
        engine=engine_of(wrapped, training, ranks, compute, bf16),
        objective=aim,
        training=training,
        steps=plan.make(train.lengths, step_tokens, training.epochs, training.seed, pass_tokens, aim.widths(train), reader.packs),
        train=train,
        validation=rows["validation"],
        reference=reference,
        bf16=bf16,
        attempt=folder,
        fingerprint=inputs.fingerprint,
        progress=progress,
        beat=beat,
        resume=resume,
        last_checkpoint=last,
        step=resume.state.step if resume else 0,
        supervised=tokens_of(train).supervised,
        token_share=token_share(config, ranks),
        origin=partial(origins.told, data.path),
    )


def tokens_of(data: Any) -> TokenArrays:
    """The token arrays of rows or pairs."""
    pairs = data.pairs if isinstance(data, dpo.ReferredPairs) else data
    found = pairs.rows if isinstance(pairs, preference.PairArrays) else pairs
    assert isinstance(found, TokenArrays)
    return found


def token_share(config: RunConfig, ranks: Ranks) -> float | None:
    """What one token a second is of the peak of all ranks' GPUs; None where it is not known."""
    peak = hardware.peak_flops(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
    if peak is None:
        return None
    method = need(config.method, "method")
    return estimate.operations(outline.count(config.model, method), method) / (peak * ranks.world_size)


def shortcuts(
    base: Any, method: MethodConfig, data: dict[str, Any], bf16: bool, ranks: Ranks
) -> tuple[bool, torch.nn.Linear | None]:  # fmt: skip
    """Whether the rows of all splits can be packed, and the head if losses can be read from hidden states: each as every rank tried it on
    the first rows that train."""
    tokens = tokens_of(data["train"])
    longest = max(int(split.lengths.max(initial=0)) for split in data.values())
    one, other = (tokens.row(index % len(tokens))[0][:PROOF_TOKENS].tolist() for index in (0, 1))
    base.eval()
    with objective.precision(bf16, base.device):
        output = head.usable(base, torch.tensor([one], device=base.device))
        packs = method.type not in PROMPT_METHODS and packing.enable(base, one, other, longest, ranks.all)
    return packs, output if ranks.all(output is not None) else None


def engine_of(wrapped: Any, training: TrainingConfig, ranks: Ranks, compute: ComputeConfig, bf16: bool) -> Engine:
    """What holds and steps the parameters of `wrapped`: on each rank, or divided among them by DeepSpeed, which is imported then alone."""
    if not compute.sharded:
        return Replicated(wrapped, training, ranks)
    from finetune_trainer.train.zero import Sharded

    return Sharded(wrapped, training, ranks, compute.resolved_sharding, "None" if compute.offload == "Auto" else compute.offload, bf16)


def exportable(config: RunConfig, run: Run, weights: Tensors) -> Any:
    """A model that can be saved with the `weights` of a finished run: the one that trained, or where ranks divided it, another that
    has these alone, and the buffers of the one that trained, which no rank divides."""
    if not need(config.compute, "compute").sharded:
        return run.model
    made = adapters.wrap(model.outline(config.model), need(config.method, "method"), config.model.path, run.training.seed)
    saved = made.state_dict().keys()
    buffers = {name: value.cpu() for name, value in run.model.module.named_buffers() if name in saved}
    made.load_state_dict({**buffers, **weights}, strict=False, assign=True)
    made.tie_weights()
    return made


def resume_point(
    config: RunConfig, ranks: Ranks, inputs: Inputs, folder: Path, beat: Callable[[], None]
) -> tuple[Path, Checkpoint] | tuple[None, None]:
    """The newest valid checkpoint and its folder: found by rank 0, read by all."""
    attempts = resumable(config, folder)
    size = checkpoint.read_again(lambda: layout.size(checkpoint.found(attempts)))
    newest = ranks.first_does(lambda: checkpoint.newest(attempts, inputs.fingerprint), beat, size)
    chosen = ranks.tell(str(newest[0]) if newest else None)
    if chosen is None:
        return None, None
    return Path(chosen), ranks.all_do(lambda: newest[1] if newest else checkpoint.read(Path(chosen)), beat, size)


def padding(base: object) -> int:
    """A token id to pad with (its positions are masked, so any id will do)."""
    settings = base.config  # type: ignore[attr-defined]
    found = settings.pad_token_id
    return int(found) if isinstance(found, int) and found >= 0 else 0
