"""The trainer's run configuration (docs/contracts.md): what the user wrote, with the defaults of the revision's day.

What `resolve` says is kept in the ControllerRevision once more than a fetch follows from it, so a new operator version with new
defaults changes nothing that has begun. None means that prepare decides from the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator import names
from finetune_operator.api.blocks.data import Source as SourceOfRows
from finetune_operator.api.blocks.evaluation import Evaluation, FewShot, Gate
from finetune_operator.api.blocks.method import PROMPTS, Lora, Prompt
from finetune_operator.api.blocks.training import CheckpointPolicy
from finetune_operator.api.fields import digest
from finetune_operator.api.quantities import decimal, seconds
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Attempt, Cleaning, Revision
from finetune_operator.build import sources
from finetune_operator.build.jobs import TRAIN_GRACE_SECONDS, Stage, job_name

Config = dict[str, Any]
STALL_SECONDS = 600
# Where none is asked for: what is usual for the method, and for DPO whatever trains.
LEARNING_RATES: Final[Mapping[str, float]] = {
    "LoRA": 2e-4, "QLoRA": 2e-4, "Full": 1e-5, "PromptTuning": 3e-2, "PrefixTuning": 1e-2, "PTuning": 1e-3, "DPO": 5e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Scoring:
    """What an evaluation is given: whose answers, where to put them, what to pair them with, what to report of it, or `before` any
    training, what it may have forgotten of, where to say how it is served (None: nothing), and what its server is (None: not known)."""

    path: str
    served_name: str
    model_path: str
    adapter: str | None
    reference: str | None
    exclude_trained_on: str | None
    report: Config | None = None
    before: Config | None = None
    forgetting: Config | None = None
    fidelity: Config | None = None
    server: Config | None = None


def resolve(spec: Spec) -> Config:
    """The sections that decide what is trained: model, data, method, training (without its checkpoints)."""
    return {"model": _model(spec), "data": _data(spec), "method": _method(spec), "training": _training(spec)}


def model_path(fields: Mapping[str, Any]) -> str:
    """Where the base model of a revision with these fields lies: shared by all revisions of the same source."""
    model = fields["model"]
    return f"{names.WORK}/models/{digest({'source': model['source'], 'revision': model.get('revision') or ''}, 16)}"


def data_path(revision: str) -> str:
    """Where a revision's prepared data lie."""
    return f"{names.WORK}/data/{revision}"


def forgetting(revision: str, base: str, *, quantized: bool, skipped: str | None) -> Config:
    """What a revision is asked for what it forgot of the model folder `base`; it is found once, whatever it is scored by. `quantized`: is
    QLoRA's adapter served upon weights as it trained upon? `skipped`: why it is not looked for (any more): what was found before counts
    all the same."""
    path = f"{names.WORK}/revisions/{revision}/evaluations/forgetting"
    return {"base": base, "path": path, "quantized": quantized, "skipped": skipped}


def fidelity(revision: str, *, merged: bool, skipped: str | None) -> Config:
    """Where it is left how far a revision as served is from the one that was trained. `merged`: does the server merge an adapter, into
    weights as it trained upon? `skipped` as of `forgetting`."""
    path = f"{names.WORK}/revisions/{revision}/evaluations/fidelity"
    return {"path": path, "merged": merged, "skipped": skipped}


