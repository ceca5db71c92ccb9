"""What the status says: conditions, since when, columns."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator import status
from finetune_operator.api.status import Condition, Rollout, Status
from finetune_operator.decide.draft import Draft, Serving
from finetune_operator.status import compute, duration, invalid, leaving, merge
from finetune_operator.workloads.run import Waiting

from tests.unit.operator.helpers import NOW, STAMP, condition, draft, make_observed, make_revision, make_scored

PROBLEM = Waiting(c.REFUSED, "exceeded quota")


def told(phase: str, reason: str = "", *, problem: Waiting | None = None, **changes: Any) -> dict[str, Any]:
    o = make_observed(make_revision())
    return compute(o, replace(draft(o), **changes).block(phase, "words", reason=reason), problem).to_dict()


# phase, reason, problem → (Ready's status and reason, Reconciling there, Stalled there)
SUMMARIES: dict[str, tuple[tuple[str, str, Waiting | None], tuple[str, str, bool, bool]]] = {
    "it goes on as it should": ((c.TRAINING, "", None), ("Unknown", c.TRAINING, True, False)),
    "something is in its way": ((c.TRAINING, c.UNSCHEDULABLE, None), ("False", c.UNSCHEDULABLE, True, False)),
    "what it needs is missing": ((c.PENDING, c.SOURCE_MISSING, None), ("False", c.SOURCE_MISSING, True, False)),
    "users move": ((c.ROLLING_OUT, "", None), ("Unknown", c.ROLLING_OUT, True, False)),
    "the guards cannot tell": ((c.PAUSED, c.GUARD_UNDECIDED, None), ("False", c.GUARD_UNDECIDED, True, False)),
    "live": ((c.LIVE, "", None), ("True", c.LIVE, False, False)),
    "trained": ((c.TRAINED_ONLY, "", None), ("True", c.TRAINED_ONLY, False, False)),
    "not needed": ((c.NOT_NEEDED, c.BASELINE_GOOD_ENOUGH, None), ("True", c.BASELINE_GOOD_ENOUGH, False, False)),
    "suspended": ((c.SUSPENDED, "", None), ("False", c.SUSPENDED, False, False)),
    "rejected": ((c.REJECTED, c.GATE_FAILED, None), ("False", c.GATE_FAILED, False, True)),
    "failed": ((c.FAILED, c.RETRIES_EXHAUSTED, None), ("False", c.RETRIES_EXHAUSTED, False, True)),
    "a child is refused": ((c.TRAINING, "", PROBLEM), ("False", c.REFUSED, True, False)),
    "a child is refused while live": ((c.LIVE, "", PROBLEM), ("False", c.REFUSED, True, False)),
    "an image says a reason that is none": ((c.FAILED, "no word!", None), ("False", "Unknown", False, True)),
}


@pytest.mark.parametrize("case", SUMMARIES)
def test_summary(case: str) -> None:
    given, (ready, reason, reconciling, stalled) = SUMMARIES[case]
    said = told(given[0], given[1], problem=given[2])
    found = {x["type"]: x for x in said["conditions"]}
    assert (found["Ready"]["status"], found["Ready"]["reason"]) == (ready, reason)
    assert ("Reconciling" in found, "Stalled" in found) == (reconciling, stalled)
    assert said["observedGeneration"] == found["Ready"]["observedGeneration"] == 1
    words = given[2].message if given[2] else "words"
    assert found["Ready"]["message"].startswith(words)


def test_every_phase_is_ready_stalled_suspended_or_goes_on() -> None:
    assert c.READY_PHASES | c.STALLED_PHASES | {c.SUSPENDED} | status.PROGRESSING == set(c.PHASES)


def test_a_message_says_since_when_and_keeps_that_while_phase_and_reason_stay() -> None:
    o = make_observed(make_revision())
    one = compute(o, draft(o).block(c.TRAINING, "step 1"))
    later = make_observed(make_revision(), status=dict(one), now=NOW + timedelta(minutes=5))
    two = compute(later, Draft(status=later.status).block(c.TRAINING, "step 2"))
    three = compute(later, Draft(status=later.status).block(c.TRAINING, "no room", reason=c.UNSCHEDULABLE))
    said = [condition(s.to_dict(), "Ready")["message"] for s in (one, two, three)]
    assert said == [f"step 1 (since {STAMP})", f"step 2 (since {STAMP})", "no room (since 2026-01-01T12:05:00Z)"]


def test_a_transition_is_a_change_of_the_status_not_of_its_words() -> None:
    old = [Condition(type="Ready", status="Unknown", reason="Fetching", message="a", last_transition_time="earlier")]
    same, other = ({"Ready": (s, "Training", "b")} for s in ("Unknown", "False"))
    assert merge(old, same, 7, NOW) == [
        Condition(type="Ready", status="Unknown", reason="Training", message="b", last_transition_time="earlier", observed_generation=7)
    ]
    assert merge(old, other, 7, NOW)[0].last_transition_time == STAMP


def test_a_spec_that_cannot_be_read_leaves_everything_else_as_it_is() -> None:
    served = Condition(type="Available", status="True", reason="Serving", message="2 of 2", last_transition_time="earlier")
    going = Condition(type="Reconciling", status="True", reason="Training", last_transition_time="earlier")
    before = Status(phase=c.LIVE, live_arm="arm", conditions=[served, going], revisions=[make_revision()])
    said = invalid(before, 3, "spec.training.learningRate: is no decimal", NOW)
    assert (said.phase, said.live_arm, said.revisions) == (c.FAILED, "arm", before.revisions)
    assert {x.type: (x.status, x.reason) for x in said.conditions} == {
        "Available": ("True", "Serving"), "Ready": ("False", c.INVALID_SPEC), "Stalled": ("True", c.INVALID_SPEC),
    }  # fmt: skip
    assert invalid(said, 3, "spec.training.learningRate: is no decimal", NOW + timedelta(hours=1)) == said, "said once"


def test_what_is_being_deleted_says_so_and_leaves_everything_else_as_it_is() -> None:
    served = Condition(type="Available", status="True", reason="Serving", message="2 of 2", last_transition_time="earlier")
    stalled = Condition(type="Stalled", status="True", reason=c.GATE_FAILED, last_transition_time="earlier")
    said = leaving(Status(phase=c.REJECTED, live_arm="arm", conditions=[served, stalled]), 3, ["example.com/audit"], NOW)
    assert (said.phase, said.live_arm, said.observed_generation) == (c.TERMINATING, "arm", 3)
    assert {x.type: (x.status, x.reason) for x in said.conditions} == {
        "Available": ("True", "Serving"), "Ready": ("False", c.TERMINATING), "Reconciling": ("True", c.TERMINATING),
    }  # fmt: skip
    assert "example.com/audit" in condition(said.to_dict(), "Ready")["message"]
    assert leaving(said, 3, ["example.com/audit"], NOW + timedelta(hours=1)) == said, "said once"


def test_who_serves_is_told_whatever_the_newest_revision_does() -> None:
    for phase in (c.TRAINING, c.REJECTED, c.SUSPENDED, c.FAILED):
        said = told(phase, serving=Serving("arm", 2, 2))
        assert condition(said, "Available")["status"] == "True"
    assert condition(told(c.LIVE, serving=Serving("arm", 0, 2)), "Available")["reason"] == "NoReadyPods"


def test_stage_conditions_tell_what_was_found() -> None:
    known = make_revision(
        data_digest="d", rows={"train": 8, "validation": 1, "test": 1, "invalid": 2, "duplicate": 3}, dropped="a.jsonl row 7: no answer",
        baseline=make_scored("0.1"), artifact="/work/a", evaluated=make_scored("0.5", "0.2", "0.6"),
    )  # fmt: skip
    o = make_observed(known)
    said = compute(o, draft(o).block(c.DEPLOYING, "")).to_dict()
    assert {t: condition(said, t)["message"] for t in ("DataPrepared", "BaselineScored", "Trained", "Evaluated")} == {
        "DataPrepared": "8 training, 1 validation, 1 test rows; 2 invalid and 3 duplicate rows dropped: a.jsonl row 7: no answer",
        "BaselineScored": "ExactMatch 0.1 [0, 1], n=40",
        "Trained": "/work/a",
        "Evaluated": "ExactMatch 0.5 [0, 1], n=40; difference to the reference 0 [0.2, 0.6], n=40",
    }
    assert said["score"] == "0.1 → 0.5"


ROLLOUT = Rollout(arm="a", revision="r1", stable="b", state="Holding", weight=10, last_decision="step 1")
ROLLED_OUT: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str]]] = {
    "nothing rolled out yet": ({}, {}, ("False", "NotStarted")),
    "it rolls out": ({}, {"rollout": ROLLOUT}, ("False", "Holding")),
    "it serves all": (
        {"promoted": True},
        {"live_revision": "r1", "rollout": ROLLOUT.model_copy(update={"state": "Promoted"})},
        ("True", "Promoted"),
    ),
    "it serves all, and another image of it rolls out": (
        {"promoted": True},
        {"live_revision": "r1", "rollout": ROLLOUT},
        ("False", "Holding"),
    ),
    "it serves all, and another image of it was taken back": (
        {"promoted": True},
        {"live_revision": "r1", "rollout": ROLLOUT.model_copy(update={"state": "RolledBack"})},
        ("True", "Promoted"),
    ),
    "the last rollout was another revision's": ({}, {"rollout": ROLLOUT.model_copy(update={"revision": "r0"})}, ("False", "NotStarted")),
    "it was taken back": ({}, {"rollout": ROLLOUT.model_copy(update={"state": "RolledBack"})}, ("False", "RolledBack")),
}


@pytest.mark.parametrize("case", ROLLED_OUT)
def test_rolled_out(case: str) -> None:
    revision, known, expected = ROLLED_OUT[case]
    o = make_observed(make_revision(**revision), status=known)
    found = condition(compute(o, draft(o).block(c.LIVE, "")).to_dict(), "RolledOut")
    assert (found["status"], found["reason"]) == expected


def test_the_users_address_says_whether_it_speaks_tls() -> None:
    for serving, address in (({}, "http://bot.ml.svc/v1"), ({"tls": {"secretName": "bot-tls"}}, "https://bot.ml.svc/v1")):
        o = make_observed(make_revision(), status={"live_arm": "a"}, changes={"serving": serving})
        assert compute(o, draft(o).block(c.LIVE, "")).to_dict()["endpoint"] == address
    o = make_observed(make_revision())
    assert "endpoint" not in compute(o, draft(o).block(c.TRAINING, "")).to_dict(), "nobody is served yet"


def test_durations_have_two_units_at_most() -> None:
    assert [duration(s) for s in (5, 59, 60, 754, 3600, 12_000)] == ["5s", "59s", "1m", "13m", "1h00m", "3h20m"]
