"""FineTunes and results as the tests want them: what is not said is what an ordinary run has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from finetune_operator import names
from finetune_operator.api.fields import REDEPLOY, REEVALUATE, RETRAIN, digest, extract
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Revision, Scored, Status
from finetune_operator.decide.draft import Draft
from finetune_operator.kinds import FINETUNE
from finetune_operator.observed import Observed
from finetune_operator.traffic import Source

from tests.unit.operator.world import Outcome, World

Object = dict[str, Any]
BY_HEADER = (Source(header="x-user-id"),)
SPEC: Object = {
    "model": {"source": "image:///opt/models/tiny"},
    "data": {"train": {"source": "image:///opt/data/train.jsonl"}},
    "method": {"type": "LoRA"},
    "training": {"learningRate": "2e-4"},
    "compute": {"nodes": 2},
    "evaluation": {"metrics": [{"type": "ExactMatch"}]},
    "serving": {"replicas": 2},
    "rollout": {
        "steps": [{"weight": 10, "hold": "4s"}, {"weight": 50, "hold": "4s"}, {"weight": 100}],
        "bake": "4s",
        "progressDeadline": "30s",
        "guards": {"minRequests": 50},
    },
}


def make_spec(**changes: Any) -> Object:
    """The spec, with blocks replaced; None leaves a block out."""
    spec = {**copy.deepcopy(SPEC), **changes}
    return {k: v for k, v in spec.items() if v is not None}


def make_finetune(*, status: Mapping[str, Any] | None = None, annotations: Mapping[str, str] | None = None, **changes: Any) -> Object:
    """A FineTune as the API server holds it."""
    meta: Object = {"name": "bot", "namespace": "ml", "uid": "uid-bot"}
    if annotations:
        meta["annotations"] = dict(annotations)
    made: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "spec": make_spec(**changes)}
    return {**made, "status": dict(status)} if status else made


def scores(score: float, difference: tuple[float, float] | None = None, n: int = 40) -> Object:
    """An evaluation's result: the score, and the interval of the paired difference."""
    result: Object = {
        "stage": "evaluate",
        "metrics": {"ExactMatch": {"score": score, "low": max(0.0, score - 0.1), "high": min(1.0, score + 0.1), "n": n}},
    }
    if difference:
        low, high = difference
        result["paired"] = {"metric": "ExactMatch", "difference": (low + high) / 2, "low": low, "high": high, "n": n}
    return result


def good_outcomes() -> dict[str, list[Outcome]]:
    """Every stage ends well, and tuning helps."""
    rows = {"read": 100, "invalid": 1, "duplicate": 2, "train": 77, "validation": 10, "test": 10}
    invalid = [{"source": "train.jsonl", "row": 7, "reason": "no answer"}]
    few = [{"code": "FewRows", "message": "There are 77 training rows.", "fix": "Bring more examples."}]
    return {
        "fetch": [Outcome({"stage": "fetch", "digest": "m" * 64})],
        "prepare": [Outcome({"stage": "prepare", "digest": "d" * 64, "rows": rows, "invalid": invalid, "advice": few})],
        "baseline": [Outcome(scores(0.1))],
        "train": [Outcome({"stage": "train", "digest": "a" * 64, "step": 50, "totalSteps": 50, "loss": 0.4})],
        "evaluate": [Outcome(scores(0.8, (0.6, 0.8)))],
        "clean": [Outcome({"stage": "clean", "bytes": 3 * 2**20})],
    }


def edit(world: World, *, annotations: Mapping[str, str] | None = None, **changes: Any) -> None:
    """The user applies the FineTune again with blocks of its spec replaced (None: left out)."""
    found = world.api.store[FINETUNE, "ml", "bot"]
    spec = {k: v for k, v in {**found["spec"], **changes}.items() if v is not None}
    meta = {**found["metadata"], **({"annotations": dict(annotations)} if annotations else {})}
    world.api.change(FINETUNE, found, {**found, "metadata": meta, "spec": spec})


def status_of(world: World) -> Object:
    """What the status says now."""
    found: Object = world.api.store[FINETUNE, "ml", "bot"].get("status") or {}
    return found


def condition(status: Mapping[str, Any], type_: str) -> Object:
    """The condition of that type; empty when it is absent."""
    return next((c for c in status.get("conditions") or () if c["type"] == type_), {})


NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
STAMP = "2026-01-01T12:00:00Z"
REV = "r1"


def make_revision(name: str = REV, **changes: Any) -> Revision:
    """A revision that nothing is known of yet."""
    return Revision.model_validate({"name": name, "created": STAMP, **changes})


def make_scored(score: str, low: str | None = None, high: str | None = None, *, key: str = "k") -> Scored:
    """A stored evaluation; `low` and `high` are those of the paired difference."""
    difference = {"difference": "0", "low": low, "high": high, "n": 40} if low and high else None
    return Scored.model_validate(
        {
            "key": key,
            "path": "/p",
            "metric": "ExactMatch",
            "score": {"score": score, "low": "0", "high": "1", "n": 40},
            "difference": difference,
        }
    )


def tried(retry: str) -> str:
    """How a snapshot of `make_observed` names what is asked."""
    return digest({"retry": retry})


def make_observed(
    *revisions: Revision,
    now: datetime = NOW,
    retry: str = "t1",
    changes: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
    **seen: Any,
) -> Observed:
    """A snapshot in which the spec asks for the first of the revisions."""
    spec = make_spec(**(changes or {}))
    fields = extract(spec, Spec, RETRAIN)
    known = revisions or (make_revision(),)
    stored = Status(revision=known[0].name, revisions=list(known)).model_copy(update=dict(status or {}))
    return Observed(
        namespace="ml", name="bot", uid="uid-bot", generation=1, spec=Spec.model_validate(spec), status=stored, retrain=fields,
        redeploy=extract(spec, Spec, REDEPLOY), reevaluate=extract(spec, Spec, REEVALUATE), asked={"retry": retry}, now=now,
        **{"revisions": {known[0].name: {"fields": fields}}, **seen},
    )  # fmt: skip


def draft(o: Observed) -> Draft:
    """The decision before any rule."""
    return Draft(status=o.status)