def build(
    namespace: str,
    name: str,
    uid: str,
    spec: Spec,
    stage: Stage,
    resolved: Mapping[str, Any],
    *,
    gpus: int = 0,
    gpu_memory: int | None = None,
    micro_batch_tokens: int | None = None,
    layout: tuple[str, str, bool] | None = None,
    resume_from: list[str] | None = None,
    scoring: Scoring | None = None,
    micro_batch_divisor: int = 1,
) -> Config:
    """The whole configuration of one Job; blocks that its stage does not use are absent. `gpu_memory` is of one, in bytes; `layout` is
    (sharding, offload, whether activations are computed again); None: as the spec asks."""
    config: Config = {
        "version": 1,
        "stage": "evaluate" if stage.name == "baseline" else stage.name,
        "finetune": {"namespace": namespace, "name": name, "uid": uid, "revision": stage.revision, "attempt": stage.number},
        "model": {**resolved["model"]},
    }
    if stage.name == "fetch":
        config["model"]["mount"] = sources.of_model(spec).mount
        return config
    config["data"] = {**resolved["data"], "path": data_path(stage.revision)}
    if scoring is not None:
        config["model"]["path"] = scoring.model_path
        return {**config, "evaluation": _evaluation(spec, stage, scoring)}
    if stage.name == "prepare":
        config["data"] = _with_secrets(config["data"], spec)
    config["method"] = dict(resolved["method"])
    config["training"] = {**resolved["training"], "checkpoint": _checkpoint(spec), "microBatchDivisor": micro_batch_divisor}
    config["compute"] = _compute(name, spec, stage, gpus)
    if stage.name == "prepare":
        config["compute"]["acceleratorMemory"] = gpu_memory
    if stage.name == "train":
        config["training"]["microBatchTokens"] = micro_batch_tokens or config["training"]["microBatchTokens"]
        sharding, offload, recompute = layout or (spec.compute.sharding, spec.compute.offload, spec.gradient_checkpointing == "Always")
        config["compute"] |= {"sharding": sharding, "offload": offload}
        config["training"]["gradientCheckpointing"] = recompute
        config["run"] = {"path": names.attempt_path(stage.revision, stage.number), "resumeFrom": list(resume_from or [])}
    return config


def clean(namespace: str, name: str, uid: str, stage: Stage, cleaning: Cleaning) -> Config:
    """The configuration of the Job that removes what the status lists. An artifact goes before the data that it is scored on."""
    return {
        "version": 1,
        "stage": stage.name,
        "finetune": {"namespace": namespace, "name": name, "uid": uid, "revision": stage.revision, "attempt": stage.number},
        "clean": {
            "path": names.WORK,
            "folders": [f"{kind}/{revision}" for revision in cleaning.revisions for kind in ("revisions", "data")],
            "checkpointsOf": [f"revisions/{revision}" for revision in cleaning.checkpoints],
            "keep": cleaning.keep,
        },
    }


def _model(spec: Spec) -> Config:
    fields = {"model": {"source": spec.model.source, "revision": spec.model.revision}}
    return {
        "source": spec.model.source, "revision": spec.model.revision or "", "path": model_path(fields), "allowRemoteCode": False,
    }  # fmt: skip


def _data(spec: Spec) -> Config:
    data, split, quality = spec.data, spec.data.split, spec.data.quality
    return {
        "train": _rows("train", data.train),
        "validation": _rows("validation", data.validation) if data.validation else None,
        "test": _rows("test", data.test) if data.test else None,
        "split": {
            "train": _or(split and split.train, 80),
            "validation": _or(split and split.validation, 10),
            "test": _or(split and split.test, 10),
            "seed": _or(split and split.seed, 17),
        },
        "quality": {
            "minResponseCharacters": quality.min_response_characters if quality else None,
            "maxTokens": _or(quality and quality.max_tokens, 4000),
            "onTooLong": _or(quality and quality.on_too_long, "Drop"),
            "maxInvalidPercent": _or(quality and quality.max_invalid_percent, 5),
            "deduplicate": _or(quality and quality.deduplicate, True),
            "maxRepetitionPercent": _or(quality and quality.max_repetition_percent, 80),
            "nearDuplicates": _or(quality and quality.near_duplicates, "Drop"),
            "nearDuplicatePercent": _or(quality and quality.near_duplicate_percent, 80),
            "personalData": _or(quality and quality.personal_data, "Warn"),
            "languages": _or(quality and quality.languages, []),
            "languagePercent": _or(quality and quality.language_percent, 90),
        },
        "mix": [{**_rows(f"mix-{index}", mix), "percent": mix.percent} for index, mix in enumerate(data.mix or ())],
    }


