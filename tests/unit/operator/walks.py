"""Random walks of a FineTune without a cluster: what is observed is drawn, what was decided is believed.

A step's `luck` decides what is seen: with 0 everything goes well, so that a failing walk shrinks to its few unlucky steps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from random import Random
from typing import Any

from finetune_operator import conditions as c
from finetune_operator import kinds, names, plan, status
from finetune_operator.api.fields import REDEPLOY, REEVALUATE, RETRAIN, digest, extract
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Status
from finetune_operator.build.pods import Accelerator, Images, Owner
from finetune_operator.decide import decide
from finetune_operator.decide.draft import Draft
from finetune_operator.errors import SpecError
from finetune_operator.observed import ArmHealth, Observed
from finetune_operator.traffic import ArmTotals, RouterState
from finetune_operator.workloads.run import ABSENT, Failure, FailureClass, Run, Waited, Waiting
from hypothesis import HealthCheck, Phase, settings

from tests.unit.operator.helpers import NOW, good_outcomes, make_spec, scores

EXAMPLES = float(os.environ.get("FINETUNE_EXAMPLES", "1"))  # times as many as in CI: a night's search, or a mutant's quick look


def examples(count: int) -> settings:
    """So many examples, the same ones in each run."""
    return settings(
        max_examples=max(1, int(count * EXAMPLES)), derandomize=True, deadline=None, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


ODD: tuple[Any, ...] = ("x", math.inf, -math.inf, math.nan, None, 10**400, -7, 1e300, [], {"time": 3}, {"step": "x", "time": "then"}, True)
CLASSES: tuple[FailureClass, ...] = ("error", "user", "outOfMemory", "stalled", "nonFinite", "infrastructure", "disruption")
# What a user may turn the spec into; each is applied to the first one, so that going back to `first` is a revert.
SPECS: dict[str, dict[str, Any]] = {
    "first": {},
    "other rate": {"training": {"learningRate": "1e-3"}},
    "third rate": {"training": {"learningRate": "3e-3"}},
    "more tokens": {"evaluation": {"metrics": [{"type": "ExactMatch"}], "maxNewTokens": 7}},
    "strict gate": {"evaluation": {"metrics": [{"type": "ExactMatch"}], "gate": {"minScore": "0.9"}}},
    "skips training": {"evaluation": {"metrics": [{"type": "ExactMatch"}], "skipTrainingIfBaselineAtLeast": "0.05"}},
    "other server": {"serving": {"replicas": 2, "image": "other:1"}},
    "more replicas": {"serving": {"replicas": 3}},
    "train only": {"serving": None},
    "keeps one": {"retention": {"revisions": 1}},
    "fourth rate, keeps one": {"training": {"learningRate": "4e-3"}, "retention": {"revisions": 1}},
    "fifth rate, keeps one": {"training": {"learningRate": "5e-3"}, "retention": {"revisions": 1}},
    "suspended": {"suspend": True},
    "suspended train only": {"suspend": True, "serving": None},
    "no retries": {"retries": {"error": 0, "outOfMemory": 0, "infrastructure": 0}},
    "at once": {"rollout": {"steps": [{"weight": 100}], "bake": "0s", "progressDeadline": "5s"}},
    "unknown accelerator": {"compute": {"accelerator": "b9"}},
    "accelerator": {"compute": {"accelerator": "h100", "gpusPerNode": 2}},
    "more machines than the volume": {"compute": {"accelerator": "h100", "gpusPerNode": 8, "nodes": 4}},
    "short": {"budget": {"maxDuration": "30s"}},
    "cheap": {"compute": {"accelerator": "h100"}, "budget": {"maxCost": "0.5"}},
    "impatient": {"compute": {"accelerator": "h100"}, "deadlines": {"admission": "4h", "schedule": "1h", "start": "5m", "scoring": "10s"}},
    "cheap without a price": {"budget": {"maxCost": "0.5"}},
}
PROFILES = {"h100": Accelerator("h100", "nvidia.com/gpu", hourly_price=2.0, memory_bytes=80 * 10**9)}
GOOD_RESULTS = {stage: dict(outcomes[0].result) for stage, outcomes in good_outcomes().items()}
BAD_RESULTS: tuple[dict[str, Any], ...] = (
    {}, {"digest": None}, {"metrics": {}}, {"metrics": {"ExactMatch": {"score": "nan"}}},
    {"metrics": {"M": {"score": 10**400, "low": 0, "high": 1, "n": 4}}},
    scores(math.nan), scores(0.9, (math.nan, math.nan)), {"artifact": "", "step": math.nan},
    {"artifact": "x" * 9000, "digest": "y" * 9000, "step": -7, "totalSteps": "many"}, scores(0.1, (-0.8, -0.4)), scores(0.97),
    {**scores(0.9, (0.1, 0.2)), "path": "/work/evaluations/tuned-otherwise"},
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What happens before a decision: an edit (or none), luck, time, and whether the user asks for another try."""

    spec: str | None = None
    luck: int = 0
    seconds: float = 1.0
    retry: bool = False
    control: str | None = None  # {} stands for the rollout that runs; empty: the annotation is taken away


