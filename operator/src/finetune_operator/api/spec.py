"""`FineTune.spec`: the one source of truth. The CRD, the reference page and the field classes are generated from here.

Field classes (what an edit does) are markers on the leaves: Retrain makes a new revision, Reevaluate scores again,
Redeploy makes a new arm (and so a canary), Live changes in place, Immutable is refused by the API server.
What the schema has but no code yet does is listed in `rules.NOT_YET` and refused, never silently ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_operator.api.fields import IMMUTABLE, LIVE, REDEPLOY, REEVALUATE, RETRAIN
from finetune_operator.api.quantities import DECIMAL_PATTERN, DURATION_PATTERN, QUANTITY_PATTERN, decimal, seconds


def _checked_duration(text: Any) -> Any:
    """Before the pattern, which says the same to people less well."""
    if isinstance(text, str):
        seconds(text)
    return text


def _checked_decimal(text: str) -> str:
    decimal(text)
    return text


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def _checked_affinity(affinity: dict[str, Any]) -> dict[str, Any]:
    """What the operator adds terms of its own to has the shape that they need; the API server checks the rest."""
    for kind in ("podAffinity", "nodeAffinity"):
        block = _shaped(affinity.get(kind), {}, kind)
        required = _shaped(block.get(_REQUIRED), [] if kind == "podAffinity" else {}, f"{kind}.{_REQUIRED}")
        terms = (
            required if kind == "podAffinity" else _shaped(required.get("nodeSelectorTerms"), [], f"{kind}.{_REQUIRED}.nodeSelectorTerms")
        )
        for term in terms:
            _shaped(_shaped(term, {}, f"each term of {kind}").get("matchExpressions"), [], f"{kind}: matchExpressions")
        _shaped(block.get(_PREFERRED), [], f"{kind}.{_PREFERRED}")
    return affinity


def _shaped(value: Any, like: Any, what: str) -> Any:
    if value is not None and not isinstance(value, type(like)):
        raise ValueError(f"{what} must be {'a list' if like == [] else 'an object'}")
    return value or like


def _written(value: Any) -> Any:
    """Kubernetes takes `cpu: 2` for `cpu: "2"`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Duration = Annotated[
    str, Field(max_length=32, pattern=DURATION_PATTERN, json_schema_extra={"x-finetune": "duration"}), BeforeValidator(_checked_duration)
]
Decimal = Annotated[
    str, Field(max_length=32, pattern=DECIMAL_PATTERN, json_schema_extra={"x-finetune": "decimal"}), AfterValidator(_checked_decimal)
]
Name = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]  # a name that is a label's value
Word = Annotated[str, Field(max_length=128)]
ServedName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]*$")]
_OBJECT = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"  # name of an object of the cluster
ModelSource = Annotated[str, Field(max_length=1024, pattern=rf"^(image:///|pvc://{_OBJECT}/|hf://|https://|s3://|oci://).+$")]
DataSource = Annotated[str, Field(max_length=1024, pattern=rf"^((configmap|pvc)://{_OBJECT}/|image:///|hf://|https://|s3://).+$")]
Host = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
]  # neither an address nor a wildcard
Percent = Annotated[int, Field(ge=0, le=100)]
Quantity = Annotated[
    str, BeforeValidator(_written), Field(max_length=32, pattern=QUANTITY_PATTERN, json_schema_extra={"x-kubernetes-int-or-string": True})
]
FieldName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
GuardName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
HeaderName = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
Free = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class SpecModel(BaseModel):
    """Frozen; camelCase on the wire; unknown keys fail."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Model(SpecModel):
    """The base model."""

    source: Annotated[ModelSource, RETRAIN] = Field(
        description="image:///path in the trainer image, pvc://claim/path, hf://owner/name, or https://… of a tar archive."
    )
    revision: Annotated[Word | None, RETRAIN] = Field(
        default=None, description="Commit or tag, for hf://; the archive's sha256, for https://."
    )
    secret_name: Annotated[Name | None, LIVE] = Field(
        default=None, description="Secret whose key `token` opens the source; the pod that fetches the model alone gets it."
    )


class Source(SpecModel):
    """Rows of a data set."""

    source: Annotated[DataSource, RETRAIN] = Field(
        description="configmap://name/key, pvc://claim/path, image:///path, https://…, s3://bucket/key or hf://owner/name[@revision][/path]. "
        "JSON lines, a JSON array, CSV or Parquet, also compressed; a folder stands for its files."
    )
    format: Annotated[
        Literal["Auto", "Messages", "PromptCompletion", "InstructionInputOutput", "InputOutput", "Text", "Preference"] | None, RETRAIN
    ] = Field(default=None, description="Form of a row; Auto (default) tells it from the first rows.")
    secret_name: Annotated[Name | None, LIVE] = Field(
        default=None,
        description="Secret that opens an https:// or hf:// source (key `token`) or an s3:// one (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_REGION, AWS_ENDPOINT_URL, …); the pod that prepares the data alone gets it.",
    )


class Split(SpecModel):
    """Shares of train, validation and test, by content hash; they sum to 100."""

    train: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=100, description="Percent; default 80.")
    validation: Annotated[Percent | None, RETRAIN] = Field(default=None, description="Percent; default 10.")
    test: Annotated[Percent | None, RETRAIN] = Field(default=None, description="Percent; default 10.")
    seed: Annotated[int | None, RETRAIN] = Field(default=None, ge=0, le=2147483647, description="Default 17.")


Language = Annotated[str, Field(pattern="^[a-z]{2,3}$", max_length=3)]


class Quality(SpecModel):
    """What a row must be like, and how many bad ones are borne."""

    min_response_characters: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=0, le=100000, description="Default 10; 1 where answers are a small set of labels."
    )
    max_tokens: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=1, le=1048576, description="Longest row; default 4000, never above maxSequenceLength."
    )
    on_too_long: Annotated[Literal["Drop", "Truncate", "Fail"] | None, RETRAIN] = Field(default=None, description="Default Drop.")
    max_invalid_percent: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=0, le=100, description="Above it the run stops before training; default 5."
    )
    deduplicate: Annotated[bool | None, RETRAIN] = Field(default=None, description="Drop rows that are there twice; default true.")
    max_repetition_percent: Annotated[int | None, RETRAIN] = Field(
        default=None,
        ge=0,
        le=100,
        description="An answer of fifty words and more, of whose word trigrams more are repeated, is invalid; default 80.",
    )
    near_duplicates: Annotated[Literal["Drop", "Keep"] | None, RETRAIN] = Field(
        default=None, description="Rows that are nearly like an earlier one, or like one of the test split; default Drop."
    )
    near_duplicate_percent: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=50, le=100, description="Share of word trigrams in common that makes a near-duplicate; default 80."
    )
    personal_data: Annotated[Literal["Warn", "Redact", "Fail"] | None, RETRAIN] = Field(
        default=None, description="What is done about e-mail addresses, telephone and card numbers, and keys; default Warn."
    )
    languages: Annotated[list[Language] | None, RETRAIN] = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="ISO 639 codes, as `en`. A row with a turn in another language is invalid; by default languages are not looked at.",
    )
    language_percent: Annotated[int | None, RETRAIN] = Field(
        default=None,
        ge=50,
        le=100,
        description="How sure it must be that a turn is in another language; default 90. Short turns rarely are.",
    )


class Mix(Source):
    """General data mixed in against forgetting."""

    percent: Annotated[int, RETRAIN] = Field(ge=1, le=100, description="So many rows for every hundred training rows of `train`.")


class Data(SpecModel):
    """Training data, and how it is checked and split."""

    train: Source
    validation: Source | None = Field(default=None, description="Else a share of `train`.")
    test: Source | None = Field(default=None, description="Else a share of `train`. Never seen by training.")
    split: Split | None = None
    quality: Quality | None = None
    mix: list[Mix] | None = Field(default=None, max_length=8, description="General data, mixed into the training rows.")


class Lora(SpecModel):
    """Low-rank adapters."""

    rank: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=1024, description="Default 16.")
    alpha: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=4096, description="Default 32.")
    dropout: Annotated[Decimal | None, RETRAIN] = Field(default=None, description="Default 0.")
    target_modules: Annotated[list[Word] | None, RETRAIN] = Field(
        default=None,
        max_length=64,
        description="Ends of layers' names; `experts.down_proj` and the like for a MoE's experts. Default: all linear layers but the head, a MoE's router and its experts.",
    )
    use_rslora: Annotated[bool | None, RETRAIN] = Field(
        default=None, description="Scale by alpha / √rank instead of alpha / rank; default false."
    )
    use_dora: Annotated[bool | None, RETRAIN] = Field(
        default=None, description="Train magnitudes too (DoRA), which vLLM does not serve; default false."
    )


class Prompt(SpecModel):
    """Trained tokens before every prompt."""

    virtual_tokens: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=4096, description="Default 20.")
    init_text: Annotated[Annotated[str, Field(min_length=1, max_length=4096)] | None, RETRAIN] = Field(
        default=None, description="For PromptTuning: they begin as this text's tokens; default: as random ones."
    )


class Dpo(SpecModel):
    """Direct preference optimisation."""

    beta: Annotated[Decimal | None, RETRAIN] = Field(
        default=None, description='How close to the base model to stay: larger is closer; default "0.1".'
    )


class Method(SpecModel):
    """Which weights train, on what objective."""

    type: Annotated[Literal["Full", "LoRA", "QLoRA", "PromptTuning", "PrefixTuning", "PTuning"], RETRAIN]
    objective: Annotated[Literal["SFT", "DPO"] | None, RETRAIN] = Field(
        default=None, description="DPO learns from rows of format Preference, SFT from all others; default SFT."
    )
    lora: Lora | None = None
    quantization: Annotated[Literal["NF4", "Int8"] | None, RETRAIN] = Field(
        default=None, description="How QLoRA keeps the frozen base while it trains; default NF4 (4 bits, doubly quantised)."
    )
    prompt: Prompt | None = None
    dpo: Dpo | None = None


class EarlyStopping(SpecModel):
    """Stop when the validation loss no longer falls."""

    patience: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=1, le=1000, description="Validations without a better loss; default 3."
    )


class CheckpointPolicy(SpecModel):
    """How often, and how many are kept."""

    every: Annotated[Duration | None, LIVE] = Field(default=None, description="Default 15m.")
    every_steps: Annotated[int | None, LIVE] = Field(default=None, ge=1, le=1000000, description="Instead of `every`.")
    keep: Annotated[int | None, LIVE] = Field(default=None, ge=1, le=100, description="Default 2; the best one is kept besides.")


class Training(SpecModel):
    """The optimisation."""

    epochs: Annotated[int | None, RETRAIN] = Field(default=None, ge=1, le=1000, description="Default 3.")
    learning_rate: Annotated[Decimal | None, RETRAIN] = Field(
        default=None, description='Default "2e-4"; Full "1e-5", PromptTuning "3e-2", PrefixTuning "1e-2", PTuning "1e-3"; DPO "5e-6".'
    )
    max_sequence_length: Annotated[int | None, RETRAIN] = Field(default=None, ge=16, le=1048576, description="Tokens; default 2048.")
    tokens_per_step: Annotated[int | None, RETRAIN] = Field(
        default=None, ge=16, le=67108864, description="Default: what leaves at least 50 steps an epoch, at most 32768."
    )
    seed: Annotated[int | None, RETRAIN] = Field(default=None, ge=0, le=2147483647, description="Default 17.")
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointPolicy | None = None


class Compute(SpecModel):
    """The gang that trains. Changing it moves the next attempt and never retrains."""

    accelerator: Annotated[Word | None, LIVE] = Field(
        default=None, description="A profile of the operator's: h100, h200, a100-80, …; absent: CPU."
    )
    nodes: Annotated[int, LIVE] = Field(default=1, ge=1, le=512, description="Pods of the gang, torchrun's nnodes.")
    gpus_per_node: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=16, description="Of each rank, each pod that scores and each server; default 1 with an accelerator, else 0."
    )
    sharding: Annotated[Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3"], LIVE] = Field(
        default="Auto", description="What ranks divide among them instead of holding it each; Auto: the least that fits, DDP on CPUs."
    )
    offload: Annotated[Literal["Auto", "None", "Optimizer", "All"], LIVE] = Field(
        default="Auto",
        description="What of it lies in the host's memory, under ZeRO; Auto: only what must; All: with ZeRO3, parameters too.",
    )
    queue_name: Annotated[LabelName | None, LIVE] = Field(
        default=None, description="Kueue's LocalQueue, which admits the gangs that train from then on."
    )
    cpu: Annotated[Quantity | None, LIVE] = Field(default=None, description="CPU request of each pod.")
    memory: Annotated[Quantity | None, LIVE] = Field(default=None, description="Memory request and limit of each pod.")
    threads: Annotated[int | None, LIVE] = Field(default=None, ge=1, le=256, description="Threads of each rank on CPU; default 1.")

    @property
    def gpus_each(self) -> int:
        """Accelerators of each pod that has any."""
        return self.gpus_per_node or (1 if self.accelerator else 0)


class Storage(SpecModel):
    """The work volume: models, data, checkpoints, artifacts."""

    size: Annotated[Quantity, LIVE] = Field(default="50Gi")
    storage_class_name: Annotated[Name | None, IMMUTABLE] = Field(default=None, description="Default: the cluster's.")
    access_mode: Annotated[Literal["ReadWriteOnce", "ReadWriteMany"], IMMUTABLE] = Field(default="ReadWriteOnce")
    retain: Annotated[bool, LIVE] = Field(default=True, description="Keep the volume when the FineTune is deleted.")


class Retries(SpecModel):
    """Failed tries that are borne, by class; disruptions are never charged."""

    error: Annotated[int, LIVE] = Field(default=2, ge=0, le=100)
    out_of_memory: Annotated[int, LIVE] = Field(default=2, ge=0, le=100)
    infrastructure: Annotated[int, LIVE] = Field(default=10, ge=0, le=1000)


class SqlExecution(SpecModel):
    """Answers are SQL: executed on SQLite, results compared."""

    schema_source: Annotated[DataSource, REEVALUATE] = Field(
        alias="schema", description="configmap://name/key of a script that makes and fills the tables."
    )


class Metric(SpecModel):
    """One way to score an answer, 0…1."""

    type: Annotated[Literal["ExactMatch", "SqlExecution"], REEVALUATE]
    sql_execution: SqlExecution | None = None


class Gate(SpecModel):
    """What the tuned model must reach before any user is moved."""

    min_score: Annotated[Decimal | None, LIVE] = Field(
        default=None, description="Of the score itself: 0…1 with a metric, minus bits per byte (below 0) without."
    )
    min_improvement: Annotated[Decimal | None, LIVE] = Field(
        default=None, description="Over the base model, of the interval's lower bound; default: above 0."
    )
    min_improvement_over_live: Annotated[Decimal | None, LIVE] = Field(
        default=None, description="Over the live revision; default: not provably worse."
    )
    max_forgetting_percent: Annotated[int | None, LIVE] = Field(
        default=None,
        ge=0,
        le=100,
        description="How much the perplexity of general text may rise over the base model's, of the interval's lower bound; default: any.",
    )


class Evaluation(SpecModel):
    """Scores on the sealed test split; without metrics the loss is compared, in bits per byte of the answers."""

    metrics: list[Metric] | None = Field(default=None, max_length=8, description="The first one is gated.")
    max_new_tokens: Annotated[int, REEVALUATE] = Field(default=128, ge=1, le=65536)
    skip_training_if_baseline_at_least: Annotated[Decimal | None, LIVE] = None
    gate: Gate | None = None


class Resources(SpecModel):
    """Requests and limits of a container."""

    requests: dict[Word, Quantity] | None = Field(default=None, max_length=16, description="What is reserved, by resource.")
    limits: dict[Word, Quantity] | None = Field(default=None, max_length=16, description="What may be used, by resource.")


class ApiKeys(SpecModel):
    """The routers admit only who sends one of these as `Authorization: Bearer KEY`."""

    secret_name: Annotated[Name, LIVE] = Field(
        description="Secret whose entry `keys` has lines of a name and a key. A changed one counts within a minute or two."
    )


class Tls(SpecModel):
    """Users are served over TLS, at port 443 alone."""

    secret_name: Annotated[Name, LIVE] = Field(
        description="Secret of type kubernetes.io/tls, as cert-manager makes it; a renewed certificate is used without a restart."
    )


class Ingress(SpecModel):
    """An Ingress for the users' Service; path /v1 alone."""

    class_name: Annotated[Name, LIVE] = Field(description="IngressClass of the controller.")
    host: Annotated[Host, LIVE] = Field(description="The name that users call, as bot.example.com.")
    tls_secret_name: Annotated[Name | None, LIVE] = Field(
        default=None, description="Secret of type kubernetes.io/tls with which the controller ends TLS; absent: what the controller has."
    )
    annotations: Annotated[dict[Word, Annotated[str, Field(max_length=1024)]] | None, LIVE] = Field(
        default=None,
        max_length=32,
        description="For the controller (timeouts), cert-manager, external-dns: those that the operator's setting lets through.",
    )


