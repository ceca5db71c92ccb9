"""How large a status may come to be: everything in it as long as the operator ever writes it."""

from __future__ import annotations

import json
import types
import typing
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from annotated_types import MaxLen
from finetune_operator.api.status import Status
from finetune_operator.decide.rollout.machine import advance
from finetune_operator.decide.rollout.states import SHIFTING
from finetune_operator.reconcile import _news
from finetune_operator.room import LARGEST, SHORT, fitted
from pydantic import BaseModel

from tests.unit.operator.test_rollout import TOKENS, at, large, large_routers, scene

# Where the schema lets a field be longer than anything that is written there: what is, at the longest.
LONGEST: Final[dict[str, int]] = {
    "name": 16, "revision": 8, "arm": 8, "stable": 8, "liveRevision": 8, "liveArm": 8, "previousRevision": 8, "reference": 8, "key": 8,
    "tried": 8,
    "modelDigest": 64, "dataDigest": 64, "artifactDigest": 64, "path": 80, "artifact": 80, "folder": 60, "pod": 63, "node": 63,
    "metric": 24, "accelerator": 24, "runtime": 63, "reason": 32, "type": 16, "state": 16, "stage": 8, "code": 24, "failureClass": 16,
    "layout": 48, "currency": 3, "verdict": 16, "alternative": 63, "asked": 63, "inForce": 63, "progress": 4, "eta": 8, "score": 20,
    "weight": 4, "attempt": 4, "endpoint": 120, "selector": 160, "phase": 16,
    "revisions": 8, "checkpoints": 8, "forgotten": 8, "extraKinds": 24, "": 24,
    "message": 1024, "fix": 400, "dropped": 900, "unprobed": 400, "unmeasured": 400, "evidence": 200, "lastDecision": 400,
}  # fmt: skip
ADVICE_MESSAGE, CONDITIONS = 400, 10