@cache
def _read(name: str) -> tuple[Spec, dict[str, Any], dict[str, Any], dict[str, Any]]:
    written = make_spec(**SPECS[name])
    return Spec.model_validate(written), *(extract(written, Spec, kind) for kind in (RETRAIN, REDEPLOY, REEVALUATE))


def revision_of(name: str) -> str:
    """What the revision of that spec is called."""
    return digest(_read(name)[1])


@dataclass
class Walk:
    """The FineTune on its way. `problem` is what the last cycle could not make."""

    spec: str = "first"
    now: datetime = NOW
    retries: int = 0
    control: str = ""
    status: Status = field(default_factory=Status)
    revisions: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    templates: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    draft: Draft | None = None
    over: dict[str, Run] = field(default_factory=dict)  # Jobs that have ended, or are gone: they stay so
    cleaning: frozenset[str] = frozenset()  # Jobs that were made to clean the volume
    counted: int = 0
    problem: Waiting | None = None

    def step(self, step: Step) -> tuple[Observed, Draft, Status]:
        """What was seen, what was decided, and the status as it is read again in the next cycle."""
        self.spec, self.now = step.spec or self.spec, self.now + timedelta(seconds=step.seconds)
        self.retries += step.retry
        if step.control is not None:
            self.control = step.control.format(self.status.rollout.name if self.status.rollout else "none")
        luck = Random(step.luck) if step.luck else None
        self.problem = Waiting(c.REFUSED, "exceeded quota") if luck and luck.random() < 0.1 else None
        return self.decide(self._observed(luck))

    def decide(self, o: Observed) -> tuple[Observed, Draft, Status]:
        """The decision for that snapshot, believed."""
        d = decide(o)
        wire = status.compute(o, d, self.problem).to_dict()
        self.status, self.draft = Status.model_validate(json.loads(json.dumps(wire))), d
        if d.clean and self.status.cleaning:
            self.cleaning |= {names.clean_job("bot", self.status.cleaning.number)}
        return o, d, self.status

    def believe(self, o: Observed, d: Draft) -> None:
        """The ControllerRevisions that the decision asks for are there from now on."""
        if d.revision.name in self.revisions and all(arm.name in self.templates for arm in d.arms):
            return
        for kind, manifest in manifests(o, d):
            if kind is kinds.CONTROLLER_REVISION:
                labels = manifest["metadata"]["labels"]
                kept = self.templates if labels[names.COMPONENT] == "arm" else self.revisions
                kept[labels[names.REVISION]] = manifest["data"]

    def _observed(self, luck: Random | None) -> Observed:
        spec, retrain, redeploy, reevaluate = _read(self.spec)
        seen = _Seen(self, luck)
        return Observed(
            namespace="ml", name="bot", uid="uid-bot", generation=1 + list(SPECS).index(self.spec), spec=spec, status=self.status,
            retrain=retrain, redeploy=redeploy, reevaluate=reevaluate, asked={"spec": self.spec, "retry": self.retries},
            now=self.now, control=self.control, profiles=PROFILES,
            revisions=dict(self.revisions), templates=dict(self.templates), runs=seen.runs(),
            missing=seen.missing(), progress=seen.progress(), arms=seen.arms(), routers=seen.routers(),
            routers_wanted=2, router_waiting=seen.waiting(),
        )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What is drawn of Jobs, arms and routers."""

    walk: Walk
    luck: Random | None

    def well(self, share: float = 0.7) -> bool:
        return self.luck is None or self.luck.random() < share

    def runs(self) -> dict[str, Run]:
        found = {}
        for revision in self.walk.status.revisions:
            for stage, number in revision.tries.items():
                found |= self._run(names.stage_job("bot", revision.name, stage, number), stage)
        for attempt in self.walk.status.attempts:
            found |= self._run(job := names.attempt_job("bot", attempt.revision, attempt.number), "train")
            if attempt.outcome != "Running" and job not in found:
                self.walk.over[job] = ABSENT
        for job in self.walk.cleaning:
            found |= self._run(job, names.CLEAN)
        self.walk.over |= {name: run for name, run in found.items() if run.state in ("Succeeded", "Failed")}
        return {name: run for name, run in found.items() if run is not ABSENT}

    def _run(self, name: str, stage: str) -> dict[str, Run]:
        if name in self.walk.over:
            return {name: self.walk.over[name]}
        uid = f"{name}-uid" if stage == "train" else None
        artifact = {"artifact": f"/work/{name}/artifact"} if stage == "train" else {}
        if self.well():
            return {name: Run(name, "Succeeded", result={**GOOD_RESULTS[stage], **artifact}, leader_uid=uid)}
        assert self.luck
        state = self.luck.choice(("Absent", "Waiting", "Running", "Running", "Ending", "Succeeded", "Failed", "Failed"))
        match state:
            case "Absent":
                return {}
            case "Succeeded":
                return {name: Run(name, "Succeeded", result=self.luck.choice(BAD_RESULTS), leader_uid=uid)}
            case "Failed":
                kind = self.luck.choice(CLASSES)
                failure = Failure(kind, "Reason", "words " * self.luck.choice((1, 1, 900)), f"{name}-0", "node-1", {"step": 7})
                return {name: Run(name, "Failed", failure=failure if self.well() else None, leader_uid=uid)}
            case "Waiting":
                run = Run(name, "Waiting", waiting=self.waiting(), suspended=self.well(0.3), leader_uid=uid if self.well() else None)
                return {name: replace(run, waited=self.waited(), since=self.since(), probing=self.well(0.1))}
            case _:
                return {name: Run(name, state, leader_uid=uid, leader_ip="10.0.0.1", since=self.since())}  # type: ignore[arg-type]

    def waited(self) -> Waited:
        return Waited(*(None if self.well() else 3600.0 * self.luck.randrange(12) for _ in range(3)) if self.luck else ())

    def since(self) -> datetime | None:
        return None if self.luck is None or self.well(0.2) else self.walk.now - timedelta(hours=self.luck.randrange(-1, 30))

    def waiting(self) -> Waiting | None:
        return None if self.well() else Waiting("Odd reason!", "the node has no room " * 80)

    def missing(self) -> dict[str, Waiting]:
        return {} if self.well(0.9) else {"fetch": Waiting(c.SOURCE_MISSING, "no ConfigMap"), "evaluate": Waiting(c.SECRET_MISSING, "no")}

    def progress(self) -> dict[str, Mapping[str, Any]]:
        jobs = [names.attempt_job("bot", a.revision, a.number) for a in self.walk.status.attempts if a.outcome == "Running"]
        if self.luck is None:
            return {}
        saved = {"step": 5, "time": "2026-01-01T12:00:00Z"} if self.luck.random() < 0.5 else {}
        said = {"step": self.luck.randrange(60), "totalSteps": 50, "loss": 0.4, "etaSeconds": 7, "checkpoint": saved}
        jobs += [names.stage_job("bot", r.name, stage, number) for r in self.walk.status.revisions for stage, number in r.tries.items()]
        odd = self.luck.choice(ODD)
        keys = (
            "step",
            "totalSteps",
            "loss",
            "percent",
            "checkpoint",
            "quietSeconds",
            "secondsPerStep",
            "resumedFromStep",
            "etaSeconds",
            "state",
        )
        nonsense = {key: odd for key in keys if self.well(0.8)}
        return {job: said if self.well(0.8) else {"totalSteps": 50, **nonsense} for job in jobs}

    def arms(self) -> dict[str, ArmHealth]:
        wanted = self.walk.draft.arms if self.walk.draft else ()
        return {arm.name: ArmHealth(2, 2 if self.well(0.8) else 0, 2, 0, self.waiting()) for arm in wanted if self.well(0.95)}

    def routers(self) -> tuple[RouterState, ...]:
        """Routers that serve what was last decided, unless luck says otherwise; their counters only grow."""
        routing = self.walk.draft.routing if self.walk.draft else None
        if routing is None:
            return ()
        self.walk.counted += 100
        states = []
        for pod in ("router-0", "router-1"):
            if not self.well(0.9):
                states.append(RouterState(pod, pod, "2026-01-01T00:00:00Z", ready=False, error="refused"))
                continue
            totals = {arm.name: self._totals() for arm in (self.walk.draft.arms if self.walk.draft else ())}
            version = routing.structure.version if self.well(0.9) else "other"
            weight = routing.weight if self.well(0.9) else 0
            states.append(RouterState(pod, pod, "2026-01-01T00:00:00Z", ready=True, version=version, weight=weight, totals=totals))
        return tuple(states)

    def _totals(self) -> ArmTotals:
        requests = self.walk.counted
        errors = 0 if self.well(0.9) else requests // 2
        slow = 0 if self.well(0.9) else requests
        return ArmTotals(requests, errors, ((100.0, requests - slow), (math.inf, requests)), 2)


@cache
def _after(steps: int) -> Walk:
    walk = Walk() if steps == 0 else lucky(steps - 1)
    if steps:
        o, d, _ = walk.step(Step(seconds=5.0))
        walk.believe(o, d)
    return walk


RATES = ("first", "other rate", "third rate", "fourth rate, keeps one", "fifth rate, keeps one")
LIFE = 20  # steps in which everything goes well until an edit is live and at rest


@cache
def _edited(edits: int) -> Walk:
    walk = lucky(LIFE) if edits == 1 else edited(edits - 1)
    for step in range(LIFE):
        o, d, _ = walk.step(Step(spec=RATES[edits % len(RATES)] if step == 0 else None, seconds=5.0))
        walk.believe(o, d)
    return walk


def edited(edits: int) -> Walk:
    """A walk on which so many revisions (at least one) were live one after the other, and the first one again after five."""
    return _copied(_edited(edits))


def lucky(steps: int) -> Walk:
    """A walk on which everything went well so far; at sixteen steps it is live."""
    return _copied(_after(steps))


def _copied(walk: Walk) -> Walk:
    return replace(walk, revisions=dict(walk.revisions), templates=dict(walk.templates), over=dict(walk.over))


def manifests(o: Observed, d: Draft) -> list[plan.Child]:
    """Everything that the decision asks for, up to where the operator's settings lack what the spec names."""
    context = plan.Context(Owner(o.namespace, o.name, o.uid), o, d, Images("trainer:1", "router:1", "vllm:1"), lambda: {"keys": []})
    made: list[plan.Child] = []
    for part in (plan.volume, plan.fields, plan.once, plan.cleaning, plan.arms, plan.routers):
        made += _until_refused(part(context))
    return made


def _until_refused(part: Iterator[plan.Child]) -> Iterator[plan.Child]:
    with suppress(SpecError):
        yield from part
