"""What always holds, whatever happens and in whatever order: DESIGN.md's invariants over random walks of decisions."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from finetune_operator import conditions as c
from finetune_operator.api.blocks.deadlines import WAITS
from finetune_operator.api.quantities import seconds
from finetune_operator.api.status import Attempt, Cleaning, Control, Revision, Rollout, Status
from finetune_operator.decide import control, decide
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.retry import BUDGETS
from finetune_operator.decide.rollout import states
from finetune_operator.observed import Observed
from finetune_operator.workloads.run import Run
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.operator.walks import RATES, SPECS, Step, Walk, edited, examples, lucky, manifests

SETTLES = 15  # decisions in which a snapshot that does not change has been dealt with
STEPS = st.builds(
    Step,
    spec=st.sampled_from([None] * 20 + list(SPECS)),
    luck=st.one_of(st.just(0), st.integers(1, 100_000)),
    seconds=st.sampled_from([0.0, 1.0, 1.0, 1.0, 5.0, 30.0, 3600.0, 86400.0]),
    retry=st.sampled_from([False] * 9 + [True]),
    control=st.sampled_from([None] * 12 + [*(f"{verb}:{{}}" for verb in control.MEANING), "abort:0ld", "promote", "stop:{}", ""]),
)


EDITS = st.builds(
    Step,
    spec=st.sampled_from([None] * 8 + [*RATES, *RATES, *SPECS]),
    luck=st.one_of(st.just(0), st.just(0), st.integers(1, 100_000)),
    seconds=st.sampled_from([1.0, 5.0, 30.0, 3600.0, 86400.0]),
)


@examples(1200)
@given(st.integers(0, 16), st.lists(STEPS, min_size=1, max_size=8))
def test_whatever_is_seen_the_decision_keeps_what_must_always_hold(begun: int, steps: list[Step]) -> None:
    walk = lucky(begun)
    for step in steps:
        before = walk.status
        o, d, after = walk.step(step)
        walk.believe(o, d)
        _conditions_agree(after, walk)
        _at_most_two_arms_and_one_gang(o, d)
        _artifacts_stay(before, after)
        _failures_are_charged_to_their_class(o, before, after)
        _weights_move_by_the_plan(o, before.rollout, after.rollout)
        _the_user_is_heard(o, d, before, after)
    _is_written_as_the_schema_says(after)
    assert decide(o) == d, "the same snapshot is decided the same way"
    assert _bytes(manifests(o, d)) == _bytes(manifests(o, d)), "the same status and spec give the same manifests"
    _settles(walk, o, d)


@examples(600)
@given(st.integers(1, 6), st.lists(EDITS, min_size=1, max_size=8))
def test_retention_never_removes_what_is_needed(edits: int, steps: list[Step]) -> None:
    walk = edited(edits)
    for step in steps:
        before = walk.status
        o, d, after = walk.step(step)
        walk.believe(o, d)
        _nothing_needed_is_removed(o, d, after)
        _removal_begins_at_rest(o, d, before, after)
        _artifacts_stay(before, after)
        manifests(o, d)
    _is_written_as_the_schema_says(after)
    _settles(walk, o, d)


def _the_user_is_heard(o: Observed, d: Draft, before: Status, after: Status) -> None:
    """A pause holds, an abort brings back, what is ignored has no effect, and all of it is told once."""
    judged, running = after.control, before.rollout
    assert (judged.asked if judged else "") == o.control
    assert (judged == before.control) == (o.control == (before.control.asked if before.control else "")), "judged when it is new"
    told = [n for n in d.notes if n.reason == c.CONTROL_IGNORED]
    assert bool(told) == (judged is not None and judged.outcome == "Ignored" and judged != before.control), "and told once"
    moves = running is not None and running.state in states.ACTIVE and after.rollout is not None
    if running and moves and judged and judged.outcome == "Accepted" and judged.asked == f"pause:{running.name}":
        assert after.rollout
        assert after.rollout.weight <= running.weight, "nobody else is moved"
        assert after.rollout.state != states.PROMOTED or running.state == states.PROMOTED
    if running and moves and judged and judged.outcome == "Accepted" and judged.asked == f"abort:{running.name}":
        assert after.rollout
        assert after.rollout.weight in (0, running.weight)
        assert after.rollout.state != states.PROMOTED
    if judged is None or judged.outcome == "Ignored":
        holds = judged.in_force if judged else None
        accepted = Control(asked=holds, outcome="Accepted", message="", time="") if holds else None
        quiet = decide(replace(o, control=holds or "", status=before.model_copy(update={"control": accepted})))
        alone = replace(d, notes=())
        assert replace(quiet, notes=(), status=quiet.status.model_copy(update={"control": judged})) == alone, "without effect"


def _nothing_needed_is_removed(o: Observed, d: Draft, after: Status) -> None:
    cleaning = after.cleaning or Cleaning()
    removed, known = {*cleaning.revisions}, {r.name: r for r in after.revisions}
    rolls = after.rollout if after.rollout and after.rollout.state in states.ACTIVE else None
    trains = {a.revision for a in after.attempts if a.outcome == "Running"}
    needed = {after.revision, after.live_revision, after.previous_revision, *trains, *(arm.revision for arm in d.arms)}
    assert not removed & (needed | {rolls.revision if rolls else None}), "what is needed is never on the list"
    assert after.revision not in cleaning.forgotten
    for name in removed & known.keys():
        assert known[name].artifact is known[name].data_digest is known[name].gate is None, "a revert does not look for what is gone"
        assert not known[name].promoted
        assert known[name].removed
    assert all(known[name].artifact for name in cleaning.checkpoints if name in known), "without an artifact it may resume"
    if d.jobs and d.revision.data_digest is None:
        alive = {n for n, run in o.runs.items() if n.startswith("bot-clean-") and run.state in ("Waiting", "Running", "Ending")}
        assert alive <= {f"bot-clean-{cleaning.number}"}, "nothing begins while a Job that was called off may remove it"


def _removal_begins_at_rest(o: Observed, d: Draft, before: Status, after: Status) -> None:
    old, new = before.cleaning or Cleaning(), after.cleaning or Cleaning()
    assert new.number in (old.number, old.number + 1, old.number + 2), "another list is another Job"
    listed = ({*old.revisions}, {*old.checkpoints}, old.keep)
    if ({*new.revisions}, {*new.checkpoints}, new.keep) != listed and (new.revisions or new.checkpoints):
        assert new.number > old.number, "another list is another Job"
    more = {*new.revisions} - {*old.revisions} or {*new.checkpoints} - {*old.checkpoints}
    if more or d.clean:
        assert d.phase in c.READY_PHASES | c.STALLED_PHASES
        assert not o.spec.suspend
        assert after.rollout is None or after.rollout.state not in states.ACTIVE
    if d.clean:
        assert new.revisions or new.checkpoints
        artifacts = [r.name for r in after.revisions if r.artifact]
        needed = {after.revision, after.live_revision, after.previous_revision}
        assert len({*artifacts} - needed - {*artifacts[-o.spec.retention.revisions :]}) == 0, "no more are kept than are asked for"


def _settles(walk: Walk, o: Observed, d: Draft) -> None:
    """A snapshot that does not change is dealt with in a few decisions: nothing is written for ever."""
    for _ in range(SETTLES):
        walk.believe(o, d)
        before = walk.status
        o, d, after = walk.decide(replace(o, status=before, revisions=dict(walk.revisions), templates=dict(walk.templates)))
        if after == before:
            return
    raise AssertionError(f"the status is written again and again: {before.to_dict()} and then {after.to_dict()}")


def _bytes(made: list[object]) -> str:
    return json.dumps([manifest for _, manifest in made])  # type: ignore[misc]


def _is_written_as_the_schema_says(status: Status) -> None:
    wire = status.to_dict()
    assert Status.model_validate(wire).to_dict() == wire
    assert len(json.dumps(wire)) < 64 * 1024


def _conditions_agree(status: Status, walk: Walk) -> None:
    """As kstatus reads them."""
    said = {x.type: x.status for x in status.conditions}
    assert status.phase in c.PHASES
    assert said[c.READY] == "True" if status.phase in c.READY_PHASES and not walk.problem else said[c.READY] != "True"
    going, stalled = said.get(c.RECONCILING), said.get(c.STALLED)
    assert {going, stalled} <= {"True", None}, "present and True, or absent"
    if status.phase == c.SUSPENDED and not walk.problem:
        assert (going, stalled) == (None, None)
    else:
        assert [said[c.READY], going, stalled].count("True") == 1, "ready, or on the way, or stalled"


def _at_most_two_arms_and_one_gang(o: Observed, d: Draft) -> None:
    assert len({a.name for a in d.arms}) == len(d.arms) <= 2
    assert [a.outcome for a in d.status.attempts].count("Running") <= 1
    gangs = [j for j in d.jobs if j.stage == "train"]
    assert len(gangs) <= 1
    alive = {n for n, run in o.runs.items() if run.state in ("Waiting", "Running", "Ending") and n.rsplit("-", 1)[1].startswith("a")}
    assert not (gangs and alive), "a gang begins when the one before it has ended"
    assert len(d.jobs) <= 1, "one stage at a time"


def _artifacts_stay(before: Status, after: Status) -> None:
    kept = {r.name: r.artifact for r in after.revisions}
    for revision in before.revisions:
        if revision.artifact and revision.name in kept:
            assert kept[revision.name] == revision.artifact or revision.name in (after.cleaning or Cleaning()).revisions


def _failures_are_charged_to_their_class(o: Observed, before: Status, after: Status) -> None:
    """One charge for one failure; all are forgiven when the user asks for another try."""
    old = {r.name: r for r in before.revisions}
    for new in after.revisions:
        was = old.get(new.name) or Revision(name=new.name, created=new.created)
        failed = _failed_attempt(before, after, new.name) or _failed_stage(o, was, new)
        reopened = was.stopped is not None and was.stopped.tried != o.tried and new.name == after.revision
        budgets = dict.fromkeys(BUDGETS.values(), 0) if reopened else was.charges.model_dump()
        if failed in BUDGETS:
            budgets[BUDGETS[failed]] += 1
        assert {k: v for k, v in new.charges.model_dump().items() if k in budgets} == budgets


def _failed_attempt(before: Status, after: Status, revision: str) -> str | None:
    def ended(attempts: list[Attempt]) -> set[int]:
        return {a.number for a in attempts if a.revision == revision and a.outcome in ("Failed", "Disrupted")}

    fresh = [a for a in after.attempts if a.revision == revision and a.number in ended(after.attempts) - ended(before.attempts)]
    assert len(fresh) <= 1
    return fresh[0].failure_class if fresh else None


def _failed_stage(o: Observed, was: Revision, new: Revision) -> str | None:
    """The class of the failure of which a try of a stage ended in this decision: a run that ended badly or said nothing of use."""
    for stage, number in was.tries.items():
        run = o.run(f"bot-{new.name}-{stage}" if number == 1 else f"bot-{new.name}-{stage}-{number}")
        again = (new.trouble, new.retry_at) != (was.trouble, was.retry_at) and new.retry_at
        given_up = new.stopped and new.stopped != was.stopped and new.stopped.reason != c.GATE_FAILED
        if new.tries.get(stage) == number + 1 and (again or given_up):
            if run.state == "Failed":
                return run.failure.failure_class if run.failure else "error"
            if run.state in ("Waiting", "Running"):
                return _given_up(o, run)
            return "error" if run.result else "infrastructure"
    return None


def _given_up(o: Observed, run: Run) -> str:
    """The class of what has waited for too long, or else taken too long; a probe's is none."""
    bounds = {wait: getattr(o.spec.deadlines, wait) for wait in WAITS}
    over = [wait for wait, bound in bounds.items() if bound and (getattr(run.waited, wait) or 0.0) >= seconds(bound)]
    if over:
        return "user" if over[0] == "admission" else "infrastructure"
    assert run.since
    assert o.now - run.since > timedelta(0)
    return "nobody's" if run.probing else "stalled"


def _weights_move_by_the_plan(o: Observed, before: Rollout | None, after: Rollout | None) -> None:
    if after is None:
        return
    goes_on = before is not None and before.state in states.ACTIVE
    assert not (goes_on and before and before.arm != after.arm), "one rollout at a time"
    was = before.weight if before and (goes_on or before.arm == after.arm) else 0
    steps = {s.weight for s in o.spec.rollout.steps or ()} | {0, 100}
    assert after.weight in steps | {was}
    if after.weight < was:
        assert (after.weight, after.state) in {(0, states.ROLLING_BACK), (0, states.ROLLED_BACK)}, "back is back for everybody"
    if after.state in (states.ROLLING_BACK, states.ROLLED_BACK):
        assert after.weight == 0
    if after.weight > was:
        assert after.state == states.SHIFTING