class ParentRef(SpecModel):
    """A Gateway, or a listener of it."""

    name: Annotated[Name, LIVE] = Field(description="Of the Gateway.")
    namespace: Annotated[LabelName | None, LIVE] = Field(
        default=None, description="Default: the FineTune's; the Gateway's listener must admit routes from that."
    )
    section_name: Annotated[Name | None, LIVE] = Field(default=None, description="Name of the listener; absent: all that admit it.")


class HttpRoute(SpecModel):
    """An HTTPRoute of the Gateway API for the users' Service; path /v1 alone."""

    parent_refs: list[ParentRef] = Field(min_length=1, max_length=8, description="Gateways that are to take it.")
    hostnames: Annotated[list[Host], LIVE] = Field(min_length=1, max_length=16, description="The names that users call.")

    @property
    def host(self) -> str:
        """The name that status.url says."""
        return self.hostnames[0]


class Expose(SpecModel):
    """Makes the model callable from outside the cluster, once it serves users; by one of both."""

    ingress: Ingress | None = None
    http_route: HttpRoute | None = None
    scheme: Annotated[Literal["http", "https"] | None, LIVE] = Field(
        default=None, description="Of status.url; absent: https with ingress.tlsSecretName, else http."
    )

    @property
    def way(self) -> Ingress | HttpRoute:
        """The one that is named."""
        return self.ingress or cast(HttpRoute, self.http_route)  # a rule has seen to it that one is


