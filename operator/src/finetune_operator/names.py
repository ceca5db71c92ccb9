"""Every label, annotation, port, path and derived name, once.

Names are pure functions of the FineTune's name (≤ 40 characters) and of digests, so that each child is found
again after any restart, and none is made twice. All results are DNS labels of at most 63 characters.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "finetune.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "FineTune"
FIELD_MANAGER: Final = "finetune-operator"

# Labels. Every child carries MANAGED_BY and NAME: watches select by the first, caches index by the second.
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
NAME: Final = f"{GROUP}/name"
REVISION: Final = f"{GROUP}/revision"
STAGE: Final = f"{GROUP}/stage"  # fetch, prepare, baseline, train, evaluate, clean
ATTEMPT: Final = f"{GROUP}/attempt"  # number of the training attempt
ARM: Final = f"{GROUP}/arm"  # name of the arm that a pod serves
COMPONENT: Final = f"{GROUP}/component"  # stage, arm, router, volume, revision
ASKED: Final = f"{GROUP}/asked"  # of a stage's Job: digest of what decides where its pods may go
KEY: Final = f"{GROUP}/evaluation"  # of a scoring stage's Job: what is asked and against what, as the evaluation's key has it
VOLUME: Final = f"{GROUP}/volume"  # name of the work volume's claim: pods that mount it are kept together

# Kubernetes' own.
JOB_NAME: Final = "batch.kubernetes.io/job-name"  # label of a Job's pods
JOB_INDEX: Final = "batch.kubernetes.io/job-completion-index"  # annotation of an Indexed Job's pods: the rank
QUEUE: Final = "kueue.x-k8s.io/queue-name"  # on the Jobs of a gang that a LocalQueue admits; Kueue's own label
QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"  # on the same, the place in it: a WorkloadPriorityClass; Kueue's own label

# Annotations.
RUN_CONFIG: Final = f"{GROUP}/run-config"  # on stage pods: the trainer's run configuration
RETRY: Final = f"{GROUP}/retry"  # on a FineTune, by the user: a new value tries a failed or rejected revision again
CONTROL: Final = f"{GROUP}/rollout"  # on a FineTune, by the user: verb:rollout, what is asked of the rollout of that name
NUDGE: Final = f"{GROUP}/nudge"  # on router pods: a change makes the kubelet sync the mounted document
POD_ANNOTATIONS: Final = f"{GROUP}/pod-annotations"  # on the routers' Deployment: names of the user's annotations of its pods
MANIFEST: Final = f"{GROUP}/manifest"  # on what exposes a FineTune: digest of what the operator wants of it

SELECTOR: Final = f"{MANAGED_BY}={FIELD_MANAGER}"

# Ports of the pods.
PROGRESS_PORT: Final = 8080  # trainer: /progress, /metrics, /healthz
MODEL_PORT: Final = 8000  # model server: OpenAI API, /readyz
TRAFFIC_PORT: Final = 10000  # router: users
TLS_PORT: Final = 10443  # router: users, over TLS
CONTROL_PORT: Final = 10001  # router: signed pushes
ROUTER_METRICS_PORT: Final = 10002  # router: /ready, /stats/prometheus
DRAIN_PORT: Final = 10003  # router: /drain
MASTER_PORT: Final = 29500  # torchrun's rendezvous
SERVICE_PORT: Final = 80  # the users' address
SERVICE_TLS_PORT: Final = 443  # the same over TLS

# Paths inside the pods (docs/contracts.md).
WORK: Final = "/work"
CONFIG_DIR: Final = "/etc/finetune"
SOURCES_DIR: Final = "/etc/finetune/sources"
SECRETS_DIR: Final = "/etc/finetune/secrets"  # of data sources, a folder each
METRIC_DIR: Final = "/metric"  # in/rows.jsonl and out/scores.jsonl of a metric's own image
USER_ID: Final = 10001
STOPPED: Final = 25  # the exit code of a rank that was asked to stop and has saved its checkpoint

STAGES: Final = ("fetch", "prepare", "baseline", "train", "evaluate")
PROBE: Final = "probe"  # the container before an evaluation, and the trainer's command in it
ASK: Final = "ask"  # the container that has the rows answered where an image of the user's scores them, and the trainer's command in it
METRIC: Final = "metric"  # that image's container
SERVER: Final = "server"  # the container that serves the model, in an arm and beside an evaluation
BEFORE: Final = (PROBE, ASK, METRIC)  # containers that end before the trainer's own begins
CLEAN: Final = "clean"  # of no revision: it removes what retention no longer keeps
SCORING: Final = ("baseline", "evaluate")  # stages


def labels(finetune: str, component: str, **extra: str) -> dict[str, str]:
    """Labels of a child: who manages it, whose it is, what it is; `extra` keys are label names of this module."""
    return {
        MANAGED_BY: FIELD_MANAGER,
        "app.kubernetes.io/name": "finetune",
        "app.kubernetes.io/instance": finetune,
        NAME: finetune,
        COMPONENT: component,
        **extra,
    }


def work_volume(finetune: str) -> str:
    """The claim that holds models, data, checkpoints and artifacts."""
    return f"{finetune}-work"


def controller_revision(finetune: str, revision: str) -> str:
    """The ControllerRevision that keeps a revision's fields, or an arm's template."""
    return f"{finetune}-{revision}"


def stage_job(finetune: str, revision: str, stage: str, number: int = 1) -> str:
    """The Job of a stage; the second and later tries carry their number."""
    base = f"{finetune}-{revision}-{stage}"
    return base if number == 1 else f"{base}-{number}"


def attempt_path(revision: str, number: int) -> str:
    """What the folders of an attempt on the work volume begin with: each of its gangs adds `-` and the uid of its rank 0."""
    return f"{WORK}/revisions/{revision}/a{number}"


def evaluation_path(revision: str, kind: str, key: str) -> str:
    """The folder of an evaluation: `kind` is `baseline` or `tuned`."""
    return f"{WORK}/revisions/{revision}/evaluations/{kind}-{key}"


def evaluation_key(path: str) -> str:
    """The key in the name of an evaluation's folder; empty where there is no path."""
    return path.rpartition("-")[2]


def attempt_job(finetune: str, revision: str, attempt: int) -> str:
    """The Job of a training attempt, and its headless Service."""
    return f"{finetune}-{revision}-a{attempt}"


def clean_job(finetune: str, number: int) -> str:
    """The Job that removes what the status lists under that number."""
    return f"{finetune}-{CLEAN}-{number}"


def cleans(finetune: str, job: str) -> bool:
    """Is it one of those Jobs?"""
    return job.startswith(f"{finetune}-{CLEAN}-")


def arm(finetune: str, digest: str) -> str:
    """The Deployment and Service of an arm."""
    return f"{finetune}-{digest}"


def router(finetune: str) -> str:
    """The router's Deployment, ConfigMap and PodDisruptionBudget."""
    return f"{finetune}-router"


def users_service(finetune: str) -> str:
    """The Service that users call."""
    return finetune
