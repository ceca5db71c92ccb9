"""The snapshot that `observe` takes and every decision is made from: frozen values, nothing that can be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from finetune_operator.api.fields import digest
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Status
from finetune_operator.build.pods import Accelerator
from finetune_operator.traffic import RouterState, ServerState
from finetune_operator.workloads.endings import Fall
from finetune_operator.workloads.run import ABSENT, Run, Waiting


@dataclass(frozen=True)
class ArmHealth:
    """An arm's pods: how many are wanted, serve, and what one that does not serve says; how many its autoscaler's figures ask for, where
    the operator made it one and it has any; the last of their containers that ended badly."""

    wanted: int = 0
    ready: int = 0
    pods: int = 0
    restarts: int = 0
    waiting: Waiting | None = None
    needed: int | None = None
    fall: Fall | None = None


@dataclass(frozen=True)
class Question:
    """A guard's PromQL with the operator's names put in, of one arm or (`arm` empty) of none in particular.

    `since` is when the step began: questions of two steps are not the same one. `window` is for how many seconds it has lasted.
    """

    guard: str
    arm: str
    expression: str
    since: str
    window: int = field(compare=False)

    @property
    def text(self) -> str:
        """What Prometheus is asked."""
        return self.expression.replace("${window}", f"{self.window}s")


@dataclass(frozen=True)
class Answer:
    """Prometheus' answer: a number, None where it has none, or why it could not be asked."""

    guard: str
    arm: str
    value: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Exposure:
    """An object that lets users outside the cluster call: is it there, what its controller says (as a condition, empty while it says
    nothing), and what keeps it from being made."""

    there: bool = False
    status: str = ""
    reason: str = ""
    message: str = ""
    missing: Waiting | None = None


@dataclass(frozen=True)
class Observed:
    """One FineTune and everything that is its own, at one moment.

    `retrain`, `redeploy` and `reevaluate` are the spec's fields of that class as the user wrote them, in canonical form;
    `asked` is what the user may change to have tried again what was given up;
    `progress` is what the Jobs' leaders say, by Job;
    `control` is what the user asks of a rollout, as annotated;
    `profiles` are the operator's accelerators by name, `ingress_annotations` those that it lets onto an Ingress (`…*`: that begin so);
    `prometheus` says whether the operator knows one, `vllm` whether it has its image;
    `exposures` are the objects by kind that let users outside the cluster call, of the kinds that were looked for;
    `autoscaled`: there is a HorizontalPodAutoscaler of its arms, or may be;
    `revisions` ({fields, resolved}) and `templates` ({revision, fields, template}) are the ControllerRevisions' data by name.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    spec: Spec
    status: Status
    retrain: Mapping[str, Any]
    redeploy: Mapping[str, Any]
    reevaluate: Mapping[str, Any]
    asked: Mapping[str, Any]
    now: datetime
    control: str = ""
    revisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    profiles: Mapping[str, Accelerator] = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    missing: Mapping[str, Waiting] = field(default_factory=dict)
    progress: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: Mapping[str, ArmHealth] = field(default_factory=dict)
    routers: tuple[RouterState, ...] = ()
    servers: tuple[ServerState, ...] = ()
    answers: tuple[Answer, ...] = ()
    prometheus: bool = True
    vllm: bool = True
    routers_wanted: int = 0
    routers_starting: bool = False
    router_waiting: Waiting | None = None
    ingress_annotations: tuple[str, ...] = ()
    exposures: Mapping[str, Exposure] = field(default_factory=dict)
    autoscaled: bool = False

    @cached_property
    def tried(self) -> str:
        """Digest of what is asked: another one is a reason to try again what was given up."""
        return digest(dict(self.asked))

    @property
    def profile(self) -> Accelerator | None:
        """Of the accelerator that the spec names; None where it names none, or one that the operator does not know."""
        return self.profiles.get(self.spec.compute.accelerator or "")

    def run(self, job: str) -> Run:
        """The Job of that name, read; `ABSENT` when there is none."""
        return self.runs.get(job, ABSENT)