class PodMetric(SpecModel):
    """A metric of the arm's pods, from the cluster's custom metrics."""

    name: Annotated[Word, LIVE] = Field(description="As its adapter calls it.")
    average_value: Annotated[Quantity, LIVE] = Field(description="Of each pod.")


class Autoscaling(SpecModel):
    """The replicas of each arm follow its load; `replicas` does not count then. While users are moved no arm falls below what the present one had."""

    min_replicas: Annotated[int, LIVE] = Field(default=1, ge=1, le=1000)
    max_replicas: Annotated[int, LIVE] = Field(ge=1, le=1000, description="Of each arm; two arms run while users are moved.")
    target_cpu: Annotated[int | None, LIVE] = Field(
        alias="targetCPUUtilizationPercentage", default=None, ge=1, le=1000,
        description="Of resources.requests.cpu, on average over the pods; default 80 without a metric.",
    )  # fmt: skip
    metric: PodMetric | None = Field(default=None, description="Instead of the CPU, which says little of a server on GPUs.")
    autoscaler: Annotated[Literal["HPA", "External"], LIVE] = Field(
        default="HPA", description="External: none is made; yours (KEDA) sets the replicas of the arm's Deployment."
    )


class Serving(SpecModel):
    """How the model serves; absent: train only."""

    runtime: Annotated[Literal["Auto", "Transformers", "vLLM"], REDEPLOY] = Field(
        default="Auto", description="Auto: vLLM with an accelerator, else Transformers; always the latter for trained prompts and DoRA."
    )
    image: Annotated[Annotated[str, Field(max_length=512)] | None, REDEPLOY] = Field(
        default=None, description="Replaces the server's image; started with `finetune-trainer serve`'s arguments, port and probe."
    )
    replicas: Annotated[int, LIVE] = Field(
        default=1, ge=1, le=1000, description="Of each arm, with gpusPerNode GPUs each; two arms run while users are moved."
    )
    autoscaling: Autoscaling | None = None
    resources: Annotated[Resources | None, REDEPLOY] = None
    model_name: Annotated[ServedName | None, REDEPLOY] = Field(default=None, description="Default: the FineTune's name.")
    api_keys: ApiKeys | None = None
    tls: Tls | None = None
    expose: Expose | None = None


