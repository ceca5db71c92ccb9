"""`FineTune.status`: what the operator remembers and what it tells.

Committed before any child is built from it (status first), so a restart goes on from here. Timestamps are RFC 3339 in
UTC; scores are 0…1, larger is better; messages are at most 1 KiB, lists are bounded, the whole stays below 64 KiB: what is old
says less before it would not (`room`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Short = Annotated[str, Field(max_length=253)]
Text = Annotated[str, Field(max_length=1024)]
Time = Annotated[str, Field(max_length=64)]
Decimal = Annotated[str, Field(max_length=32)]
Count = Annotated[int, Field(ge=0)]


class StatusModel(BaseModel):
    """Frozen; camelCase on the wire; absent means absent (never null)."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """The wire form: aliases, without what is absent; an emptied object counts as absent.

        (Server-side apply makes null of an object whose last field its owner takes back, which no schema admits.)
        """
        wire: dict[str, Any] = _without_empty(self.model_dump(by_alias=True, exclude_none=True))
        return wire


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: left for key, given in value.items() if (left := _without_empty(given)) != {}}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


class Condition(StatusModel):
    """metav1.Condition."""

    type: Short
    status: Literal["True", "False", "Unknown"]
    reason: Short = Field(description="One CamelCase word for machines.")
    message: Text = Field(default="", description="What is the case, and what to do about it.")
    last_transition_time: Time
    observed_generation: Count = 0


class Score(StatusModel):
    """A metric on the sealed test split, with its interval."""

    score: Decimal
    low: Decimal | None = None
    high: Decimal | None = None
    n: Count | None = None


class Difference(StatusModel):
    """What one scores more than the other on the same rows (tuned and reference), with its paired bootstrap interval."""

    difference: Decimal
    low: Decimal
    high: Decimal
    n: Count


class FewShot(StatusModel):
    """The base model with solved training rows before each question, on some of the test rows; where there are no figures, why."""

    examples: Count | None = Field(default=None, description="That stood before each question: as many as fit.")
    score: Score | None = None
    alone: Score | None = Field(default=None, description="Of the same rows without them.")
    difference: Difference | None = Field(default=None, description="That the examples make.")
    unmeasured: Text | None = None


class Baseline(Score):
    """The reference's score, and of the base model what examples in its prompt do to it."""

    few_shot: FewShot | None = None


class Forgetting(StatusModel):
    """General text as the tuned model finds it, against the base model; where there are no figures, why."""

    percent: Decimal | None = Field(default=None, description="The rise of its perplexity, with its interval.")
    low: Decimal | None = None
    high: Decimal | None = None
    base: Decimal | None = Field(default=None, description="Perplexity under the base model.")
    tuned: Decimal | None = None
    kl: Decimal | None = Field(default=None, description="KL(base‖tuned) of the next token in nats, its mean.")
    kl_p95: Decimal | None = Field(default=None, description="What 95 % of the tokens stay below.")
    agreement_percent: Decimal | None = Field(default=None, description="Tokens of which both find the same one likeliest.")
    texts: Count | None = None
    tokens: Count | None = None
    unmeasured: Text | None = None


class Fidelity(StatusModel):
    """The model as served against the model as trained, on answers of the test split; where there are no figures, why."""

    kl: Decimal | None = Field(default=None, description="KL(trained‖served) of the next token in nats, its mean.")
    kl_p99: Decimal | None = Field(default=None, description="What 99 % of the tokens stay below.")
    kl_max: Decimal | None = None
    differs_percent: Decimal | None = Field(default=None, description="Tokens of which another one is the likeliest.")
    tokens: Count | None = None
    merged: bool | None = Field(default=None, description="Of a server that merges an adapter; false: of vLLM, which keeps it beside.")
    unmeasured: Text | None = None


class Answering(StatusModel):
    """How one model server answered the test rows of an evaluation: what its throughput is known by."""

    rows: int = Field(ge=1, le=2**53, description="That were answered.")
    seconds: Decimal = Field(description="In which at least one question was open.")
    input_tokens: int = Field(ge=1, le=2**53, description="Of all prompts, as the server counted them.")
    output_tokens: int = Field(ge=1, le=2**53)
    concurrency: int = Field(ge=1, le=2**53, description="Questions that were open at once, at most.")
    accelerator: Short | None = Field(default=None, description="The profile of its accelerators; absent on CPUs.")
    accelerators: Count | None = None
    runtime: Short | None = Field(default=None, description="Or the end of its image's name; absent where it was not recorded.")


class Scored(StatusModel):
    """One evaluation that was run: what of, against what, and what came out."""

    key: Short = Field(description="Digest of the metrics and of the reference: another key asks for another evaluation.")
    path: Short
    metric: Short
    score: Score
    difference: Difference | None = None
    few_shot: FewShot | None = None
    forgetting: Forgetting | None = None
    fidelity: Fidelity | None = None
    answering: Answering | None = None
    excluded: Count | None = Field(default=None, description="Test rows left out, for the live revision was trained on them.")


