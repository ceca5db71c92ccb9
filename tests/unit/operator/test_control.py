"""What the annotation finetune.dev/rollout asks of a rollout: when it is heard, when it is without effect, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator import conditions as c
from finetune_operator import names
from finetune_operator.api.crd import ROOT
from finetune_operator.api.status import Control, Rollout
from finetune_operator.decide import control, decide
from finetune_operator.decide.arms import rollout as arms
from finetune_operator.decide.rollout import states as m
from finetune_operator.status import compute

from tests.unit.operator.helpers import NOW, STAMP, condition, draft, make_observed, make_revision

RUNS = Rollout(name="a1b2c3d4", arm="new", revision="r1", stable="old", state=m.HOLDING, weight=10, step=1, steps=3)


def rolling(**changes: Any) -> dict[str, Any]:
    return {"rollout": RUNS.model_copy(update=changes)}


def judged(asked: str, outcome: str = "Accepted") -> Control:
    return Control.model_validate({"asked": asked, "outcome": outcome, "message": "as it was", "time": "2026-01-01T11:00:00Z"})


# the annotation, the status → outcome, words of its message
JUDGED: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "pause": ("pause:a1b2c3d4", rolling(), ("Accepted", "until it is resumed")),
    "resume": ("resume:a1b2c3d4", rolling(), ("Accepted", "goes on with its steps")),
    "promote": ("promote:a1b2c3d4", rolling(), ("Accepted", "all users are moved")),
    "promote while all are being moved": (
        "promote:a1b2c3d4", rolling(state=m.SHIFTING, weight=100), ("Ignored", "all users are on the new arm already"),
    ),
    "promote while nearly all are moved": ("promote:a1b2c3d4", rolling(weight=99), ("Accepted", "all users are moved")),
    "promote while it bakes": ("promote:a1b2c3d4", rolling(state=m.BAKING, weight=100), ("Ignored", "rollout.bake")),
    "pause while it bakes": ("pause:a1b2c3d4", rolling(state=m.BAKING, weight=100), ("Accepted", "until it is resumed")),
    "abort": ("abort:a1b2c3d4", rolling(), ("Accepted", "everybody is taken back")),
    "abort while everybody goes back": ("abort:a1b2c3d4", rolling(state=m.ROLLING_BACK), ("Ignored", "taken back already")),
    "a verb that is none": ("stop:a1b2c3d4", rolling(), ("Ignored", "with a verb of pause, resume, promote, abort")),
    "no rollout is named": ("promote", rolling(), ("Ignored", "it is to be VERB:ROLLOUT")),
    "an empty name": ("promote:", rolling(), ("Ignored", "it is to be VERB:ROLLOUT")),
    "the rollout before this one": ("promote:00000000", rolling(), ("Ignored", "the rollout that is running is a1b2c3d4, of revision r1")),
    "a rollout that is over": ("abort:a1b2c3d4", rolling(state=m.PROMOTED), ("Ignored", "the last one, a1b2c3d4, is Promoted")),
    "no rollout was ever there": ("abort:a1b2c3d4", {}, ("Ignored", "no rollout is running")),
    "a rollout that has no name": ("abort:None", rolling(name=None), ("Ignored", "the rollout that is running is None")),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_a_new_value_is_judged_and_told_once(case: str) -> None:
    asked, status, (outcome, words) = JUDGED[case]
    o = make_observed(status=status, control=asked)
    d = control.heard(o, draft(o))
    found = d.status.control
    assert found is not None
    assert (found.asked, found.outcome, found.time) == (asked, outcome, STAMP)
    assert words in found.message
    [note] = d.notes
    assert (note.type, note.reason) == (("Normal", "Rollout") if outcome == "Accepted" else ("Warning", c.CONTROL_IGNORED))
    assert words in note.message
    again = control.heard(make_observed(status=dict(d.status), control=asked), draft(make_observed(status=dict(d.status))))
    assert (again.status, again.notes) == (d.status, ())


def test_a_value_stays_as_it_was_judged_when_its_rollout_is_over() -> None:
    o = make_observed(status={**rolling(state=m.PROMOTED), "control": judged("promote:a1b2c3d4")}, control="promote:a1b2c3d4")
    assert control.heard(o, draft(o)) == draft(o)


@pytest.mark.parametrize(
    ("asked", "outcome", "state", "notes"),
    [
        ("pause:a1b2c3d4", "Accepted", m.HOLDING, ["the pause is taken back: it goes on with its steps"]),
        ("pause:a1b2c3d4", "Accepted", m.PROMOTED, []),
        ("promote:a1b2c3d4", "Accepted", m.HOLDING, []),
        ("pause:00000000", "Ignored", m.HOLDING, []),
    ],
)
def test_an_annotation_that_is_taken_away_is_forgotten(asked: str, outcome: str, state: str, notes: list[str]) -> None:
    o = make_observed(status={**rolling(state=state), "control": judged(asked, outcome)})
    d = control.heard(o, draft(o))
    assert d.status.control is None
    assert [(n.type, n.reason, n.message) for n in d.notes] == [("Normal", "Rollout", note) for note in notes]


@pytest.mark.parametrize(
    ("found", "wish"),
    [
        (judged("abort:a1b2c3d4"), "abort"),
        (judged("abort:00000000"), ""),
        (judged("abort:a1b2c3d4", "Ignored"), ""),
        (None, ""),
    ],
)
def test_what_was_accepted_is_in_force_for_its_rollout_alone(found: Control | None, wish: str) -> None:
    assert control.wish(make_observed(status={"control": found}).status, RUNS) == wish


def test_a_long_value_is_cut() -> None:
    asked = "pause:" + "x" * 4000
    o = make_observed(status=rolling(), control=asked)
    d = control.heard(o, draft(o))
    assert d.status.control is not None
    assert len(d.status.control.asked) == 253
    o = make_observed(status=dict(d.status), control=asked)
    assert control.heard(o, draft(o)) == draft(o), "and is no new one in the next cycle"


def test_each_rollout_has_a_name_of_its_own() -> None:
    passed = make_revision(gate="Passed", artifact="/a")
    o = make_observed(passed)
    one = arms(o, draft(o)).status.rollout
    later = make_observed(passed, now=NOW.replace(hour=13))
    two = arms(later, draft(later)).status.rollout
    assert one
    assert two
    assert one.arm == two.arm
    assert one.name
    assert one.name != two.name


def test_what_is_without_effect_is_in_the_condition() -> None:
    o = make_observed(control="promote:00000000")
    said = compute(o, decide(o)).to_dict()
    message = condition(said, "RolledOut")["message"]
    assert message == f"the annotation {names.CONTROL}=promote:00000000 is without effect: no rollout is running"
    o = make_observed(status=rolling(), control="pause:a1b2c3d4")
    assert names.CONTROL not in condition(compute(o, decide(o)).to_dict(), "RolledOut")["message"]


def test_the_verbs_are_those_of_the_contract() -> None:
    assert (m.PAUSE, m.RESUME, m.PROMOTE, m.ABORT) == ("pause", "resume", "promote", "abort")
    contract = (ROOT / "docs" / "contracts.md").read_text()
    assert [verb for verb in control.MEANING if f"\n| `{verb}` |" not in contract] == []


@pytest.mark.parametrize("mistake", ["promot:a1b2c3d4", "promote", "pause:00000000"])
def test_a_misspelt_or_stale_value_leaves_the_pause_before_it_in_force(mistake: str) -> None:
    paused = judged("pause:a1b2c3d4")
    for asked in (mistake, f"{mistake}x"):
        o = make_observed(status={**rolling(), "control": paused}, control=asked)
        d = control.heard(o, draft(o))
        found = d.status.control
        assert found is not None
        assert (found.outcome, found.in_force) == ("Ignored", "pause:a1b2c3d4")
        assert found.message.endswith("; pause:a1b2c3d4 holds on")
        assert control.wish(d.status, RUNS) == m.PAUSE
        paused = found
    o = make_observed(status={**rolling(), "control": paused}, control="resume:a1b2c3d4")
    lifted = control.heard(o, draft(o)).status
    assert control.wish(lifted, RUNS) == m.RESUME
    assert lifted.control is not None
    assert lifted.control.in_force is None