class Step(SpecModel):
    """A share of the users, for a time."""

    weight: Annotated[int, LIVE] = Field(ge=1, le=100, description="Percent of the users.")
    hold: Annotated[Duration, LIVE] = Field(default="0s", description="For so long at least; absent: 0s.")


class Identity(SpecModel):
    """Where a request's user is read from; the first of the list that names one counts."""

    header: Annotated[HeaderName | None, LIVE] = Field(
        default=None, description="A request header: one that your gateway sets, or Authorization, which stands for who has the API key."
    )
    body_field: Annotated[FieldName | None, LIVE] = Field(
        default=None, description="A text at the top of a JSON body of up to 1 MiB with a Content-Length: user, safety_identifier."
    )


class Query(SpecModel):
    """A question of your own to the operator's Prometheus, and the numbers that are well."""

    name: Annotated[GuardName, LIVE] = Field(description="What evidence and messages call it.")
    query: Annotated[Annotated[str, Field(min_length=1, max_length=4096)], LIVE] = Field(
        description="PromQL that gives one number. With ${arm}, ${revision} or ${pods} (a regular expression of an arm's pods) in it, it is "
        "asked of each arm; also ${namespace}, ${finetune}, ${canary}, ${stable} (the arms' names), and ${window}, the time since the step began."
    )
    max: Annotated[Decimal | None, LIVE] = Field(default=None, description="The canary fails above it, unless stable is above it too.")
    min: Annotated[Decimal | None, LIVE] = Field(default=None, description="The canary fails below it, unless stable is below it too.")