class Rows(StatusModel):
    """Rows of the data set, as prepare counted them."""

    read: Count = 0
    invalid: Count = 0
    duplicate: Count = 0
    near_duplicate: Count = 0
    too_long: Count = 0
    train: Count = 0
    validation: Count = 0
    test: Count = 0


class Charges(StatusModel):
    """Failed attempts by class; disruptions are counted and never charged."""

    error: Count = 0
    out_of_memory: Count = 0
    infrastructure: Count = 0
    disruption: Count = 0


class Totals(Charges):
    """All training attempts that ended, by how; `attempts` keeps the last ones only, and a fresh budget starts from 0."""

    succeeded: Count = 0
    stopped: Count = Field(default=0, description="Suspended, superseded, or out of budget.")


class Stopped(StatusModel):
    """Why a revision or an arm is not tried again, until the spec or the retry annotation changes."""

    reason: Short
    message: Text
    time: Time
    tried: Short = Field(description="Digest of the spec and the retry annotation that were tried.")


class Trouble(StatusModel):
    """A failure that is tried again."""

    reason: Short
    message: Text


class Estimate(StatusModel):
    """What prepare expects of the training, for accelerators."""

    memory_bytes: Count = Field(description="Of one rank, with passes of `passTokens`.")
    seconds: Count = 0
    cost: Decimal | None = Field(default=None, description="Of that time on all accelerators, by their profile's hourlyPrice.")
    memory: dict[str, Count] = Field(default_factory=dict, description="The same by component.", max_length=8)
    sharded: dict[str, Count] = Field(
        default_factory=dict,
        description="What ZeRO would divide among all ranks, and what each needs beside it, by component.",
        max_length=12,
    )
    recomputed: Count | None = Field(
        default=None, description="In place of `activations` where they are computed again; absent: they cannot be, or it is not known."
    )
    pass_tokens: int = Field(ge=1, description="Tokens of a forward pass, if memory sets no other limit.")
    longest: int = Field(ge=1, description="Tokens of the longest training row: no pass is smaller.")


class Meter(StatusModel):
    """A Job that scores with accelerators, by what its time costs."""

    number: Count
    since: Time | None = Field(default=None, description="Since when its time is not yet in `cost`; absent: it is.")
    gpus: Count
    gpu_hour: Decimal | None = None


class Revision(StatusModel):
    """What is known of one revision: the fields themselves are in its ControllerRevision."""

    name: Short
    created: Time
    tries: dict[str, int] = Field(default_factory=dict, description="Number of the Job in force, by stage.", max_length=8)
    meters: dict[str, Meter] = Field(
        default_factory=dict, description="The last Job whose accelerators are paid for, by stage.", max_length=4
    )
    model_digest: Short | None = None
    data_digest: Short | None = None
    rows: Rows | None = None
    estimate: Estimate | None = None
    dropped: Text | None = Field(default=None, description="What prepare warns of, and the first rows that were dropped.")
    baseline: Scored | None = None
    evaluated: Scored | None = None
    artifact: Short | None = Field(default=None, description="Path on the work volume.")
    artifact_digest: Short | None = None
    attempts: Count = 0
    charges: Charges = Charges()
    retry_at: Time | None = Field(default=None, description="The next try of a failed stage starts at this time.")
    trouble: Trouble | None = Field(default=None, description="Why the last try of the present stage failed.")
    unprobed: Text | None = Field(
        default=None,
        description="Why what it forgot, and how it is served, is not looked for any more: so the probe failed. Forgotten on another try.",
    )
    gate: Literal["Passed", "Failed", "NotNeeded"] | None = None
    promoted: bool = False
    stopped: Stopped | None = None
    checkpoints_kept: Count | None = Field(default=None, description="Attempts whose checkpoints stay; absent: all.")
    removed: Time | None = Field(
        default=None, description="Since when its artifact, data and evaluations are not kept any more: it is trained again if asked for."
    )