def filled(annotation: Any, name: str = "", bounds: Any = (), letter: str = "x") -> Any:
    """A value of that type, as long as it may be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return filled(arguments[0], name, [*bounds, *(m for a in arguments[1:] for m in getattr(a, "metadata", [a]))], letter)
    if origin in (typing.Union, types.UnionType):
        return filled(arguments[0], name, bounds, letter)
    most = next((m.max_length for m in bounds if isinstance(m, MaxLen)), 0)
    if origin is Literal:
        return max(arguments, key=len)
    if origin is list:
        return [
            filled(arguments[0], "" if name == "stages" else name, (), letter) for _ in range(CONDITIONS if name == "conditions" else most)
        ]
    if origin is dict:
        return {f"component-{n:02}": filled(arguments[1], name, (), letter) for n in range(most if arguments[1] is not Any else 0)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {f.alias: filled(f.annotation, f.alias or "", f.metadata, letter) for f in annotation.model_fields.values()}
    if annotation is str:
        text = letter if most > 300 or name in ("dropped", "evidence") else "x"
        return text * min(most, {32: 12, 64: 20}.get(most, LONGEST.get(name, most)))
    return True if annotation is bool else 10**7


def largest(letter: str = "x", **changes: Any) -> Status:
    """Ten revisions, twenty attempts, ten arms: each refused or failed with all that it could say."""
    made = filled(Status, letter=letter)
    for number, revision in enumerate(made["revisions"]):
        revision["name"] = f"r{number:07}"
        for figures in (revision["evaluated"]["forgetting"], revision["evaluated"]["fidelity"], revision["baseline"]["fewShot"]):
            del figures["unmeasured"]  # it is there in place of figures
        for probed in ("forgetting", "fidelity", "answering", "difference"):
            revision["baseline"][probed] = None
        revision["evaluated"]["fewShot"] = None
    del made["evaluation"]["baseline"]["fewShot"]["unmeasured"]
    for attempt in made["attempts"]:
        attempt |= {"revision": "r0000009", "outcome": "Failed"}
    for item in made["advice"]:
        item["message"] = letter * ADVICE_MESSAGE
    for condition in made["conditions"][3:]:
        condition["message"] = letter * 300
    for number, arm in enumerate(made["arms"]):
        arm |= {"name": f"a{number:07}", "revision": f"r{number:07}"}
    named = {"revision": "r0000009", "liveRevision": "r0000008", "previousRevision": "r0000007", "liveArm": "a0000008"}
    made["rollout"] |= {"revision": "r0000009", "arm": "a0000009", "stable": "a0000008"}
    return Status.model_validate({**made, **named, **changes})


def size(status: Status) -> int:
    return len(json.dumps(status.to_dict(), separators=(",", ":"), ensure_ascii=False).encode())


def in_force(status: Status) -> dict[str, Any]:
    """What may not be touched."""
    kept = status.to_dict()
    kept["revisions"] = [r for r in kept["revisions"] if r["name"] == status.revision]
    kept["attempts"], kept["arms"] = kept["attempts"][-1:], [a for a in kept["arms"] if a["revision"] == status.revision]
    return {name: value for name, value in kept.items() if name not in ("advice", "stages")}


def test_a_status_of_which_all_is_as_long_as_may_be_has_room() -> None:
    whole = largest()
    assert size(whole) > 2 * LARGEST
    found = fitted(whole)
    assert size(found) <= LARGEST
    assert in_force(found) == in_force(whole)
    assert _news({"status": found.to_dict()}, found, whole) is None, "what was cut once is not written again"
    assert _news({}, Status(), whole) == found.to_dict()
    assert _news({}, Status(), found) == found.to_dict()
    assert Status.model_validate(found.to_dict()) == found, "it is what the API server holds"


def test_words_make_room_for_the_counters_of_a_large_arms_step() -> None:
    """Twenty failed attempts and three revisions that were refused, and a rollout whose step began with all the counters that it keeps."""
    began = advance(TOKENS, scene(*large_routers(), servers=tuple(large(1e6))), at(SHIFTING, 10, 1)).rollout
    whole = largest(revisions=largest().revisions[7:], arms=largest().arms[7:])
    rollout = whole.rollout and whole.rollout.model_copy(update={"memory": began.memory})
    found = fitted(whole.model_copy(update={"rollout": rollout}))
    assert size(found) <= LARGEST
    assert found.rollout == rollout


def test_what_decides_something_is_not_cut() -> None:
    """Where an attempt may resume, which machines are left alone, which Jobs are paid for, what the live revision's speed is known by."""
    whole = largest("字", liveRevision="r0000003")
    rejected = whole.revisions[4].model_copy(update={"promoted": False})
    whole = whole.model_copy(update={"revisions": [*whole.revisions[:4], rejected, *whole.revisions[5:]]})
    found = fitted(whole)
    for before, after in zip(whole.attempts, found.attempts, strict=True):
        assert before.model_copy(update={"message": None}) == after.model_copy(update={"message": None})
    for was, now in zip(whole.revisions, found.revisions, strict=True):
        kept = ("name", "tries", "meters", "model_digest", "data_digest", "artifact", "attempts", "charges", "gate", "promoted", "removed")
        assert {name: getattr(was, name) for name in kept} == {name: getattr(now, name) for name in kept}
        assert bool(was.stopped) == bool(now.stopped)
    assert found.revisions[3].evaluated == whole.revisions[3].evaluated
    assert [bool(r.baseline and r.baseline.few_shot) for r in found.revisions] == [False] * 9 + [True], "of the others it was advice"
    assert found.revisions[4].evaluated == rejected.evaluated, "its gate may be loosened"
    assert found.revisions[5].evaluated is None, "all users had it"


def test_one_that_has_room_is_left_alone_and_one_that_has_not_loses_the_oldest_words_first() -> None:
    whole = largest(revisions=[], arms=[], advice=None, stages=[])
    assert fitted(whole) == whole
    more = largest(revisions=largest().revisions[:3], arms=[], advice=None, stages=[])
    found = fitted(more)
    short = [len(a.message or "") for a in found.attempts]
    assert 0 < short.count(SHORT) < len(short)
    assert short == sorted(short), "the oldest"
    assert (found.attempts[0].message or "").endswith("…")
    assert found.revisions == more.revisions, "before anything else"
