"""The run configuration, version 1: what one stage is to do, as `docs/contracts.md` writes it.

Invariant: keys are camelCase and unknown keys fail, so a misspelt field never silently does nothing.
Durations are seconds. None means "decided by prepare from the data".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from finetune_trainer import addresses
from finetune_trainer.exits import UserError

T = TypeVar("T")
Stage = Literal["fetch", "prepare", "train", "evaluate"]
Format = Literal["Auto", "Messages", "PromptCompletion", "InstructionInputOutput", "InputOutput", "Text", "Preference"]


class Model(BaseModel):
    """Base of every block: frozen, camelCase, closed."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class FineTuneRef(Model):
    """Which FineTune, revision and attempt this run belongs to."""

    namespace: str
    name: str
    uid: str = ""
    revision: str
    attempt: int = Field(default=0, ge=0)


class ModelConfig(Model):
    """Where the base model comes from and the folder that holds it."""

    source: str
    revision: str = ""
    path: Path
    mount: Path | None = None
    allow_remote_code: bool = False

    @property
    def name(self) -> str:
        """The source as it may be told."""
        return addresses.shown(self.source)


class SourceConfig(Model):
    """Data files; `mount` is set for configmap:// and pvc:// sources, `secretMount` where a Secret opens the source."""

    source: str
    mount: Path | None = None
    secret_mount: Path | None = None
    format: Format = "Auto"

    @property
    def name(self) -> str:
        """The source as it may be told."""
        return addresses.shown(self.source)


class MixConfig(SourceConfig):
    """A second source mixed into training: so many rows of it for every hundred training rows of `train`."""

    percent: float = Field(gt=0, le=1000)


class SplitConfig(Model):
    """Relative shares of a single source and the seed of the hash that assigns rows."""

    train: float = Field(default=80, gt=0)
    validation: float = Field(default=10, ge=0)
    test: float = Field(default=10, ge=0)
    seed: int = 17


class QualityConfig(Model):
    """Which rows are good enough. Percentages are 0…100."""

    min_response_characters: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, gt=0)
    on_too_long: Literal["Drop", "Truncate", "Fail"] = "Drop"
    max_invalid_percent: float = Field(default=5, ge=0, le=100)
    deduplicate: bool = True
    max_repetition_percent: float = Field(default=80, ge=0, le=100)
    near_duplicates: Literal["Drop", "Keep"] = "Drop"
    near_duplicate_percent: float = Field(default=80, ge=50, le=100)
    personal_data: Literal["Warn", "Redact", "Fail"] = "Warn"
    languages: tuple[str, ...] = ()
    language_percent: float = Field(default=90, ge=50, le=100)


class DataConfig(Model):
    """The data set: its prepared folder and what it is made from."""

    path: Path
    train: SourceConfig
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    split: SplitConfig = SplitConfig()
    quality: QualityConfig = QualityConfig()
    mix: tuple[MixConfig, ...] = ()


class LoraConfig(Model):
    """Low-rank adapters; no target modules means all linear layers but the output head and routers."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False


class PromptConfig(Model):
    """Trained tokens (or, for PrefixTuning, keys and values) before every prompt; `init_text` is PromptTuning's alone."""

    virtual_tokens: int = Field(default=20, ge=1)
    init_text: str = ""


class DpoConfig(Model):
    """Direct preference optimisation; a larger beta keeps the model closer to the base."""

    beta: float = Field(default=0.1, gt=0)


Quantization = Literal["NF4", "Int8"]
PROMPT_METHODS = ("PromptTuning", "PrefixTuning", "PTuning")


class MethodConfig(Model):
    """Which weights train and on which objective. A block that the type or objective does not use is ignored."""

    type: Literal["LoRA", "QLoRA", "Full", "PromptTuning", "PrefixTuning", "PTuning"] = "LoRA"
    objective: Literal["SFT", "DPO"] = "SFT"
    lora: LoraConfig | None = None
    quantization: Quantization | None = None
    prompt: PromptConfig | None = None
    dpo: DpoConfig | None = None

    @property
    def quantized_as(self) -> Quantization | None:
        """How the frozen base is stored while QLoRA trains; None: as it is."""
        return (self.quantization or "NF4") if self.type == "QLoRA" else None


class CheckpointConfig(Model):
    """When to save (either trigger) and how many to keep."""

    every_seconds: float | None = Field(default=900, gt=0)
    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)