class Attempt(StatusModel):
    """One training attempt: a Job of `nodes` pods."""

    revision: Short
    number: Count
    started: Time
    finished: Time | None = None
    outcome: Literal["Running", "Succeeded", "Failed", "Disrupted", "Superseded", "Suspended", "OverBudget"] = "Running"
    failure_class: Short | None = None
    message: Text | None = None
    pod: Short | None = Field(default=None, description="The pod that was the cause of its end.")
    rank: Count | None = Field(default=None, description="That pod's place in the gang.")
    node: Short | None = Field(default=None, description="That pod's node; without a pod, one that had no room for all of the gang.")
    step: Count | None = None
    checkpoint: Count | None = Field(default=None, description="Step of the newest checkpoint that is known to be in its folder.")
    resumed_from_step: Count | None = None
    micro_batch_divisor: Count | None = Field(
        default=None, description="By what its micro-batch is divided, for memory ran out before; a step has as many tokens as ever."
    )
    began: Time | None = Field(default=None, description="Since when its time is not yet in `cost`.")
    gpus: Count | None = None
    gpu_hour: Decimal | None = Field(default=None, description="What one of them costs an hour.")
    layout: Short | None = Field(
        default=None,
        description="How its ranks hold the model: DDP, or a stage of ZeRO and what is offloaded; and whether activations are recomputed.",
    )
    folder: Short | None = Field(default=None, description="Its folder on the work volume, once rank 0 is known.")


class ScoringCost(StatusModel):
    """What all scoring with accelerators has cost, of Jobs that have ended: the time in which their pods had them."""

    hours: Decimal = "0"
    gpu_hours: Decimal = "0"
    amount: Decimal | None = None


class ServingCost(StatusModel):
    """What serves now, by the hour: nothing of it is in `total`."""

    pods: Count = Field(description="That the arms are to have, two of them while users are moved.")
    gpus: Count = 0
    per_hour: Decimal | None = Field(default=None, description="By economics.podHourlyPrice, or the profile's hourlyPrice.")


class Cost(StatusModel):
    """What all training has cost until its last mark: the time in which all pods of an attempt ran; and scoring and serving beside it."""

    hours: Decimal = "0"
    gpu_hours: Decimal = "0"
    amount: Decimal | None = Field(default=None, description="By the hourly prices of the operator's profiles.")
    currency: Short | None = None
    scoring: ScoringCost | None = None
    total: Decimal | None = Field(default=None, description="Training and scoring: what counts towards budget.maxCost.")
    serving: ServingCost | None = None


class Economics(StatusModel):
    """What serving costs and what the spec's alternative would, by today's prices; a figure that is not known is absent."""

    pods: Decimal | None = Field(
        default=None, description="Model servers that are counted: as many as the spec says, or as the traffic needs."
    )
    serving_per_month: Decimal | None = Field(default=None, description="Of these, for 730 hours.")
    per_million_tokens_at_full_use: Decimal | None = Field(
        default=None, description="Prompts and answers in the traffic's proportion, were they as busy all the time as in the evaluation."
    )
    per_million_tokens: Decimal | None = Field(default=None, description="At the stated traffic.")
    alternative: Short | None = None
    alternative_per_month: Decimal | None = Field(default=None, description="For the stated traffic.")
    alternative_per_million_tokens: Decimal | None = Field(default=None, description="Prompts and answers in the same proportion.")
    saving_per_month: Decimal | None = Field(default=None, description="Below 0: the alternative is cheaper.")
    cheaper_from_tokens_per_month: Decimal | None = Field(
        default=None, description="From which on the pods that the spec has at least cost less; absent also where they never do."
    )
    cheaper_to_tokens_per_month: Decimal | None = Field(
        default=None, description="What these pods can do; beyond it more have to be paid for."
    )
    paid_once: Decimal | None = Field(default=None, description="Training until now, and the spec's oneTimeCost.")
    break_even_months: Decimal | None = Field(
        default=None, description="Until savings have paid for that; absent also where they never do."
    )
    currency: Short | None = None
    message: Text = ""


class Checkpoint(StatusModel):
    """The newest committed checkpoint."""

    step: Count
    time: Time


class Training(StatusModel):
    """Progress of the running attempt, or the last of a finished one; written at 5 % marks and at checkpoints."""

    revision: Short
    attempt: Count
    step: Count
    total_steps: Count
    percent: Count
    loss: Decimal | None = None
    validation_loss: Decimal | None = None
    tokens_per_second: Decimal | None = None
    eta_seconds: Count | None = None
    checkpoint: Checkpoint | None = None
    best_step: Count | None = Field(
        default=None, description="Once it is over: the step whose weights are kept, of the lowest validation loss."
    )
    stopped_early: bool | None = Field(default=None, description="Whether patience ran out before all steps were made.")
    updated: Time


class Evaluation(StatusModel):
    """The two scores that the gate compares, for the newest revision."""

    metric: Short
    reference: Short = Field(description="What the tuned model is compared with: `base`, or a revision.")
    baseline: Baseline | None = None
    tuned: Score | None = None
    improvement: Difference | None = None
    forgetting: Forgetting | None = None
    fidelity: Fidelity | None = None
    verdict: Short | None = None
    message: Text | None = None


class Arm(StatusModel):
    """Something that serves: a revision under one pod template."""

    name: Short
    revision: Short = Field(description="A revision's name, or `base`.")
    promoted: bool = False
    stopped: Stopped | None = None