class Guards(SpecModel):
    """What traffic must show while users move."""

    max_error_rate_percent: Annotated[int, LIVE] = Field(
        default=2, ge=0, le=100, description="Of inference requests. Rolled back: above it, and above what stable has."
    )
    max_error_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=10000, description="Over stable's error rate, however low that is; absent: not asked."
    )
    max_latency_regression_percent: Annotated[int, LIVE] = Field(
        default=25, ge=0, le=10000, description="Over stable's median and 95th percentile of the time to the end of an answer, both."
    )
    max_time_to_first_token_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=10000, description="The same of the time to the first token, by the arms' own metrics; absent: not asked."
    )
    max_time_per_output_token_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None, ge=0, le=10000, description="The same of the time per token after the first; absent: not asked."
    )
    max_unusable_regression_percent: Annotated[int | None, LIVE] = Field(
        default=None,
        ge=0,
        le=10000,
        description="Over stable's share of answers that are empty or cut off at their longest, by the arms' own metrics; absent: not asked.",
    )
    queries: list[Query] | None = Field(
        default=None,
        max_length=8,
        description="Questions of your own to the Prometheus that the operator's chart names (prometheus.url); docs/guards.md.",
    )
    min_requests: Annotated[int, LIVE] = Field(
        default=200, ge=0, le=10000000, description="Of the canary in each step: before that many no guard passes."
    )
    on_insufficient: Annotated[Literal["Extend", "Hold", "Promote", "Rollback"], LIVE] = Field(
        default="Extend",
        description="What becomes of a step that cannot be judged `maxExtension` after its time: it waits on; it is held and says so (Paused); "
        "the next step begins; everybody goes back.",
    )
    max_extension: Annotated[Duration, LIVE] = Field(default="1h", description="For so long a step that cannot be judged yet is extended.")