def _rows(slot: str, given: SourceOfRows) -> Config:
    return {"source": given.source, "mount": sources.parse(slot, given.source).mount, "format": given.format or "Auto"}


def _with_secrets(data: Config, spec: Spec) -> Config:
    """Where prepare finds the Secrets of its sources: a Secret's name is Live, and so no part of what a revision resolves."""
    mounts = {source.slot: source.secret_mount for source in sources.of_data(spec)}
    slots = {slot: {**data[slot], "secretMount": mounts.get(slot)} for slot in ("train", "validation", "test") if data[slot]}
    return {**data, **slots, "mix": [{**mix, "secretMount": mounts.get(f"mix-{index}")} for index, mix in enumerate(data["mix"])]}


def _method(spec: Spec) -> Config:
    """The method, with the blocks that its type and objective use."""
    method = spec.method
    found: Config = {"type": method.type, "objective": method.objective or "SFT"}
    if method.type in ("LoRA", "QLoRA"):
        found["lora"] = _lora(method.lora or Lora())
    if method.type == "QLoRA":
        found["quantization"] = method.quantization or "NF4"
    if method.type in PROMPTS:
        prompt = method.prompt or Prompt()
        found["prompt"] = {"virtualTokens": _or(prompt.virtual_tokens, 20), "initText": prompt.init_text or ""}
    if found["objective"] == "DPO":
        found["dpo"] = {"beta": decimal(method.dpo.beta) if method.dpo and method.dpo.beta else 0.1}
    return found


def _lora(lora: Lora) -> Config:
    return {
        "rank": _or(lora.rank, 16),
        "alpha": _or(lora.alpha, 32),
        "dropout": decimal(lora.dropout) if lora.dropout else 0,
        "targetModules": list(lora.target_modules or ()),
        "useRslora": bool(lora.use_rslora),
        "useDora": bool(lora.use_dora),
    }


def _training(spec: Spec) -> Config:
    t = spec.training
    usual = LEARNING_RATES["DPO" if spec.method.objective == "DPO" else spec.method.type]
    return {
        "epochs": _or(t and t.epochs, 3),
        "learningRate": decimal(t.learning_rate) if t and t.learning_rate else usual,
        "maxSequenceLength": _or(t and t.max_sequence_length, 2048),
        "tokensPerStep": t.tokens_per_step if t else None,
        "microBatchTokens": None,
        "precision": "Auto",
        "warmupPercent": 3,
        "schedule": "Cosine",
        "weightDecay": 0,
        "clipNorm": 1,
        "seed": _or(t and t.seed, 17),
        "evaluateEverySteps": None,
        "earlyStoppingPatience": _or(t and t.early_stopping and t.early_stopping.patience, 3),
        "gradientCheckpointing": False,
    }


def _checkpoint(spec: Spec) -> Config:
    policy = (spec.training.checkpoint if spec.training else None) or CheckpointPolicy()
    every = seconds(policy.every) if policy.every else 900.0
    return {"everySeconds": None if policy.every_steps else every, "everySteps": policy.every_steps, "keep": policy.keep or 2}


def _compute(name: str, spec: Spec, stage: Stage, gpus: int) -> Config:
    gang = job_name(name, stage)
    return {
        "accelerator": spec.compute.accelerator or "",
        "nodes": spec.compute.nodes if stage.name in ("prepare", "train") else 1,
        "gpusPerNode": gpus,
        "sharding": "Auto",
        "offload": "Auto",
        "threads": spec.compute.threads or 1,
        "masterAddress": f"{gang}-0.{gang}",
        "masterPort": names.MASTER_PORT,
        "stallSeconds": STALL_SECONDS,
        "graceSeconds": TRAIN_GRACE_SECONDS,
    }