class TrainingConfig(Model):
    """The optimisation. Tokens are supervised and unsupervised together."""

    epochs: float = Field(default=3, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    max_sequence_length: int = Field(default=2048, ge=16)
    tokens_per_step: int | None = Field(default=None, ge=1)
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    micro_batch_divisor: int = Field(default=1, ge=1)
    precision: Literal["Auto", "FP32", "BF16"] = "Auto"
    warmup_percent: float = Field(default=3, ge=0, le=100)
    schedule: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    weight_decay: float = Field(default=0, ge=0)
    clip_norm: float = Field(default=1, gt=0)
    seed: int = 17
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    early_stopping_patience: int | None = Field(default=3, ge=0)
    checkpoint: CheckpointConfig = CheckpointConfig()
    gradient_checkpointing: bool = False


Sharding = Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3"]
Offload = Literal["Auto", "None", "Optimizer", "All"]
OFFLOADING: dict[Offload, Sharding] = {"Optimizer": "ZeRO1", "All": "ZeRO3"}  # the first that can: the least is sent between ranks

# So long a rank waits for the others' machines. The operator ends such a gang sooner, uncharged, unless an autoscaler or queue is at work.
GATHER_SECONDS = 3600


class ComputeConfig(Model):
    """The gang: `nodes` pods of max(1, gpusPerNode) processes; what each of them keeps whole (`sharding`) and what lies in the host's
    memory (`offload`). Offload Auto is nothing; sharding Auto the first that can offload what is named, DDP where that is nothing.
    `accelerator_memory` is of one, in bytes; None: not known."""

    accelerator: str = ""
    accelerator_memory: int | None = Field(default=None, ge=1)
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    sharding: Sharding = "Auto"
    offload: Offload = "Auto"
    threads: int = Field(default=0, ge=0)
    master_address: str = "127.0.0.1"
    master_port: int = Field(default=29500, ge=1, le=65535)
    stall_seconds: float = Field(default=600, gt=0)
    grace_seconds: float = Field(default=120, gt=0)

    @property
    def processes_per_node(self) -> int:
        """Ranks in one pod."""
        return max(1, self.gpus_per_node)

    @property
    def resolved_sharding(self) -> Sharding:
        """`sharding`, and what Auto comes to."""
        return OFFLOADING.get(self.offload, "DDP") if self.sharding == "Auto" else self.sharding

    @property
    def sharded(self) -> bool:
        """Whether ranks divide by ZeRO what trains."""
        return self.resolved_sharding != "DDP"


class RunConfigPaths(Model):
    """The attempt's folder without its uid, and the folders it may resume from, newest first."""

    path: Path
    resume_from: tuple[Path, ...] = ()


class SqlExecutionConfig(Model):
    """SQL metric: the mounted schema script that makes the SQLite database."""

    schema_mount: Path


class RegexConfig(Model):
    """Regex metric: what finds in answer and reference the part that is compared."""

    pattern: str


class JsonSchemaConfig(Model):
    """JSON schema metric: the mounted schema of all rows; None: each brings its own."""

    schema_mount: Path | None = None


class CustomConfig(Model):
    """Metric of an image of the user's: the folder that is handed to it, with `in/rows.jsonl` and `out/scores.jsonl`."""

    folder: Path


class MetricConfig(Model):
    """One metric of the evaluation."""

    type: Literal["ExactMatch", "Contains", "Regex", "TokenF1", "RougeL", "SqlExecution", "JsonSchema", "JsonEqual", "Custom", "Loss"]
    sql_execution: SqlExecutionConfig | None = None
    regex: RegexConfig | None = None
    json_schema: JsonSchemaConfig | None = None
    custom: CustomConfig | None = None

    @model_validator(mode="after")
    def _has_its_block(self) -> Self:
        if self.type == "SqlExecution" and self.sql_execution is None:
            raise ValueError("metric SqlExecution needs sqlExecution.schemaMount")
        if self.type == "Regex" and self.regex is None:
            raise ValueError("metric Regex needs regex.pattern")
        if self.type == "Custom" and self.custom is None:
            raise ValueError("metric Custom needs custom.folder")
        return self


class GateConfig(Model):
    """What the gate asks, as it was when the evaluation began; the operator judges, the report draws it."""

    min_score: float | None = None
    min_improvement: float | None = None
    min_improvement_over_live: float | None = None
    max_forgetting_percent: float | None = None
    max_serving_divergence: float | None = None


class SpentConfig(Model):
    """How many GPUs trained, what an hour of one costs, and what prepare had expected of the training."""

    gpus: int = 0
    gpu_hour: float | None = None
    currency: str = ""
    estimated_seconds: float | None = None
    estimated_memory_bytes: int | None = None


class AlternativeConfig(Model):
    """What else could answer; prices are of a million tokens of prompts, and of answers."""

    name: str
    input_price: float = Field(ge=0)
    output_price: float = Field(ge=0)


class TrafficConfig(Model):
    """What users ask in a month: requests, or tokens of prompts and of answers."""

    requests_per_month: int | None = Field(default=None, ge=1)
    input_tokens_per_month: int | None = Field(default=None, ge=1)
    output_tokens_per_month: int | None = Field(default=None, ge=1)


class EconomicsConfig(Model):
    """What serving is compared with in money, as it was when the Job was made. `pods` serve at least and `most_pods` at most; None: not
    known, or not asked; `missing` says which field would tell what is not known."""

    pods: int = Field(ge=1)
    most_pods: int = Field(ge=1)
    pod_hour: float | None = Field(default=None, ge=0)
    paid_once: float | None = Field(default=None, ge=0)
    currency: str = ""
    alternative: AlternativeConfig | None = None
    traffic: TrafficConfig | None = None
    missing: tuple[str, ...] = ()


class ReportConfig(Model):
    """What the report tells besides the scores. `reference` is what the tuned model is compared with: `base`, or a revision."""

    reference: str = "base"
    artifact: Path | None = None
    gate: GateConfig = GateConfig()
    spent: SpentConfig = SpentConfig()
    economics: EconomicsConfig | None = None


class ForgettingConfig(Model):
    """The folder of the untouched base model, where the probe leaves what it finds, whether QLoRA's adapter is served upon weights as
    quantised as it trained upon, and why the probe does not run (any more)."""

    base: Path
    path: Path
    quantized: bool = True
    skipped: str | None = None


class FidelityConfig(Model):
    """Where the probe leaves how far the model as served is from the model as trained, whether the server merges an adapter (into
    weights as quantised as it trained upon, if they were), and why the probe does not run (any more)."""

    path: Path
    merged: bool = True
    skipped: str | None = None


class ServerConfig(Model):
    """What answers: its runtime (or own image), and its accelerators by their profile's name (None: CPUs, or without a profile)."""

    accelerator: str | None = None
    accelerators: int = Field(default=0, ge=0)
    runtime: str


class FewShotConfig(Model):
    """How many solved training rows are put before how many test rows, and the tokens that a prompt may have."""

    examples: int = Field(ge=1)
    rows: int = Field(ge=1)
    max_tokens: int = Field(ge=1)


class BeforeConfig(Model):
    """What the page of a reference tells, which is scored before any training: whose scores they are (`base`, or a revision), from which
    one on training is not needed (None: it is always trained), and what the gate will ask of the tuned model, as it was when the Job was
    made; and what is measured of examples in the prompt (None: nothing)."""

    reference: str = "base"
    enough: float | None = None
    min_score: float | None = None
    min_improvement: float | None = None
    few_shot: FewShotConfig | None = None


class EvaluationConfig(Model):
    """What to score, against which endpoint, and where the result goes."""

    name: str
    endpoint: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    path: Path
    reference: Path | None = None
    exclude_trained_on: Path | None = None
    max_new_tokens: int = Field(default=128, ge=1)
    concurrency: int = Field(default=8, ge=1)
    confidence_percent: float = Field(default=95, gt=0, lt=100)
    adapter_path: Path | None = None
    metrics: tuple[MetricConfig, ...] = Field(min_length=1)
    report: ReportConfig | None = None
    before: BeforeConfig | None = None
    forgetting: ForgettingConfig | None = None
    fidelity: FidelityConfig | None = None
    server: ServerConfig | None = None


_NEEDS: dict[str, tuple[str, ...]] = {
    "fetch": ("model",),
    "prepare": ("model", "data", "method", "training", "compute"),
    "train": ("model", "data", "method", "training", "compute", "run"),
    "evaluate": ("model", "data", "evaluation"),
}


class RunConfig(Model):
    """One stage's configuration; blocks a stage does not use may be absent."""

    version: Literal[1]
    stage: Stage
    finetune: FineTuneRef
    model: ModelConfig
    data: DataConfig | None = None
    method: MethodConfig | None = None
    training: TrainingConfig | None = None
    compute: ComputeConfig | None = None
    run: RunConfigPaths | None = None
    evaluation: EvaluationConfig | None = None

    @model_validator(mode="after")
    def _has_the_blocks_of_its_stage(self) -> Self:
        missing = [name for name in _NEEDS[self.stage] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"stage {self.stage} needs the blocks {', '.join(missing)}")
        return self


Removable = Annotated[str, Field(pattern=r"^(data|revisions)(/[A-Za-z0-9][A-Za-z0-9._-]*)+$")]


class CleanConfig(Model):
    """What to remove from the work volume at `path`: whole folders; and of `checkpoints_of`, which are revisions with an artifact,
    the checkpoints of all attempts but the newest `keep`. All are named relative to `path`."""

    path: Path
    folders: tuple[Removable, ...] = ()
    checkpoints_of: tuple[Annotated[str, Field(pattern=r"^revisions/[A-Za-z0-9][A-Za-z0-9._-]*$")], ...] = ()
    keep: int = Field(default=0, ge=0)


class CleanRun(Model):
    """The configuration of the stage that removes: it knows neither model nor data."""

    version: Literal[1]
    stage: Literal["clean"]
    finetune: FineTuneRef
    clean: CleanConfig


def need(value: T | None, name: str) -> T:
    """`value`, which this stage's validation guarantees; narrows the type."""
    if value is None:
        raise UserError("ConfigurationInvalid", f"the run configuration lacks the block {name}")
    return value


def load(path: str | Path) -> RunConfig:
    """Read and check a run configuration. Raises UserError (unreadable) or pydantic's ValidationError (fields)."""
    return RunConfig.model_validate(_document(path))


def load_clean(path: str | Path) -> CleanRun:
    """The same of stage clean."""
    return CleanRun.model_validate(_document(path))


def _document(path: str | Path) -> object:
    try:
        document: object = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError("ConfigurationMissing", f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise UserError("ConfigurationInvalid", f"{path} is not JSON: {error}") from error
    return document