class ExposureLog(SpecModel):
    """The routers write a line of JSON to their log for each inference request of a user: who (a keyed hash), which arm, how it went."""

    secret_name: Annotated[Name, LIVE] = Field(
        description="Secret whose entry `key` (at least 16 characters) users are hashed with; keep it the same while the experiment runs."
    )


class Experiment(SpecModel):
    """An A/B test: the split stays where it is until it is decided. `kubectl finetune ab` compares the arms."""

    weight: Annotated[int, LIVE] = Field(ge=1, le=99, description="Percent of the users on the new arm; smaller steps come first.")
    duration: Annotated[Duration | None, LIVE] = Field(
        default=None, description="Then the larger steps follow; absent: until `promote` or `abort` is asked for."
    )
    log: ExposureLog | None = Field(default=None, description="Absent: nothing is logged.")


class Rollout(SpecModel):
    """How users are moved."""

    steps: list[Step] | None = Field(default=None, min_length=1, max_length=20, description="Default 10 % for 30m, 50 % for 1h, 100 %.")
    identity: list[Identity] | None = Field(
        default=None, max_length=8, description="Default header x-user-id; requests without one stay on stable."
    )
    experiment: Experiment | None = None
    guards: Guards = Guards()
    bake: Annotated[Duration, LIVE] = Field(default="1h", description="The old arm is kept warm for this time after the last step.")
    progress_deadline: Annotated[Duration, LIVE] = Field(
        default="20m", description="A canary that is not ready so long after the present arm is, is rolled back."
    )