def _evaluation(spec: Spec, stage: Stage, scoring: Scoring) -> Config:
    return {
        "name": "baseline" if stage.name == "baseline" else "tuned",
        "endpoint": f"http://127.0.0.1:{names.MODEL_PORT}/v1",
        "model": scoring.served_name,
        "path": scoring.path,
        "reference": scoring.reference,
        "excludeTrainedOn": scoring.exclude_trained_on,
        "maxNewTokens": spec.evaluation.max_new_tokens if spec.evaluation else 128,
        "concurrency": 16,
        "confidencePercent": 95,
        "adapterPath": scoring.adapter,
        "metrics": metrics(spec),
        "report": scoring.report,
        "before": scoring.before,
        "forgetting": scoring.forgetting,
        "fidelity": scoring.fidelity,
        "server": scoring.server,
    }


def report(
    spec: Spec, against: str, revision: Revision, attempt: Attempt | None, currency: str | None, economics: Config | None = None
) -> Config:
    """What the evaluation's report tells besides the scores: what the gate asks now, what was expected of the training, what an hour
    of its GPUs costs (what it took, the artifact says: what was spent by now depends on when one looks), and what serving is compared
    with in money (None: nothing is)."""
    gate, expected = (spec.evaluation.gate if spec.evaluation else None) or Gate(), revision.estimate
    return {
        "reference": against,
        "artifact": revision.artifact,
        "gate": {
            "minScore": _decimal(gate.min_score),
            "minImprovement": _decimal(gate.min_improvement),
            "minImprovementOverLive": _decimal(gate.min_improvement_over_live),
            "maxForgettingPercent": gate.max_forgetting_percent,
            "maxServingDivergence": _decimal(gate.max_serving_divergence),
        },
        "spent": {
            "gpus": (attempt.gpus or 0) if attempt else 0,
            "gpuHour": _decimal(attempt.gpu_hour) if attempt else None,
            "currency": currency or "",
            "estimatedSeconds": expected.seconds if expected else None,
            "estimatedMemoryBytes": expected.memory_bytes if expected else None,
        },
        "economics": economics,
    }


def before(spec: Spec, reference: str, longest: int) -> Config:
    """What the page of a reference tells, which is scored before any training: whose the scores are, what makes training needless, what the
    gate will ask, and what is measured of examples in the prompt. `longest` is training.maxSequenceLength, in tokens."""
    evaluation = spec.evaluation or Evaluation()
    gate, few = evaluation.gate or Gate(), evaluation.few_shot or FewShot()
    return {
        "reference": reference,
        "enough": _decimal(evaluation.skip_training_if_baseline_at_least),
        "minScore": _decimal(gate.min_score),
        "minImprovement": _decimal(gate.min_improvement),
        "fewShot": {"examples": few.examples, "rows": few.rows, "maxTokens": longest} if few.examples else None,
    }


def _decimal(value: str | None) -> float | None:
    return decimal(value) if value else None


LOSS_ALONE: Final[list[Config]] = [{"type": "Loss"}]  # no server answers for it


def metrics(spec: Spec) -> list[Config]:
    """The metrics asked for; without any, the mean loss per row is compared."""
    mounts = {s.slot: s.mount or s.uri.removeprefix("image://") for s in sources.of_metrics(spec)}
    result: list[Config] = []
    for index, metric in enumerate((spec.evaluation.metrics if spec.evaluation else None) or ()):
        entry: Config = {"type": metric.type}
        if metric.sql_execution is not None:
            entry["sqlExecution"] = {"schemaMount": mounts[f"schema-{index}"]}
        if metric.json_schema is not None:
            entry["jsonSchema"] = {"schemaMount": mounts.get(f"schema-{index}")}
        if metric.regex is not None:
            entry["regex"] = {"pattern": metric.regex.pattern}
        if metric.custom is not None:
            entry["custom"] = {"folder": names.METRIC_DIR}
        result.append(entry)
    return result or LOSS_ALONE


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