class Stage(StatusModel):
    """When a stage of the newest revision began and ended."""

    name: Short
    revision: Short
    started: Time
    finished: Time | None = None


class Experiment(StatusModel):
    """The time in which the split was fixed: what an A/B test compares."""

    weight: Count = Field(description="Percent of the users on the new arm.")
    since: Time
    until: Time | None = Field(default=None, description="Absent: it goes on.")


class Rollout(StatusModel):
    """The running or last rollout; `memory` is what `decide.rollout` needs to go on after a restart."""

    name: Short | None = Field(default=None, description="What the annotation finetune.dev/rollout calls it.")
    arm: Short
    revision: Short
    stable: Short
    state: Short
    weight: Count
    step: Count = 0
    steps: Count = 0
    capacity: Count | None = Field(
        default=None, description="Pods that both arms keep while users are moved, where an autoscaler sets them: what the load needs."
    )
    next_step_at: Time | None = None
    experiment: Experiment | None = None
    evidence: list[Text] = Field(default_factory=list, max_length=16)
    last_decision: Text | None = None
    memory: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class Control(StatusModel):
    """What the annotation finetune.dev/rollout asks of a rollout, as it was judged when it was first seen."""

    asked: Short = Field(description="The annotation's value.")
    outcome: Literal["Accepted", "Ignored"]
    message: Text
    time: Time
    in_force: Short | None = Field(default=None, description="Of an ignored value: the accepted one before it, which holds on.")


class Cleaning(StatusModel):
    """What retention removes from the work volume: said here before the Job that does it is made."""

    number: Count = Field(default=0, description="Of the Job in force, or of the last one; other things to remove are another Job.")
    revisions: list[Short] = Field(default_factory=list, max_length=32, description="Of these everything is removed.")
    checkpoints: list[Short] = Field(default_factory=list, max_length=10, description="Of these the checkpoints of older attempts are.")
    keep: Count = Field(default=0, description="Attempts of each of `checkpoints` whose checkpoints stay.")
    failures: Count = 0
    retry_at: Time | None = Field(default=None, description="The next try of a failed Job starts at this time.")
    forgotten: list[Short] = Field(
        default_factory=list, max_length=32, description="Revisions for which there is no room in the status: removed with the next Job."
    )


class Advice(StatusModel):
    """What a stage advises: it stops nothing."""

    stage: Short = Field(description="prepare, baseline or evaluate.")
    code: Short = Field(description="One CamelCase word for machines.")
    message: Text = Field(description="What was found.")
    fix: Text = Field(default="", description="What may be done about it.")


class Status(StatusModel):
    """Everything the operator says of a FineTune."""

    observed_generation: int = Field(default=0, ge=-1, description="The generation of the spec that this is about; -1: not seen yet.")
    phase: Short = "Pending"
    phase_since: Time | None = Field(default=None, description="Since when it is in this phase for this reason.")
    conditions: list[Condition] = Field(default_factory=list, max_length=16)
    revision: Short | None = Field(default=None, description="The revision that the spec asks for.")
    live_revision: Short | None = Field(default=None, description="The revision that serves the users; `base` is the untouched model.")
    live_arm: Short | None = None
    previous_revision: Short | None = Field(default=None, description="The revision that served the users before: a revert finds it kept.")
    revisions: list[Revision] = Field(default_factory=list, max_length=10)
    arms: list[Arm] = Field(default_factory=list, max_length=10)
    attempts: list[Attempt] = Field(default_factory=list, max_length=20)
    totals: Totals = Totals()
    cost: Cost = Cost()
    economics: Economics | None = None
    stages: list[Stage] = Field(default_factory=list, max_length=20)
    training: Training | None = None
    evaluation: Evaluation | None = None
    advice: list[Advice] | None = Field(
        default=None, max_length=16, description="What the stages of the newest revision advise, in their order; the pages have all of it."
    )
    rollout: Rollout | None = None
    control: Control | None = None
    cleaning: Cleaning | None = None
    progress: Short | None = Field(default=None, description="Progress of the training that is not over, for the column.")
    eta: Short | None = None
    score: Short | None = Field(default=None, description="Reference and tuned score, for the column.")
    weight: Short | None = Field(default=None, description="Share of users on the newest arm, for the column.")
    attempt: Short | None = None
    reason: Short | None = None
    endpoint: Short | None = Field(default=None, description="The users' address inside the cluster.")
    url: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="The users' address outside of it.")
    replicas: Count | None = Field(default=None, description="Ready pods of the arms that users are on: for an autoscaler of the FineTune.")
    selector: Text | None = Field(default=None, description="Those arms' pods; absent where serving.autoscaling has the replicas in hand.")
    extra_kinds: list[Short] | None = Field(
        default=None, max_length=8, description="Kinds of children that not every FineTune has and this one does, or may still have."
    )