class EnvVar(SpecModel):
    """A variable of every pod."""

    name: Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Wins over the operator's own.")]
    value: Annotated[str, Field(max_length=4096, description="Its text.")] = ""


class Pods(SpecModel):
    """Overrides for every pod of the FineTune."""

    service_account_name: Annotated[Name | None, REDEPLOY] = None
    image_pull_secrets: Annotated[list[Name] | None, REDEPLOY] = Field(default=None, max_length=8)
    node_selector: Annotated[dict[Word, Word] | None, REDEPLOY] = Field(default=None, max_length=32)
    tolerations: Annotated[list[Free] | None, REDEPLOY] = Field(default=None, max_length=32)
    affinity: Annotated[Annotated[Free, AfterValidator(_checked_affinity)] | None, REDEPLOY] = None
    annotations: Annotated[dict[Word, Annotated[str, Field(max_length=1024)]] | None, REDEPLOY] = Field(default=None, max_length=32)
    env: Annotated[list[EnvVar] | None, REDEPLOY] = Field(default=None, max_length=64)


class Budget(SpecModel):
    """What training may cost, all attempts of all revisions together. What is spent stops it with a checkpoint; a larger one resumes."""

    max_cost: Annotated[Decimal | None, LIVE] = Field(default=None, description="By the hourly price of the accelerator's profile.")
    currency: Annotated[Word | None, LIVE] = Field(default=None, description="Of the profiles' prices; shown, not converted.")
    max_duration: Annotated[Duration | None, LIVE] = Field(default=None, description="Time in which gangs ran.")


