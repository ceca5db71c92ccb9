"""Condition types, phases and reasons, each once, with what it means to a user."""

from __future__ import annotations

from typing import Final

# Condition types.
READY: Final = "Ready"  # True: Live, Trained or NotNeeded
RECONCILING: Final = "Reconciling"  # kstatus: present and True while work goes on
STALLED: Final = "Stalled"  # kstatus: present and True when only a user's change helps
DATA_PREPARED: Final = "DataPrepared"
BASELINE_SCORED: Final = "BaselineScored"
TRAINED: Final = "Trained"
EVALUATED: Final = "Evaluated"
AVAILABLE: Final = "Available"  # users are served
ROLLED_OUT: Final = "RolledOut"
EXPOSED: Final = "Exposed"  # users outside the cluster can call; there only where serving.expose asks for it

# Phases, derived from the conditions' inputs, for people.
PENDING: Final = "Pending"
FETCHING: Final = "Fetching"
PREPARING: Final = "Preparing"
SCORING_BASELINE: Final = "ScoringBaseline"
QUEUED: Final = "Queued"
TRAINING: Final = "Training"
EVALUATING: Final = "Evaluating"
DEPLOYING: Final = "Deploying"
ROLLING_OUT: Final = "RollingOut"
PAUSED: Final = "Paused"
BAKING: Final = "Baking"
LIVE: Final = "Live"
TRAINED_ONLY: Final = "Trained"
NOT_NEEDED: Final = "NotNeeded"
REJECTED: Final = "Rejected"
SUSPENDED: Final = "Suspended"
FAILED: Final = "Failed"
TERMINATING: Final = "Terminating"

PHASES: Final = (
    PENDING, FETCHING, PREPARING, SCORING_BASELINE, QUEUED, TRAINING, EVALUATING, DEPLOYING, ROLLING_OUT,
    PAUSED, BAKING, LIVE, TRAINED_ONLY, NOT_NEEDED, REJECTED, SUSPENDED, FAILED, TERMINATING,
)  # fmt: skip

# Phases that end well, and those that only a change by the user moves on.
READY_PHASES: Final = frozenset({LIVE, TRAINED_ONLY, NOT_NEEDED})
STALLED_PHASES: Final = frozenset({REJECTED, FAILED})

# Reasons of Ready=False that are not simply the phase.
INVALID_SPEC: Final = "InvalidSpec"
SOURCE_MISSING: Final = "SourceMissing"  # a ConfigMap, claim or key that the spec names is not there
SECRET_MISSING: Final = "SecretMissing"
STORAGE_CLASS_MISSING: Final = "StorageClassMissing"
UNSCHEDULABLE: Final = "Unschedulable"
IMAGE_UNAVAILABLE: Final = "ImageUnavailable"
MOUNT_FAILED: Final = "MountFailed"
NOT_STARTED: Final = "NotStarted"  # pods do not start within deadlines.start, and nothing says why
NOT_ADMITTED: Final = "NotAdmitted"  # a queue has not admitted a Job within deadlines.admission
DEADLINE_EXCEEDED: Final = "DeadlineExceeded"  # a Job has not ended in the time that deadlines gives its stage
REFUSED: Final = "Refused"  # the API server refused a child, say for a quota or an admission policy
NAME_TAKEN: Final = "NameTaken"  # a child's name belongs to somebody else
DATA_INVALID: Final = "DataInvalid"
DOES_NOT_FIT: Final = "DoesNotFit"  # by prepare's estimate a rank needs more memory than its accelerator has
NEEDS_SHARED_VOLUME: Final = "NeedsSharedVolume"  # the gang fills more machines than may mount its volume
GATE_FAILED: Final = "GateFailed"
GUARD_FAILED: Final = "GuardFailed"
PAUSED_BY_USER: Final = "PausedByUser"  # the annotation finetune.dev/rollout holds the rollout where it is
ABORTED: Final = "Aborted"  # the same annotation took everybody back
CONTROL_IGNORED: Final = "ControlIgnored"  # of an Event alone: that annotation is without effect, and why
GUARD_UNDECIDED: Final = "GuardUndecided"  # held: both arms are bad, or there is not what a guard asks for
TOO_FEW_PODS: Final = "TooFewPods"  # held: the new arm has not had the pods that the load needs for rollout.progressDeadline
NO_READY_PODS: Final = "NoReadyPods"  # what is live has lost all its pods
NEVER_READY: Final = "NeverReady"
NON_FINITE: Final = "NonFinite"
RETRIES_EXHAUSTED: Final = "RetriesExhausted"
BUDGET_EXHAUSTED: Final = "BudgetExhausted"
# What is said where guards ask for a Prometheus and the operator's settings name none.
PROMETHEUS_UNKNOWN: Final = (
    "spec.rollout.guards.queries need a Prometheus, and the operator knows none: set the chart's value prometheus.url, or remove them"
)
ADVICE: Final = "Advice"  # of an Event alone: what a stage advises
CLEANING_FAILED: Final = "CleaningFailed"  # of an Event alone: what retention no longer keeps could not be removed
EXPOSURE_FORBIDDEN: Final = "ExposureForbidden"  # the chart does not let the operator make what serving.expose asks for
GATEWAY_API_MISSING: Final = "GatewayApiMissing"  # the cluster knows no HTTPRoutes
ANNOTATION_REFUSED: Final = "AnnotationRefused"  # one that the operator's setting does not let onto an Ingress
NO_VLLM_IMAGE: Final = "NoVllmImage"  # vLLM is to serve, and the operator's settings name no image of it
PRICE_UNKNOWN: Final = "PriceUnknown"  # budget.maxCost, and no price to keep it by
METRIC_FAILED: Final = "MetricFailed"  # the image of a metric of the user's own ended badly
METRIC_TOO_SLOW: Final = "MetricTooSlow"  # or not within its timeout
BASELINE_GOOD_ENOUGH: Final = "BaselineGoodEnough"