Tokens = Annotated[int, Field(ge=1, le=1_000_000_000_000_000)]


class Alternative(SpecModel):
    """What else could answer the users' requests, and what it asks for that."""

    name: Annotated[Word, LIVE] = Field(min_length=1, description="What pages and messages call it.")
    input_price: Annotated[Decimal, LIVE] = Field(description='Of a million tokens of prompts, as "0.15".')
    output_price: Annotated[Decimal, LIVE] = Field(description="Of a million tokens of answers.")


class ExpectedTraffic(SpecModel):
    """What users ask in a month, on average over the time that is looked at."""

    requests_per_month: Annotated[Tokens | None, LIVE] = Field(
        default=None, description="Each with as many tokens as a row of the test split had, as the evaluation counted them."
    )
    input_tokens_per_month: Annotated[Tokens | None, LIVE] = Field(default=None, description="Of prompts; instead of `requestsPerMonth`.")
    output_tokens_per_month: Annotated[Tokens | None, LIVE] = Field(default=None, description="Of answers; with `inputTokensPerMonth`.")


class Economics(SpecModel):
    """What serving is compared with in money: on the evaluation's page, and in `status.economics` by today's prices."""

    alternative: Alternative | None = None
    traffic: ExpectedTraffic | None = None
    pod_hourly_price: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="Of one model server. Default: of its accelerators, by their profile's hourlyPrice; without an accelerator no price is known.",
    )
    one_time_cost: Annotated[Decimal | None, LIVE] = Field(
        default=None,
        description="What was paid once besides the accelerators' time in `status.cost`: data, work, training without a price.",
    )


class Retention(SpecModel):
    """How long what is done with is kept."""

    jobs: Annotated[Duration, LIVE] = Field(
        default="24h",
        description="Jobs that ended, with their pods and logs, made from now on; at least 1h, so that their results are read.",
    )
    checkpoints: Annotated[int, LIVE] = Field(
        default=0,
        ge=0,
        le=20,
        description="Attempts of a revision whose checkpoints stay, newest first, once its artifact is there; until then all do.",
    )
    revisions: Annotated[int, LIVE] = Field(
        default=5,
        ge=1,
        le=9,
        description="Artifacts kept, newest first, with their data and evaluations; besides those what is live, what was live before it and "
        "what the spec asks for. A revision that was removed is trained again when the spec asks for it.",
    )


class Provider(SpecModel):
    """A hosted trainer, reserved."""

    type: Annotated[Literal["OpenAI", "Bedrock", "Vertex", "Cohere"], RETRAIN]


class Spec(SpecModel):
    """From a base model and a data set to a tuned model that serves."""

    model: Model
    data: Data
    method: Method
    training: Training | None = None
    compute: Compute = Compute()
    storage: Storage = Storage()
    retries: Retries = Retries()
    evaluation: Evaluation | None = None
    serving: Serving | None = None
    rollout: Rollout = Rollout()
    pods: Pods | None = None
    budget: Budget | None = None
    economics: Economics | None = None
    retention: Retention = Retention()
    provider: Provider | None = None
    retrain: Annotated[Word | None, RETRAIN] = Field(default=None, description="A new value trains again on purpose.")
    suspend: Annotated[bool, LIVE] = Field(default=False, description="Stop training (a checkpoint is kept) and hold the rollout.")
